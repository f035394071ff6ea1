"""The stages in a row, with no Ray, a hash as embedder and a network trained in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from nncift_ray.corpus.examples import DeduplicateStage
from nncift_ray.corpus.export import ExportStage
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.embedders import Embedder, EmbedStage
from nncift_ray.engines.models import ResolvedModel
from nncift_ray.labels.sample import SampleDesign
from nncift_ray.labels.step import LabelSample, LabelStage
from nncift_ray.network.step import FitStage
from nncift_ray.profiles.blocks import ExampleInputs
from nncift_ray.recipe.sections import (
    EmbedderConfig,
    NetworkConfig,
    PairScoresConfig,
    PoolConfig,
    SelectionConfig,
)
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Resources, Shard, Stage
from nncift_ray.scores.index_step import IndexStage
from nncift_ray.scores.step import ProjectStage, ScorePairsStage
from nncift_ray.scores.teacher_scores import TeacherScoresStage
from nncift_ray.selection.names import TOP_K, blocks_of, list_blocks
from nncift_ray.selection.step import SelectStage
from nncift_ray.teachers.base import LabelRequest, Measurement, Teacher
from nncift_ray.teachers.delift import DeliftSeTeacher
from tests.hash_embedder import HashEmbedder
from tests.stages import RowsStage

MODEL = ResolvedModel("hash", "nowhere", "1")
DIMENSION = 16
TOP_HELPERS = 10


@dataclass(frozen=True)
class Sizes:
    """Knobs that must never change a row."""

    embed_rows: int = 256
    label_pairs: int = 64
    project_rows: int = 1024
    score_rows: int = 256
    column_tile: int = 4096
    threads: int = 1


class LastDigitTeacher:
    """A pointwise teacher that likes examples by the last digit of their prompt: -4 to 5."""

    kind: ClassVar[Literal["pairwise", "pointwise"]] = "pointwise"
    needs_baseline: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    needs_engine: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement]:
        assert all(request.helper is None for request in requests)
        return [Measurement(float(request.helped.prompt[-1]) - 4) for request in requests]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        assert baseline is None
        return value

    def close(self) -> None:
        pass


class GivenQuality(RowsStage):
    """Says of every candidate how good it is; of some nothing."""

    name = "quality"
    schema = pa.schema([pa.field("row_index", pa.int64()), pa.field("quality", pa.float32())])
    produces: ClassVar[dict[str, pa.Schema]] = {"candidates": schema}

    def __init__(self, quality: dict[int, float | None]) -> None:
        self._quality = quality

    def settings(self) -> dict[str, Any]:
        return {"quality": {str(row): value for row, value in self._quality.items()}}

    def work(self, shard: Shard, sink: Sink) -> None:
        columns = {"row_index": list(self._quality), "quality": list(self._quality.values())}
        sink.write("candidates", pa.Table.from_pydict(columns, schema=self.schema))


def make_embedder() -> Embedder:
    """Make the embedder of the tests."""
    return HashEmbedder(DIMENSION)


def write_corpus(
    folder: Path, num_candidates: int, num_targets: int, num_existing: int = 0
) -> tuple[str, str, str]:
    """Write candidates, targets and existing data with distinct texts."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    counts = {"candidates": num_candidates, "targets": num_targets, "existing": num_existing}
    for role, count in counts.items():
        rows = [
            {
                "prompt": f"{role} question {i}",
                "completion": f"answer {i % 7} of {i}",
                "task": f"task {i % 3}",
            }
            for i in range(count)
        ]
        path = folder / f"{role}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        names.append(str(path))
    return names[0], names[1], names[2]


def run_chain(
    folder: Path,
    *,
    num_candidates: int = 700,
    num_targets: int = 40,
    objective: str = "facility_location_mutual_information",
    budget: Any = 30,
    make_teacher: Callable[[], Teacher] = DeliftSeTeacher,
    subtask_by: str | None = None,
    sizes: Sizes | None = None,
    run_dir: str | None = None,
    num_existing: int = 0,
    same_existing: bool = False,
    pair_scores: dict[str, Any] | None = None,
    by_teacher: bool = False,
    network: NetworkConfig | None = None,
    top_helpers: int = TOP_HELPERS,
    quality: dict[int, float | None] | None = None,
    **selection: Any,
) -> dict[str, StageOutput]:
    """Run all stages and return their outputs by name; ``selection`` goes into the SelectionConfig.

    ``by_teacher`` labels every pair and takes the labels for scores, without a network.
    """
    sizes = sizes or Sizes()
    outputs: dict[str, StageOutput] = {}
    location = Location.of(run_dir or str(folder / "run"))

    def run(stage: Stage) -> StageOutput:
        stage.resources = Resources(num_cpus=sizes.threads)
        output = run_stage(stage, location, execute=execute_here, reporter=SilentReporter())
        outputs[stage.name] = output
        return output

    candidates, targets, existing = write_corpus(
        folder / "corpus", num_candidates, num_targets, num_existing
    )
    teacher = make_teacher()
    pointwise = teacher.kind == "pointwise"
    blocks = blocks_of(objective, pointwise=pointwise, has_targets=num_targets > 0)
    sources = find_sources(
        [candidates],
        [targets] if num_targets else [],
        [candidates if same_existing else existing] if num_existing else [],
    )
    examples = run(DeduplicateStage(run(IngestStage(sources))))
    embeddings = run(
        EmbedStage(
            examples,
            MODEL,
            EmbedderConfig(pool=PoolConfig(shard_rows=sizes.embed_rows)),
            make_embedder=make_embedder,
        )
    )
    design = SampleDesign(label_pairs=300, holdout_pairs_per_quadrant=20, seed=3)
    if by_teacher:
        design = SampleDesign(label_fraction=1.0, holdout_pairs_per_quadrant=0, seed=3)
    designs = dict.fromkeys(blocks, design)
    labels = run(
        LabelStage(
            LabelSample(examples, designs, teacher.needs_baseline, group_pairs=32),
            type(teacher),
            make_teacher,
            {"kind": type(teacher).__name__},
            embeddings=embeddings,
            shard_pairs=sizes.label_pairs,
        )
    )
    wanted = SelectionConfig(objective=objective, budget=budget, **selection)
    kept = None if objective == TOP_K else top_helpers
    if by_teacher:
        own = run(TeacherScoresStage(labels, examples, blocks, kept, subtask_by=subtask_by))
        run(ExportStage(run(SelectStage(own, embeddings, wanted, examples=examples)), examples))
        return outputs
    network = network or NetworkConfig(num_hidden=8, seed=1)
    networks = run(FitStage(labels, ExampleInputs(embeddings), blocks, network))
    inputs = ExampleInputs(embeddings)
    activations = run(ProjectStage(inputs, networks, blocks, shard_rows=sizes.project_rows))
    config = PairScoresConfig(
        top_k=top_helpers,
        column_tile=sizes.column_tile,
        pool=PoolConfig(shard_rows=sizes.score_rows),
        **pair_scores or {},
    )
    index = None
    if config.mode != "exact":
        index = run(IndexStage(activations, networks, list_blocks(objective, blocks), config))
    scores = run(
        ScorePairsStage(
            activations,
            networks,
            blocks,
            config,
            keeps_lists=kept is not None,
            examples=examples,
            subtask_by=subtask_by,
            index=index,
        )
    )
    judged = None if quality is None else run(GivenQuality(quality))
    ranking = run(SelectStage(scores, embeddings, wanted, examples=examples, profiles=judged))
    run(ExportStage(ranking, examples))
    return outputs
