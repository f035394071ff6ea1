from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nncift_ray.core.examples import Example
from nncift_ray.models.engine import ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.models.teachers import DeliftTeacher, LabelRequest, Measurement
from nncift_ray.models.transformers_engine import TransformersEngine
from nncift_ray.models.vllm_engine import VllmEngine, vllm_available
from tests.tiny_models import make_tiny_llama

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed"),
]

NATS_TOLERANCE = 2e-3
UTILITY_TOLERANCE = 1e-3
HELPERS = [
    Example(f"j{n}", f"What is {n} and {n}? Answer in one word, in the same style.", "two " * n)
    for n in range(3, 6)
]
HELPED = [Example(f"i{n}", f"Query {n}: the capital?", "Paris " * (1 + n % 4)) for n in range(8)]


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def oracle(tiny_path: Path) -> TransformersEngine:
    return TransformersEngine(tiny_path, device="cpu")


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(tiny_path, kv_cache_memory_bytes=64 << 20)
    yield engine
    engine.close()


def _long_requests(engine: VllmEngine) -> list[ScoringRequest]:
    """Return requests that end alike, begin alike and continue one another, over many blocks."""
    prompt = engine.encode("Use the following example as a guide to answer. " * 2)
    answer = engine.encode("The capital of France is Paris. " * 12)
    requests = [ScoringRequest(prompt, answer[:n], len(prompt)) for n in (40, 90, 90, 120)]
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
