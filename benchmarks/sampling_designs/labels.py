"""Make a matrix of DELIFT labels from which every sampling design can be drawn.

    python -m benchmarks.sampling_designs.labels runs/labels          # some 40 minutes on two cores

240 helped and 100 helper examples, short rows of T0 drawn at random, are measured pair by pair with
the packaged SmolLM2-135M in float32. Helpers come in random order, each with all of the helped, and
the file is written after every helper: a partial file is a fair, smaller matrix, and the command
goes on where it stopped. ``delift_t0_partial.npz`` becomes ``delift_t0.npz`` when all are measured.
On a busy machine two commands of one thread each share the helpers (``--worker 0 2``, ``1 2``).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.teacher.texts import read_rows
from nncift_ray.corpus.examples import Example
from nncift_ray.teachers.base import LabelRequest, Measurement
from nncift_ray.teachers.delift import DeliftTeacher

COMPLETE, PARTIAL = "delift_t0.npz", "delift_t0_partial.npz"
NUM_HELPED, NUM_HELPERS = 240, 100
MAX_TOKENS = 65  # of prompt and response together
MIN_TOKENS = 10
MOSTLY = 0.9  # of the helpers: a row asked about more of them is part of the matrix
DATA = Path(__file__).parents[2].parent / "shared" / "data"


@dataclass
class LabelMatrix:
    """Examples and what the teacher measured of their pairs; NaN where it was not asked (yet).

    Attributes:
        helped: I examples.
        helpers: J examples.
        utility: d_i alone minus d_i with j in context [I, J].
        num_tokens: Tokens of each pair's request [I, J].
        num_cached: Tokens of them that were reused [I, J].
        seconds: Wall seconds of each helper's requests [J].
        baseline: d_i alone [I].
        baseline_tokens: Tokens of each baseline request [I].
    """

    helped: list[Example]
    helpers: list[Example]
    utility: np.ndarray
    num_tokens: np.ndarray
    num_cached: np.ndarray
    seconds: np.ndarray
    baseline: np.ndarray
    baseline_tokens: np.ndarray

    @classmethod
    def empty(cls, helped: list[Example], helpers: list[Example]) -> LabelMatrix:
        """Return a matrix of which nothing is measured."""
        shape = (len(helped), len(helpers))
        return cls(
            helped,
            helpers,
            np.full(shape, np.nan, np.float32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
            np.full(len(helpers), np.nan),
            np.full(len(helped), np.nan, np.float32),
            np.zeros(len(helped), np.int32),
        )

    def save(self, path: Path) -> None:
        """Write to a file that is whole at any moment."""
        beside = path.with_name(f".{os.getpid()}_{path.name}")  # other workers write too
        with beside.open("wb") as file:
            np.savez_compressed(
                file,
                helped_prompt=np.array([one.prompt for one in self.helped]),
                helped_response=np.array([one.response for one in self.helped]),
                helper_prompt=np.array([one.prompt for one in self.helpers]),
                helper_response=np.array([one.response for one in self.helpers]),
                utility=self.utility,
                num_tokens=self.num_tokens,
                num_cached_tokens=self.num_cached,
                seconds=self.seconds,
                baseline=self.baseline,
                baseline_tokens=self.baseline_tokens,
            )
        os.replace(beside, path)

    @classmethod
    def load(cls, path: Path) -> LabelMatrix:
        """Read a file."""
        with np.load(path, allow_pickle=False) as file:
            helped = _examples("helped", file["helped_prompt"], file["helped_response"])
            helpers = _examples("helper", file["helper_prompt"], file["helper_response"])
            return cls(
                helped,
                helpers,
                file["utility"],
                file["num_tokens"],
                file["num_cached_tokens"],
                file["seconds"],
                file["baseline"],
                file["baseline_tokens"],
            )

    def compact(self) -> LabelMatrix:
        """Return the helpers measured so far, with the helped that all of them were asked about."""
        helpers = self.measured()
        asked = self.num_tokens[:, helpers] > 0
        helped = np.flatnonzero(asked.mean(axis=1) > MOSTLY)
        at = np.ix_(helped, helpers)
        return LabelMatrix(
            [self.helped[i] for i in helped],
            [self.helpers[j] for j in helpers],
            self.utility[at],
            self.num_tokens[at],
            self.num_cached[at],
            self.seconds[helpers],
            self.baseline[helped],
            self.baseline_tokens[helped],
        )

    def measured(self) -> np.ndarray:
        """Return the helpers that are measured, as places."""
        return np.flatnonzero(np.isfinite(self.seconds))


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling_designs.labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where the matrix is kept")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of t0_train.jsonl.gz")
    parser.add_argument("--max-minutes", type=float, default=60.0, help="stop after so long")
    parser.add_argument("--num-helped", type=int, default=NUM_HELPED, help="the first so many")
    parser.add_argument("--worker", type=int, nargs=2, default=(0, 1), metavar=("K", "N"),
                        help="do every Nth helper from K on, beside other workers")  # fmt: skip
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    corpus = options.data / "t0_train.jsonl.gz"
    rows = read_rows(corpus)
    make_matrix(options.folder, rows, options.num_helped, options.max_minutes, options.worker)


def make_matrix(
    folder: Path,
    rows: Sequence[Example],
    num_helped: int,
    max_minutes: float,
    worker: tuple[int, int] = (0, 1),
) -> None:
    """Measure helper by helper until all are measured or the time is up."""
    # Imported here: this module is also read by those who only want a matrix that is there.
    from nncift_ray.engines.models import EMBEDDED_LANGUAGE_MODEL, resolve_language_model
    from nncift_ray.engines.vllm import VllmEngine

    started = time.perf_counter()
    engine = VllmEngine(resolve_language_model(EMBEDDED_LANGUAGE_MODEL).path)
    teacher = DeliftTeacher(engine)
    partial, own = folder / PARTIAL, folder / f"worker_{worker[0]}_of_{worker[1]}.npz"
    if partial.exists():
        matrix = LabelMatrix.load(partial)
    else:
        drawn = draw_short(rows, engine.encode, NUM_HELPED + NUM_HELPERS)
        matrix = LabelMatrix.empty(drawn[:NUM_HELPED], drawn[NUM_HELPED:])
        measure_baselines(matrix, teacher)
        matrix.save(partial)
    for helper in range(worker[0], len(matrix.helpers), worker[1]):
        num_asked = measure_helper(matrix, helper, teacher, num_helped)
        if not num_asked:
            continue
        matrix.save(own)
        whole = merge(LabelMatrix.load(path) for path in [partial, *folder.glob("worker_*.npz")])
        done = int((whole.num_tokens[:num_helped] > 0).all(axis=0).sum())
        whole.save(folder / COMPLETE if done == len(whole.helpers) else partial)
        minutes = (time.perf_counter() - started) / 60
        print(f"{done} of {len(whole.helpers)} helpers, {minutes:.1f} min", flush=True)
        if minutes > max_minutes:
            return


def merge(matrices: Iterable[LabelMatrix]) -> LabelMatrix:
    """Return one matrix with all that was measured of the same examples."""
    first, *others = matrices
    for other in others:
        new = (first.num_tokens == 0) & (other.num_tokens > 0)
        for name in ("utility", "num_tokens", "num_cached"):
            getattr(first, name)[new] = getattr(other, name)[new]
        first.seconds = np.fmax(first.seconds, other.seconds)
    return first


def draw_short(
    rows: Sequence[Example], encode: Callable[[str], list[int]], count: int
) -> list[Example]:
    """Draw short examples at random, none twice, in random order."""
    found: list[Example] = []
    seen: set[str] = set()
    for place in np.random.default_rng(0).permutation(len(rows)).tolist():
        row = rows[place]
        length = len(encode(row.prompt)) + len(encode(row.response))
        text = row.prompt.strip()
        if MIN_TOKENS <= length <= MAX_TOKENS and row.response.strip() and text not in seen:
            found.append(row)
            seen.add(text)
        if len(found) == count:
            return found
    raise SystemExit(f"only {len(found)} of {count} rows have at most {MAX_TOKENS} tokens")


def measure_baselines(matrix: LabelMatrix, teacher: DeliftTeacher) -> None:
    """Measure every helped example alone."""
    answers = teacher.measure([LabelRequest(one) for one in matrix.helped])
    for row, answer in enumerate(answers):
        if isinstance(answer, Measurement):
            matrix.baseline[row] = answer.value
            matrix.baseline_tokens[row] = answer.num_tokens


def measure_helper(
    matrix: LabelMatrix, helper: int, teacher: DeliftTeacher, num_helped: int
) -> int:
    """Measure those of the first helped examples that are not yet; return how many were asked."""
    started = time.perf_counter()
    rows = np.flatnonzero(matrix.num_tokens[:num_helped, helper] == 0).tolist()
    requests = [LabelRequest(matrix.helped[row], matrix.helpers[helper]) for row in rows]
    for row, answer in zip(rows, teacher.measure(requests) if rows else [], strict=True):
        if isinstance(answer, Measurement):
            value = teacher.utility(float(matrix.baseline[row]), answer.value)
            matrix.utility[row, helper] = value
            matrix.num_tokens[row, helper] = answer.num_tokens
            matrix.num_cached[row, helper] = answer.num_cached_tokens
    if rows:
        matrix.seconds[helper] = (
            np.nan_to_num(matrix.seconds[helper]) + time.perf_counter() - started
        )
    return len(rows)


def _examples(role: str, prompts: np.ndarray, responses: np.ndarray) -> list[Example]:
    pairs = zip(prompts.tolist(), responses.tolist(), strict=True)
    return [Example(f"{role}-{n}", prompt, response) for n, (prompt, response) in enumerate(pairs)]


if __name__ == "__main__":
    main()
