"""One pass of a causal language model over an example: losses, pooled states, a gradient sketch.

Suffix legend: B examples of a batch, S tokens (padded on the right), D hidden size, R response
tokens of a batch, V vocabulary, W width of a block, K side of the sketch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringFailure, ScoringRequest
from nncift_ray.engines.tokens import TrainingExample, cut_batches
from nncift_ray.engines.transformers import LOGIT_ROWS, TransformersEngine, run_or_split
from nncift_ray.errors import EngineDiedError
from nncift_ray.profiles.blocks import (
    FEATURE_BLOCKS,
    SCALARS,
    SEED,
    SKETCH_SIDE,
    TAIL_SHARE,
    FeatureBlock,
)
from nncift_ray.teachers.delift import delift_segments, distance

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What one pass says of an example; losses are nats a response token, its end token counted."""

    nll: float  # after the prompt
    nll_alone: float  # without the prompt
    distance: float  # DELIFT's, without an example
    num_prompt_tokens: int  # of the query, without what stands before every query
    num_response_tokens: int
    max_surprise: float  # of the most surprising response token, nats
    tail_surprise: float  # mean of the most surprising tenth of the response tokens, nats
    feature: F32  # the blocks one after the other


def profile_examples(
    engine: ProfilingEngine,
    examples: Sequence[Example],
    blocks: Sequence[FeatureBlock] = FEATURE_BLOCKS,
) -> dict[str, npt.NDArray[Any]]:
    """Return the scalars of SCALARS [N] and each block by its name [N, W], in order.

    An example that cannot be measured has NaN everywhere.
    """
    found = engine.profile([profile_request(engine, each) for each in examples], blocks)
    widths = [block.width for block in blocks]
    empty = np.full(sum(widths), np.nan, np.float32)
    good = [None if isinstance(profile, ScoringFailure) else profile for profile in found]
    result: dict[str, npt.NDArray[Any]] = {
        name: np.array([np.nan if profile is None else getattr(profile, name) for profile in good])
        for name in SCALARS
    }
    features = np.stack([empty if profile is None else profile.feature for profile in good])
    parts = np.split(features, np.cumsum(widths)[:-1], axis=1)
    return result | {block.name: part for block, part in zip(blocks, parts, strict=True)}


def profile_request(
    engine: TransformersEngine, example: Example
) -> ScoringRequest | ScoringFailure:
    """Return an example as DELIFT asks about it alone; the template's head is the prefix."""
    if engine.chat is not None:
        return engine.chat.request(example, engine.max_length)
    segments = delift_segments(example, None)
    head = [*engine.start_ids, *engine.encode(segments.instruction)]
    response = engine.encode(segments.response)
    end = [engine.eos_id] if response else []
    return ScoringRequest([*head, *engine.encode(segments.query)], [*response, *end], len(head))


def surprises(log_probs_T: F64) -> tuple[float, float]:
    """Return the largest surprise of a token and the mean of the worst tenth (at least one)."""
    worst = np.sort(-log_probs_T)[::-1][: max(1, int(TAIL_SHARE * log_probs_T.size))]
    return float(worst[0]), float(worst.mean())


class ProfilingEngine(TransformersEngine):
    """A language model that reads states beside log-probabilities, which vLLM does not return."""

    def profile(
        self,
        requests: Sequence[ScoringRequest | ScoringFailure],
        blocks: Sequence[FeatureBlock] = FEATURE_BLOCKS,
    ) -> list[Profile | ScoringFailure]:
        """Return the profile of each request, in order; ``profile_request`` makes them.

        What failed before stays a failure.

        Raises:
            EngineDiedError: If the accelerator failed; the process is of no more use.
        """
        sound = [request for request in requests if isinstance(request, ScoringRequest)]
        found = iter(self._profile_sound(sound, blocks))
        return [
            next(found) if isinstance(request, ScoringRequest) else request for request in requests
        ]

    def _profile_sound(
        self, requests: Sequence[ScoringRequest], blocks: Sequence[FeatureBlock]
    ) -> list[Profile | ScoringFailure]:
        alone = self.score(
            [ScoringRequest(self._tokenizer.document_start, r.scored_ids) for r in requests]
        )

        def run(places: list[int]) -> Iterator[tuple[int, Profile | ScoringFailure]]:
            lengths = [requests[place].num_tokens for place in places]
            for batch in cut_batches(lengths, 0, self._batch_tokens):
                asked = [places[at] for at in batch]
                found = run_or_split(
                    lambda part: self._profile_batch(part, blocks),
                    [requests[place] for place in asked],
                )
                for place, profile in zip(asked, found, strict=True):
                    yield place, self._finish(requests[place], profile, alone[place])

        with self._computing():
            return self._answer(requests, run)

    def _finish(self, request: ScoringRequest, found: Any, alone: Any) -> Profile | ScoringFailure:
        """Join both losses and the features; a number that is none makes it a failure."""
        for answer in (found, alone):
            if isinstance(answer, ScoringFailure):
                return answer
        log_probs_T, feature = found
        if not (np.isfinite(log_probs_T).all() and np.isfinite(feature).all()):
            return ScoringFailure("not_finite", "a log-probability or a state is not finite")
        log_probs_T = np.minimum(log_probs_T, 0.0)  # a sure token may round to a hair above
        worst, tail = surprises(log_probs_T)
        return Profile(
            nll=-float(log_probs_T.mean()),
            nll_alone=-float(alone.log_probs.mean()),
            distance=distance(log_probs_T),
            num_prompt_tokens=request.num_tokens - request.prefix_length - len(log_probs_T),
            num_response_tokens=len(log_probs_T),
            max_surprise=worst,
            tail_surprise=tail,
            feature=feature,
        )

    def _profile_batch(
        self, batch: list[ScoringRequest], blocks: Sequence[FeatureBlock]
    ) -> list[tuple[F64, F32]]:
        """Return the log-probabilities [T] and the joined blocks of every request."""
        texts = [[*request.prompt_ids, *request.response_ids] for request in batch]
        width = max(map(len, texts))
        ids_BS = torch.zeros((len(batch), width), dtype=torch.long)
        mask_BS = torch.zeros((len(batch), width), dtype=torch.long)
        for b, text in enumerate(texts):
            ids_BS[b, : len(text)] = torch.tensor(text)
            mask_BS[b, : len(text)] = 1
        inputs = {"input_ids": ids_BS.to(self._device), "attention_mask": mask_BS.to(self._device)}
        model = self._model.base_model if self._has_plain_head else self._model
        output = model(**inputs, use_cache=False, output_hidden_states=True)
        states = output.hidden_states
        rows = [b for b, request in enumerate(batch) for _ in request.scored]
        columns = [at - 1 for request in batch for at in request.scored]
        where_R = torch.tensor(rows), torch.tensor(columns)
        targets_R = torch.tensor([y for request in batch for y in request.scored_ids])
        logits = None if self._has_plain_head else output.logits[where_R]
        log_probs_R, errors_RK = self._read_tokens(states[-1][where_R], logits, targets_R, blocks)
        ends = np.cumsum([len(request.scored) for request in batch])[:-1].tolist()
        parts: list[Tensor] = []
        for block in blocks:
            states_BSD = states[block.layer_of(len(states) - 1)]
            if block.pooling == "sketch":
                pooled = self._sketch(states_BSD[where_R], errors_RK, rows, len(batch))
            else:
                weights_BS = torch.tensor(_pooling_weights(batch, block.pooling, width))
                pooled = torch.einsum("bs,bsd->bd", weights_BS.to(self._device), states_BSD.float())
            parts.append(_compress(pooled, block.width))
        features = torch.cat(parts, dim=1).cpu().numpy()
        split = np.split(log_probs_R.cpu().numpy().astype(np.float64), ends)
        return list(zip(split, features, strict=True))

    def _read_tokens(
        self,
        states_RD: Tensor,
        logits_RV: Tensor | None,
        targets_R: Tensor,
        blocks: Sequence[FeatureBlock],
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each token [R] and its error R1 W^T (p - y) [R, K].

        Memory: LOGIT_ROWS * V * 8 bytes with a plain output layer.
        """
        needs_errors = any(block.pooling == "sketch" for block in blocks)
        head = self._model.get_output_embeddings()
        targets_R = targets_R.to(states_RD.device)
        projection_VK = self._token_sides() if needs_errors else None
        log_probs: list[Tensor] = []
        errors: list[Tensor] = []
        for start in range(0, len(targets_R), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            logits = (head(states_RD[part]) if logits_RV is None else logits_RV[part]).float()
            all_RV = torch.log_softmax(logits, dim=1)
            log_probs.append(all_RV.gather(1, targets_R[part, None])[:, 0])
            if projection_VK is not None:
                errors.append(all_RV.exp() @ projection_VK - projection_VK[targets_R[part]])
        found = torch.cat(log_probs)
        return found, torch.cat(errors) if needs_errors else found[:, None]

    @functools.cache  # noqa: B019 - an engine lives as long as its process
    def _token_sides(self) -> Tensor:
        """Return the token embeddings at random sides [V, K]."""
        embeddings_VD = self._model.get_input_embeddings().weight.float()
        side_DK = _signs(embeddings_VD.shape[1], SKETCH_SIDE, embeddings_VD.device)
        return (embeddings_VD @ side_DK).to(self._device)

    def _sketch(
        self, states_RD: Tensor, errors_RK: Tensor, rows: list[int], num_rows: int
    ) -> Tensor:
        """Return the sketch of every example [B, K * K]."""
        side = _signs(states_RD.shape[1], SKETCH_SIDE, states_RD.device)
        outer_RKK = torch.einsum("rk,rl->rkl", errors_RK, states_RD.float() @ side)
        sums = outer_RKK.new_zeros((num_rows, *outer_RKK.shape[1:]))
        return sums.index_add_(0, torch.tensor(rows).to(sums.device), outer_RKK).flatten(1)


class StatesEmbedder(TransformersEngine):
    """A language model as an embedder of examples."""

    @property
    def dimension(self) -> int:
        """The model's hidden size D."""
        return int(self._model.get_input_embeddings().weight.shape[1])

    def embed(self, texts: Sequence[Example]) -> F32:
        """Return sum_t t h_t / sum_t t at length 1 [N, D], of the last states h of all tokens.

        The whole conversation stands in the model's chat template, as it is trained on; one that
        the template cannot write, or where there is none, as prompt and response. What exceeds the
        model's window is cut from the right. One forward pass an example.

        Source: RDS+, arXiv 2503.01807, section 3.

        Raises:
            EngineDiedError: If the accelerator failed, or its memory holds no single example.
        """
        found_ND = np.zeros((len(texts), self.dimension), np.float32)
        ids = list(map(self._tokens, texts))
        with self._computing():
            for places in cut_batches([len(each) for each in ids], 0, self._batch_tokens):
                vectors = run_or_split(self._pool, [ids[place] for place in places])
                for place, vector in zip(places, vectors, strict=True):
                    if isinstance(vector, ScoringFailure):
                        raise EngineDiedError(f"{self.name}: {vector.message}")
                    found_ND[place] = vector
        return found_ND

    def count_tokens(self, texts: Sequence[Example]) -> npt.NDArray[np.int32]:
        """Return the tokens that are read of each example [N]."""
        return np.array(list(map(len, map(self._tokens, texts))), np.int32)

    def _tokens(self, example: Example) -> list[int]:
        made = self.chat.fit(example, sys.maxsize) if self.chat else None
        if isinstance(made, TrainingExample):
            return list(made.input_ids[: self.max_length])
        asked = self.encode_message(example.prompt)
        return [*asked, *self.encode(example.response), self.eos_id][: self.max_length]

    def _pool(self, batch: list[list[int]]) -> list[F32]:
        width = max(map(len, batch))
        ids_BS = torch.zeros((len(batch), width), dtype=torch.long)
        weights_BS = torch.zeros((len(batch), width))
        for b, ids in enumerate(batch):
            ids_BS[b, : len(ids)] = torch.tensor(ids)
            weights_BS[b, : len(ids)] = torch.arange(1, len(ids) + 1)
        weights_BS = weights_BS.to(self._device)
        mask_BS = (weights_BS > 0).long()
        output = self._model.base_model(
            input_ids=ids_BS.to(self._device), attention_mask=mask_BS, use_cache=False
        )
        pooled_BD = torch.einsum("bs,bsd->bd", weights_BS, output.last_hidden_state.float())
        return [*_unit(pooled_BD).cpu().numpy()]


def _pooling_weights(batch: Sequence[ScoringRequest], pooling: str, width: int) -> F32:
    """Return the weight of every token [B, S]; those of a row sum to 1."""
    weights_BS = np.zeros((len(batch), width), np.float32)
    for b, request in enumerate(batch):
        places = request.scored if pooling == "answer" else [len(request.prompt_ids) - 1]
        weights_BS[b, list(places)] = 1 / len(places)
    return weights_BS


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-30)


def _compress(vectors: Tensor, width: int) -> Tensor:
    """Project to ``width`` dimensions at random: inner products stay close to the cosines."""
    return _unit(_unit(vectors) @ _signs(vectors.shape[1], width, vectors.device))


@functools.lru_cache(maxsize=8)
def _signs(num_rows: int, num_columns: int, device: torch.device) -> Tensor:
    """Return a matrix of random signs over sqrt(columns), the same on every machine."""
    random = np.random.Generator(np.random.PCG64(SEED))
    signs = random.integers(0, 2, (num_rows, num_columns), dtype=np.int8) * 2 - 1
    return torch.tensor(signs / num_columns**0.5, dtype=torch.float32, device=device)
