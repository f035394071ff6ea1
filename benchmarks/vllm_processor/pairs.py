"""Made-up DELIFT requests: helpers shown to queries, and the two that cause trouble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringRequest
from nncift_ray.teachers import delift

NUM_HELPERS, NUM_QUERIES = 3, 24
NUM_PAIRS = NUM_HELPERS * NUM_QUERIES
HELPER_SENTENCES, LONG_RESPONSE_SENTENCES, TOO_LONG_SENTENCES = 14, 8, 200
NOUNS = ["harbour", "orchard", "museum", "foundry", "library", "glacier", "railway", "market"]
PLACES = ["Lisbon", "Kyoto", "Quito", "Tromso", "Accra", "Hobart", "Cork", "Pune"]
VERBS = ["opened", "sold", "repaired", "counted", "moved", "painted", "lost", "found"]
THINGS = ["lamps", "maps", "boats", "letters", "clocks", "bridges", "coins", "violins"]


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
    too_long = pair(Example("big", text(TOO_LONG_SENTENCES), text(1)), helped[0])
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
