"""Which requests a model computes together: those of one prefix, of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nncift_ray.models.engine import AnyRequest, ScoringRequest, shareable_tokens

MIN_SHARED_TOKENS = 8  # a shorter prefix costs more to share than to compute again
CACHE_TOKENS_PER_BATCH_TOKEN = 16  # bound on the copies of a prefix: this times batch_tokens


@dataclass(frozen=True, slots=True)
class Job:
    """A text to run through a model, and which probabilities to read off it.

    The state at ``positions[r]`` is asked for the probability of ``targets[r]`` coming next.
    """

    token_ids: tuple[int, ...]
    prefix_length: int  # leading tokens that may be computed together with another job's
    positions: tuple[int, ...]
    targets: tuple[int, ...]


def make_job(request: AnyRequest) -> Job:
    """Say what a request needs of a model."""
    prompt_ids, prefix_length = tuple(request.prompt_ids), shareable_tokens(request)
    last = len(prompt_ids) - 1
    if isinstance(request, ScoringRequest):
        response_ids = tuple(request.response_ids)
        # The token at t is predicted by the state at t - 1.
        positions = tuple(range(last, last + len(response_ids)))
        return Job((*prompt_ids, *response_ids), prefix_length, positions, response_ids)
    token_ids = tuple(request.token_ids)
    return Job(prompt_ids, prefix_length, (last,) * len(token_ids), token_ids)


def group_by_prefix(jobs: Sequence[Job]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Yield shared prefixes with the places of their jobs, then all others with an empty prefix."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, job in enumerate(jobs):
        length = job.prefix_length
        prefix = job.token_ids[:length] if length >= MIN_SHARED_TOKENS else ()
        groups.setdefault(prefix, []).append(place)
    alone = groups.pop((), [])
    for prefix, members in groups.items():
        if len(members) > 1:
            yield prefix, members
        else:
            alone += members
    if alone:
        yield (), alone


def cut_batches(lengths: Sequence[int], skip: int, batch_tokens: int) -> Iterator[list[int]]:
    """Cut places into batches of similar length.

    The longest come first: the batch that needs most memory fails early if it fails at all.

    Args:
        lengths: Tokens of each place, the shared prefix included.
        skip: Tokens of the shared prefix.
        batch_tokens: Most padded tokens of a batch behind the prefix; a single place may have more.
    """
    batch: list[int] = []
    longest = 0
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = longest or lengths[place]
        rows = len(batch) + 1
        too_wide = rows * (longest - skip) > batch_tokens
        too_deep = rows * longest > batch_tokens * CACHE_TOKENS_PER_BATCH_TOKEN
        if batch and (too_wide or too_deep):
            yield batch
            batch, longest = [], lengths[place]
        batch.append(place)
    if batch:
        yield batch
