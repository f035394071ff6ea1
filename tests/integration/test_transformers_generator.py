from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nncift_ray.engines.base import Engine, Generation, GenerationRequest, ScoringFailure
from nncift_ray.engines.transformers import TransformersEngine, generate_batch
from nncift_ray.errors import EngineDiedError
from nncift_ray.recipe.sections import EngineConfig
from tests.tiny_models import (
    make_tiny_adapter,
    make_tiny_llama,
    poison_weights,
    write_model,
    write_tokenizer,
)

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": 0,
    "bos_token_id": 0,
}
TEXTS = ["two?", "The capital of France is", "Query: " + "one two three " * 9, "x", "1. one 2. two"]


def _load(path: Path, **options: Any) -> TransformersEngine:
    return TransformersEngine(
        path, EngineConfig(**options), generates=True, device="cpu", num_threads=1
    )


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def generator(tiny_path: Path) -> TransformersEngine:
    return _load(tiny_path)


def _requests(generator: Engine, **settings: Any) -> list[GenerationRequest]:
    """Return prompts of many lengths with answers of many lengths."""
    made = GenerationRequest([1], 20, **settings)
    return [
        replace(
            made,
            prompt_ids=generator.encode(text + "\n"),
            max_tokens=12 + 5 * (n % 3),
            seed=n,
        )
        for n, text in enumerate(TEXTS)
    ]


def _one_by_one(
    generator: Engine, requests: Sequence[GenerationRequest]
) -> list[Generation | ScoringFailure]:
    return [generator.generate([request])[0] for request in requests]


def _written_plainly(generator: TransformersEngine, request: GenerationRequest) -> Generation:
    """Write greedily the plain way: the whole text through the model for every token."""
    ids, end = list(request.prompt_ids), generator.eos_id
    with torch.inference_mode():
        for _ in range(request.max_tokens):
            logits = generator._model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()))
            if ids[-1] == end:
                break
    written = ids[len(request.prompt_ids) :]
    ended = written[-1] == end
    text = generator._tokenizer.decode(written[:-1] if ended else written)
    reason = "stop" if ended else "length"
    return Generation(text, len(request.prompt_ids), len(written), reason)


def _other_family(folder: Path, family: str) -> Path:
    from transformers import GPT2Config, GraniteConfig, MistralConfig

    size = {**SMALL, "vocab_size": write_tokenizer(folder)}
    grouped = {**size, "intermediate_size": 64, "num_key_value_heads": 1}
    makers = {
        "learned_positions": lambda: GPT2Config(**size),
        "scaled_logits": lambda: GraniteConfig(**grouped, logits_scaling=8.0),
        "sliding_window": lambda: MistralConfig(**grouped, sliding_window=16),
    }
    return write_model(folder, makers[family]())


def test_a_batch_of_mixed_lengths_writes_what_each_alone_would(
    generator: TransformersEngine,
) -> None:
    assert isinstance(generator, Engine)
    requests = _requests(generator)
    plain = [_written_plainly(generator, request) for request in requests]
    assert len({answer.text for answer in plain}) == len(TEXTS)  # the prompt decides
    assert generator.generate(requests) == plain
    assert _one_by_one(generator, requests) == plain


@pytest.mark.parametrize("family", ["learned_positions", "scaled_logits", "sliding_window"])
def test_other_families_write_what_each_request_alone_would(tmp_path: Path, family: str) -> None:
    generator = _load(_other_family(tmp_path, family))
    requests = _requests(generator)
    plain = [_written_plainly(generator, request) for request in requests]
    assert generator.generate(requests) == plain


@pytest.mark.parametrize("batch_tokens", [32, 60, 100_000])
def test_sampling_is_repeatable_and_does_not_depend_on_the_batch(
    generator: TransformersEngine, tiny_path: Path, batch_tokens: int
) -> None:
    requests = _requests(generator, temperature=1.0, min_p=0.02)
    expected = _one_by_one(generator, requests)
    batched = _load(tiny_path, batch_tokens=batch_tokens)
    assert batched.generate(requests) == expected
    assert batched.generate(requests[::-1])[::-1] == expected
    others = [replace(request, seed=request.seed + 100) for request in requests]
    assert all(a != b for a, b in zip(batched.generate(others), expected, strict=True))


def test_greedy_and_sampled_requests_share_a_batch(generator: TransformersEngine) -> None:
    greedy, sampled = _requests(generator), _requests(generator, temperature=0.8, min_p=0.1)
    mixed = [request for pair in zip(greedy, sampled, strict=True) for request in pair]
    answers = generator.generate(mixed)
    assert answers[::2] == generator.generate(greedy)
    assert answers[1::2] == generator.generate(sampled)


def _end_after(folder: Path, base: Path, token_id: int) -> Path:
    """Copy a model whose files say that a token ends what it writes."""
    import shutil

    from transformers import GenerationConfig

    shutil.copytree(base, folder)
    GenerationConfig(eos_token_id=[0, token_id]).save_pretrained(folder)
    return folder


def test_an_end_token_of_the_models_files_ends_the_answer(
    generator: TransformersEngine, tiny_path: Path, tmp_path: Path
) -> None:
    request = GenerationRequest(generator.encode("The capital of France is\n"), 16)
    with torch.inference_mode():
        (whole,) = generate_batch(
            generator._model, [request], lambda _, ids: ids[-1] == 0, torch.device("cpu")
        )
    end = whole.token_ids[5]
    ending = _load(_end_after(tmp_path / "ending", tiny_path, end))
    cut = whole.token_ids[: whole.token_ids.index(end)]
    # A neighbour that goes on: the one that ended leaves the batch alone.
    other = GenerationRequest(generator.encode("x\n"), 12)
    answer, neighbour = ending.generate([request, other])
    text = generator._tokenizer.decode(cut)
    assert answer == Generation(text, len(request.prompt_ids), len(cut) + 1, "stop")
    assert neighbour == ending.generate([other])[0]


def test_one_bad_request_leaves_its_neighbours_alone(generator: TransformersEngine) -> None:
    good = _requests(generator)[:2]
    bad = [
        GenerationRequest([], 5),
        GenerationRequest([1] * 635, 5),
        GenerationRequest([10**6], 5),
    ]
    answers = generator.generate([good[0], *bad, good[1]])
    reasons = [answer.reason for answer in answers if isinstance(answer, ScoringFailure)]
    assert reasons == ["empty_prompt", "too_long", "bad_token"]
    assert [answers[0], answers[-1]] == generator.generate(good)
    assert generator.generate([]) == []


def test_an_answer_may_fill_all_positions(generator: TransformersEngine) -> None:
    assert generator.max_length == 639
    (answer,) = generator.generate([GenerationRequest([5] * 629, 10)])
    assert isinstance(answer, Generation)


def test_an_adapter_changes_the_answers(tiny_path: Path, tmp_path: Path) -> None:
    adapter = str(make_tiny_adapter(tiny_path, tmp_path))
    tuned = _load(tiny_path, adapter=adapter)
    plain = _load(tiny_path)
    requests = _requests(plain)
    assert tuned.generate(requests) != plain.generate(requests)
    assert tuned.name != plain.name


def test_weights_that_are_not_numbers_give_failures_not_answers(tmp_path: Path) -> None:
    generator = _load(poison_weights(make_tiny_llama(tmp_path)))
    answers = generator.generate(_requests(generator))
    assert [a.reason for a in answers if isinstance(a, ScoringFailure)] == ["not_finite"] * 5


def test_a_batch_that_does_not_fit_is_split(
    generator: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nncift_ray.engines import transformers as module

    requests = _requests(generator)
    expected = generator.generate(requests)
    write = module.generate_batch

    def write_small(model: Any, batch: list[GenerationRequest], *rest: Any) -> Any:
        if len(batch) > 1 or len(batch[0].prompt_ids) > 40:
            raise torch.OutOfMemoryError("made up\nsecond line")
        return write(model, batch, *rest)

    monkeypatch.setattr(module, "generate_batch", write_small)
    answers = generator.generate(requests)
    assert answers[2] == ScoringFailure("out_of_memory", "made up")
    assert answers[:2] + answers[3:] == expected[:2] + expected[3:]


def test_a_dead_accelerator_is_told_from_a_bad_request(
    generator: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nncift_ray.engines import transformers as module

    def die(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: made up")

    monkeypatch.setattr(module, "generate_batch", die)
    with pytest.raises(EngineDiedError, match="transformers:.* died"):
        generator.generate(_requests(generator))
