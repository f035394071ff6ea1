from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nncift_ray.engines.base import (
    AnyScoringRequest,
    Engine,
    NextTokenRequest,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
    minimal_tokens,
)
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.engines.vllm import VllmEngine, vllm_available
from nncift_ray.errors import EngineDiedError
from nncift_ray.recipe.sections import EngineConfig
from nncift_ray.teachers.base import LabelRequest, Measurement
from nncift_ray.teachers.delift import DeliftTeacher
from tests.scoring_requests import HELPED, HELPERS, delift_requests, stack_log_probs
from tests.tiny_models import make_tiny_llama

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed"),
]

NATS_TOLERANCE = 1e-3  # between the two engines
SAME_ENGINE_TOLERANCE = 1e-4  # of one engine, computed in another way
UTILITY_TOLERANCE = 1e-3
MINIMUM_RATIO = 1.1


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def oracle(tiny_path: Path) -> TransformersEngine:
    return TransformersEngine(tiny_path, device="cpu")


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(tiny_path, EngineConfig(kv_cache_memory_bytes=64 << 20))
    yield engine
    engine.close()


def _long_requests(engine: VllmEngine) -> list[ScoringRequest]:
    """Return requests that end alike, begin alike and continue one another, over many blocks."""
    prompt = engine.encode("Use the following example as a guide to answer. " * 2)
    answer = engine.encode("The capital of France is Paris. " * 12)
    requests = [ScoringRequest(prompt, answer[:n], len(prompt)) for n in (40, 90, 90, 120)]
    requests.append(ScoringRequest(prompt, answer[:110], len(prompt), [0, 3, 50, 109]))
    return [*requests, ScoringRequest(prompt[:5], [*prompt[5:], *answer[:60]])]


def _assert_agree(
    requests: list[ScoringRequest], engine: VllmEngine, oracle: TransformersEngine
) -> list[ScoringResult]:
    results: list[ScoringResult] = []
    pairs = zip(requests, engine.score(requests), oracle.score(requests), strict=True)
    for request, found, expected in pairs:
        assert isinstance(found, ScoringResult), found
        assert isinstance(expected, ScoringResult), expected
        np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=0, atol=NATS_TOLERANCE)
        # The last prompt position predicts the first response token, so it is never cached.
        assert found.num_cached_tokens <= len(request.prompt_ids) - 1
        assert found.num_tokens == expected.num_tokens
        results.append(found)
    return results


def test_both_engines_give_the_same_utilities_and_reuse_prefixes(
    engine: VllmEngine, oracle: TransformersEngine
) -> None:
    teachers = [DeliftTeacher(engine), DeliftTeacher(oracle)]
    alone = [t.measure([LabelRequest(i) for i in HELPED]) for t in teachers]
    for helper in HELPERS:
        shown = [t.measure([LabelRequest(i, helper) for i in HELPED]) for t in teachers]
        utilities = [
            [t.utility(b.value, v.value) for b, v in zip(before, after, strict=True)]  # type: ignore[union-attr]
            for t, before, after in zip(teachers, alone, shown, strict=True)
        ]
        np.testing.assert_allclose(utilities[0], utilities[1], rtol=0, atol=UTILITY_TOLERANCE)
        cached = [m.num_cached_tokens for m in shown[0] if isinstance(m, Measurement)]
        assert len(cached) == len(HELPED)
        assert sum(n > 0 for n in cached) >= len(HELPED) - 1


def test_responses_are_never_read_from_the_cache(
    engine: VllmEngine, oracle: TransformersEngine
) -> None:
    requests = _long_requests(engine)
    _assert_agree(requests, engine, oracle)
    # Twice in one call: the second half finds its whole responses in the cache.
    results = _assert_agree([*requests, *requests], engine, oracle)
    assert len(results) == 2 * len(requests)


def test_scores_do_not_depend_on_earlier_calls(engine: VllmEngine) -> None:
    teacher = DeliftTeacher(engine)
    batch = [LabelRequest(i, HELPERS[0]) for i in HELPED]
    alone = teacher.measure(batch)
    # Shares the helper's whole prefix and parts of the queries: all of it cached by now.
    teacher.measure([LabelRequest(i, HELPERS[0]) for i in reversed(HELPED[:5])])
    after = teacher.measure(batch)
    assert after == alone  # values to the last bit, and the cached tokens too
    cached = [m.num_cached_tokens for m in after if isinstance(m, Measurement)]
    assert cached[0] == 0
    assert sum(n > 0 for n in cached) >= len(HELPED) - 1


def test_one_bad_request_leaves_its_neighbours_alone(
    engine: VllmEngine, oracle: TransformersEngine
) -> None:
    good = _long_requests(engine)[:2]
    bad = [ScoringRequest([1], [10**6]), ScoringRequest([1] * 700, [1]), ScoringRequest([], [1])]
    answers = engine.score([good[0], *bad, good[1]])
    reasons = [a.reason for a in answers if isinstance(a, ScoringFailure)]
    assert reasons == ["bad_token", "too_long", "empty_prompt"]
    for answer, expected in zip((answers[0], answers[-1]), oracle.score(good), strict=True):
        assert isinstance(answer, ScoringResult)
        assert isinstance(expected, ScoringResult)
        np.testing.assert_allclose(
            answer.log_probs, expected.log_probs, rtol=0, atol=NATS_TOLERANCE
        )


def test_a_request_of_the_greatest_length_is_scored_by_both_engines(
    engine: VllmEngine, oracle: TransformersEngine
) -> None:
    assert engine.max_length == oracle.max_length
    ids = (engine.encode("The capital of France is Paris. ") * 100)[: engine.max_length]
    _assert_agree([ScoringRequest(ids[:-9], ids[-9:])], engine, oracle)


def test_the_same_pair_is_the_same_tokens_in_both_engines(
    engine: VllmEngine, oracle: TransformersEngine
) -> None:
    requests = delift_requests(engine)
    assert requests == delift_requests(oracle)
    for start in range(0, len(requests), len(HELPED)):
        group = requests[start : start + len(HELPED)]
        prefixes = {tuple(r.prompt_ids[: r.prefix_length]) for r in group}
        assert len(prefixes) == 1  # whatever the query: reuse changes no token


def test_reuse_changes_no_score(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = delift_requests(engine)
    reused = engine.score(requests)
    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: False)  # as if blocks were busy
    computed = engine.score(requests)
    assert sum(a.num_cached_tokens for a in computed if isinstance(a, ScoringResult)) == 0
    assert sum(a.num_cached_tokens for a in reused if isinstance(a, ScoringResult)) > 0
    np.testing.assert_allclose(
        stack_log_probs(reused), stack_log_probs(computed), rtol=0, atol=SAME_ENGINE_TOLERANCE
    )


def test_a_call_computes_hardly_more_than_the_minimum(engine: VllmEngine) -> None:
    requests = delift_requests(engine)
    answers = [a for a in engine.score(requests) if isinstance(a, ScoringResult)]
    computed = sum(a.num_tokens - a.num_cached_tokens for a in answers)
    minimum = sum(minimal_tokens(requests, engine.block_tokens))
    assert computed <= MINIMUM_RATIO * minimum
    assert minimum < sum(r.num_tokens for r in requests) / 2


def test_neither_order_nor_step_size_changes_a_score(engine: VllmEngine, tiny_path: Path) -> None:
    # Whole prompts of up to 639 tokens, the others in steps of 64.
    chunked = VllmEngine(tiny_path, EngineConfig(batch_tokens=64))
    requests = [*delift_requests(engine), *_long_requests(engine)]
    ids = (engine.encode("The capital of France is Paris. ") * 100)[: engine.max_length]
    requests.append(ScoringRequest(ids[:200], ids[200:]))
    usual = stack_log_probs(engine.score(requests))
    backwards = stack_log_probs(engine.score(requests[::-1])[::-1])
    pieces = stack_log_probs(chunked.score(requests))
    chunked.close()
    np.testing.assert_array_equal(stack_log_probs(engine.score(requests)), usual)  # still alive
    np.testing.assert_allclose(backwards, usual, rtol=0, atol=SAME_ENGINE_TOLERANCE)
    np.testing.assert_allclose(pieces, usual, rtol=0, atol=SAME_ENGINE_TOLERANCE)


def test_both_engines_give_the_same_next_tokens(
    engine: VllmEngine, oracle: TransformersEngine
) -> None:
    wanted = [engine.encode(digit)[0] for digit in "12345"]
    requests = [
        NextTokenRequest(r.prompt_ids, wanted[: 1 + n % 5], r.prefix_length)
        for n, r in enumerate(delift_requests(engine))
    ]
    bad = [NextTokenRequest([], [1]), NextTokenRequest([1], [10**6])]
    found = engine.score([*bad, *requests])
    assert [a.reason for a in found[:2] if isinstance(a, ScoringFailure)] == [
        "empty_prompt",
        "bad_token",
    ]
    cached = 0
    for answer, expected in zip(found[2:], oracle.score(requests), strict=True):
        assert isinstance(answer, ScoringResult), answer
        assert isinstance(expected, ScoringResult), expected
        np.testing.assert_allclose(
            answer.log_probs, expected.log_probs, rtol=0, atol=NATS_TOLERANCE
        )
        cached += answer.num_cached_tokens
    assert cached > 0


def test_engines_agree_on_size_and_keep_their_time(
    engine: VllmEngine, oracle: TransformersEngine
) -> None:
    assert isinstance(engine, Engine)
    assert engine.num_parameters == oracle.num_parameters
    assert engine._tokenizer._tokenizer.pad_token_id is None  # scores all the same
    before = engine.busy_seconds
    engine.score(delift_requests(engine))
    assert engine.busy_seconds > before


@pytest.mark.parametrize("request_", [ScoringRequest([1, 2], [3]), NextTokenRequest([1, 2], [3])])
@pytest.mark.parametrize("kind", ["process", "step"])
def test_a_dead_engine_is_told_from_a_bad_request(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, request_: AnyScoringRequest, kind: str
) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    def die() -> None:
        raise EngineDeadError if kind == "process" else RuntimeError("CUDA error: made up")

    dead = SimpleNamespace(step=die, add_request=lambda *_, **__: None)
    llm = SimpleNamespace(llm_engine=dead, reset_prefix_cache=lambda: True)
    monkeypatch.setattr(engine, "_llm", llm)
    with pytest.raises(EngineDiedError, match="vllm:.* died"):
        engine.score([request_])
