"""Fine-tuning in seconds: LoRA on the upper layers, over hidden states that are computed once.

The lower layers are frozen and the same for every subset, so a row passes them once a pool; a
fine-tuning and its test then cost a fifth of the whole model. bfloat16 with AVX512-BF16, one
thread: small products on two threads of a busy machine wait for each other.

Suffixes: B rows of a batch, T tokens, D width, R response tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, rms_norm, silu

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.models import EMBEDDED_LANGUAGE_MODEL, find_embedded

NUM_UPPER, RANK, SCALE = 12, 16, 2.0
LEARNING_RATE, NUM_EPOCHS, BATCH_ROWS = 2e-3, 2, 8
WARMUP_SHARE, MAX_NORM = 0.1, 1.0
MAX_TOKENS = 256
READ_ROWS, TEST_TOKENS = 16, 2048


@dataclass(frozen=True)
class Row:
    """A tokenised example behind the frozen layers."""

    hidden_TD: Tensor
    ids_T: Tensor
    response_start: int


class UpperModel:
    """The packaged language model, cut in two; `tune_and_test` trains and forgets."""

    def __init__(self) -> None:
        """Load the model, and split each upper layer's weights from the rest."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path, _ = find_embedded(EMBEDDED_LANGUAGE_MODEL, "language model")
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self._lower = model.model
        config = model.config
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._eps = config.rms_norm_eps
        layers = model.model.layers
        self._upper = [_layer_weights(layer) for layer in layers[-NUM_UPPER:]]
        self._final, self._head_VD = model.model.norm.weight.data, model.lm_head.weight.data
        self._rotary = model.model.rotary_emb
        self._lower.layers = layers[:-NUM_UPPER]
        self._lower.norm = torch.nn.Identity()

    def read(self, examples: Sequence[Example]) -> list[Row]:
        """Return the rows behind the frozen layers, in order."""
        encoded = [self._encode(example) for example in examples]
        order = sorted(range(len(encoded)), key=lambda place: len(encoded[place][0]))
        rows: dict[int, Row] = {}
        for first in range(0, len(order), READ_ROWS):
            places = order[first : first + READ_ROWS]
            width = max(len(encoded[place][0]) for place in places)
            ids_BT = torch.zeros(len(places), width, dtype=torch.long)
            for b, place in enumerate(places):
                ids_BT[b, : len(encoded[place][0])] = torch.tensor(encoded[place][0])
            with torch.no_grad():
                hidden_BTD = self._lower(ids_BT, use_cache=False).last_hidden_state
            for b, place in enumerate(places):
                ids, start = encoded[place]
                hidden_TD = hidden_BTD[b, : len(ids)].clone()
                rows[place] = Row(hidden_TD, torch.tensor(ids), start)
        return [rows[place] for place in range(len(encoded))]

    def _encode(self, example: Example) -> tuple[list[int], int]:
        def ids(text: str) -> list[int]:
            return self._tokenizer(text, add_special_tokens=False)["input_ids"]

        prompt = [0, *ids(example.prompt + "\n")]
        response = [*ids(example.response), self._tokenizer.eos_token_id]
        return [*prompt, *response][:MAX_TOKENS], min(len(prompt), MAX_TOKENS - 1)

    def tune_and_test(
        self, train: Sequence[Row], test: Sequence[Row], seed: int
    ) -> np.ndarray[Any, Any]:
        """Return the NLL of each test row [N], nats a response token, after tuning on `train`.

        An empty `train` leaves the model as it is.
        """
        adapters = self._new_adapters(seed)
        if train:
            self._train(adapters, train, seed)
        nll = np.zeros(len(test))
        order = sorted(range(len(test)), key=lambda place: len(test[place].ids_T))
        start = 0
        while start < len(order):
            stop = start + 1
            while (
                stop < len(order)
                and (stop + 1 - start) * len(test[order[stop]].ids_T) <= TEST_TOKENS
            ):
                stop += 1
            places = order[start:stop]
            with torch.no_grad():
                nats, owner = self._losses(adapters, [test[place] for place in places])
            for b, place in enumerate(places):
                nll[place] = float(nats[owner == b].mean())
            start = stop
        return nll

    def _new_adapters(self, seed: int) -> list[dict[str, tuple[Tensor, Tensor]]]:
        generator = torch.Generator().manual_seed(seed)
        made: list[dict[str, tuple[Tensor, Tensor]]] = []
        for layer in self._upper:
            pairs: dict[str, tuple[Tensor, Tensor]] = {}
            for name in ("qkv", "o", "up", "down"):
                out, into = layer[name].shape
                down = torch.empty(RANK, into).uniform_(-1, 1, generator=generator)
                down /= math.sqrt(into)
                up = torch.zeros(out, RANK)
                pairs[name] = (down.requires_grad_(), up.requires_grad_())
            made.append(pairs)
        return made

    def _train(self, adapters: Any, train: Sequence[Row], seed: int) -> None:
        weights = [each for layer in adapters for pair in layer.values() for each in pair]
        optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
        rng = np.random.default_rng(seed)
        batches = [b for _ in range(NUM_EPOCHS) for b in _batches(train, rng)]
        warmup = max(1.0, WARMUP_SHARE * len(batches))
        for step, places in enumerate(batches):
            rate = min((step + 1) / warmup, (len(batches) - step) / (len(batches) - warmup + 1))
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, rate)
            nats, _ = self._losses(adapters, [train[place] for place in places])
            nats.mean().backward()
            torch.nn.utils.clip_grad_norm_(weights, MAX_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def weighted_states(self, rows: Sequence[Row]) -> np.ndarray[Any, Any]:
        """Return the mean of each row's last states, weighted by position, unit length [N, D]."""
        adapters, found = self._new_adapters(0), list[np.ndarray[Any, Any]]()
        for row in rows:
            with torch.no_grad():
                states_TD = self._states(adapters, [row])[0].float().numpy()
            pooled = np.average(states_TD, axis=0, weights=np.arange(1, len(states_TD) + 1))
            found.append(pooled / np.linalg.norm(pooled))
        return np.stack(found)

    def _losses(self, adapters: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Return the nats of all response tokens [R], and the row that each belongs to [R]."""
        states_BTD = self._states(adapters, rows)
        targets = [row.ids_T[row.response_start :] for row in rows]
        kept = [states_BTD[b, r.response_start - 1 : len(r.ids_T) - 1] for b, r in enumerate(rows)]
        logits_RV = linear(torch.cat(kept), self._head_VD).float()
        owner = torch.cat([torch.full((len(each),), b) for b, each in enumerate(targets)])
        return cross_entropy(logits_RV, torch.cat(targets), reduction="none"), owner

    def _states(self, adapters: Any, rows: Sequence[Row]) -> Tensor:
        """Return the states that the output layer reads [B, T, D], of rows padded on the right."""
        width = max(len(row.ids_T) for row in rows)
        x_BTD = torch.zeros(len(rows), width, self._final.shape[0], dtype=torch.bfloat16)
        for b, row in enumerate(rows):
            x_BTD[b, : len(row.ids_T)] = row.hidden_TD
        cos, sin = self._rotary(x_BTD, torch.arange(width)[None])
        for layer, pairs in zip(self._upper, adapters, strict=True):
            x_BTD = self._run_layer(layer, pairs, x_BTD, cos[:, None], sin[:, None])
        return rms_norm(x_BTD, (x_BTD.shape[-1],), self._final, self._eps)

    def _run_layer(self, w: Any, pairs: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def project(name: str, h: Tensor) -> Tensor:
            down, up = (each.bfloat16() for each in pairs[name])
            return linear(h, w[name]) + linear(linear(h, down), up * SCALE)

        num_rows, width, size = x.shape
        h = rms_norm(x, (size,), w["norm_in"], self._eps)
        counts = [self._heads, self._kv_heads, self._kv_heads]
        heads = project("qkv", h).view(num_rows, width, sum(counts), -1).transpose(1, 2)
        q, k, v = heads.split(counts, dim=1)
        q, k = (t * cos + _rotate(t) * sin for t in (q, k))
        groups = self._heads // self._kv_heads
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        above = torch.full((width, width), -torch.inf, dtype=x.dtype).triu(1)
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + above).softmax(dim=-1)
        attended = weights @ v
        x = x + project("o", attended.transpose(1, 2).reshape(num_rows, width, -1))
        gate, up = project("up", rms_norm(x, (size,), w["norm_out"], self._eps)).chunk(2, dim=-1)
        return x + project("down", silu(gate) * up)


def _rotate(t: Tensor) -> Tensor:
    first, second = t.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _layer_weights(layer: Any) -> dict[str, Tensor]:
    attention, mlp = layer.self_attn, layer.mlp
    names = (attention.q_proj, attention.k_proj, attention.v_proj)
    return {
        "qkv": torch.cat([each.weight.data for each in names]),
        "o": attention.o_proj.weight.data,
        "up": torch.cat([mlp.gate_proj.weight.data, mlp.up_proj.weight.data]),
        "down": mlp.down_proj.weight.data,
        "norm_in": layer.input_layernorm.weight.data,
        "norm_out": layer.post_attention_layernorm.weight.data,
    }


def _batches(rows: Sequence[Row], rng: np.random.Generator) -> list[list[int]]:
    """Return batches of rows of like length, in random order; ties and edges are random."""
    lengths = np.array([len(row.ids_T) for row in rows]) + rng.uniform(-8, 8, len(rows))
    order = np.argsort(lengths)
    cuts = np.array_split(order, math.ceil(len(rows) / BATCH_ROWS))
    return [cuts[place].tolist() for place in rng.permutation(len(cuts))]
