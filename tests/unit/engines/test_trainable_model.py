"""What is learnt of an example: response and end token, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.engines.lora import LoraModel
from nncift_ray.engines.tokens import TrainingExample
from nncift_ray.recipe.sections import LessConfig
from tests.tiny_models import END, make_tiny_llama

OPTIONS: dict[str, Any] = {"device": "cpu", "num_threads": 1}
LESS = LessConfig(rank=4, alpha=8.0, dropout=0.0, seed=3)
TEXTS = [
    Example("a", "What is two and two?", "It is 4."),
    Example("b", "Name the capital of France, in one word and nothing else.", "Paris"),
    Example("c", "é 中 <|end|>?", "A long answer. " * 5),
]
TOLERANCE = 1e-5
HALF_TOLERANCE = 0.05  # nats, of products in bfloat16


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(path: Path) -> LoraModel:
    model = LoraModel(path, LESS, **OPTIONS)
    with torch.no_grad():  # an adapter that does something
        for parameter in model.parameters.values():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return model


def encode(model: LoraModel) -> list[TrainingExample]:
    encoded = [model.encode(text) for text in TEXTS]
    assert all(isinstance(one, TrainingExample) for one in encoded)
    return [one for one in encoded if isinstance(one, TrainingExample)]


def test_every_token_is_where_it_belongs(model: LoraModel, path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    end = tokenizer.convert_tokens_to_ids(END)
    for text, example in zip(TEXTS, encode(model), strict=True):
        prompt, response = (
            list(example.input_ids[: example.response_start]),
            list(example.input_ids[example.response_start :]),
        )
        # <|end|> in a user's text is text: the only end token is the last one.
        assert tokenizer.decode(prompt) == text.prompt + "\n"
        assert tokenizer.decode(response[:-1]) == text.response
        assert response[-1] == end
        assert end not in example.input_ids[:-1]
        pieces = tokenizer(
            [text.prompt + "\n", text.response], add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        assert prompt == pieces[0]
        assert response == [*pieces[1], end]
        assert example.num_response_tokens == len(response)


def plain_losses(model: Any, example: TrainingExample) -> list[float]:
    """Each taught token's loss by a forward pass of one text, shifted by hand."""
    with torch.no_grad():
        logits_SV = model(torch.tensor([example.input_ids])).logits[0].double()
    losses: list[float] = []
    for t in example.taught:
        exponentials = logits_SV[t - 1].exp()  # the state before a token predicts it
        share = exponentials[example.input_ids[t]] / exponentials.sum()
        losses.append(-float(share.log()))
    return losses


def test_losses_are_those_of_a_plain_forward_pass_shifted_by_hand(model: LoraModel) -> None:
    examples = encode(model)
    length = len(examples[0].input_ids)
    examples.append(replace(examples[0], spans=((2, 4), (5, 6), (length - 1, length))))
    losses = model.losses(examples).tolist()
    for loss, example in zip(losses, examples, strict=True):
        by_hand = plain_losses(model.model, example)
        assert loss == pytest.approx(sum(by_hand) / len(by_hand), abs=TOLERANCE)


def test_losses_are_those_of_labels_that_leave_prompt_and_padding_out(model: LoraModel) -> None:
    examples = encode(model)
    width = max(len(example.input_ids) for example in examples)
    ids_BS, labels_BS = (torch.full((len(examples), width), fill) for fill in (0, -100))
    mask_BS = torch.zeros((len(examples), width), dtype=torch.long)
    for b, example in enumerate(examples):
        length, start = len(example.input_ids), example.response_start
        ids_BS[b, :length] = torch.tensor(example.input_ids)
        labels_BS[b, start:length] = ids_BS[b, start:length]
        mask_BS[b, :length] = 1
    with torch.no_grad():
        theirs = model.model(input_ids=ids_BS, attention_mask=mask_BS, labels=labels_BS).loss
    weights_B = torch.tensor([float(example.num_response_tokens) for example in examples])
    ours = (model.losses(examples).detach() * weights_B).sum() / weights_B.sum()
    assert float(ours) == pytest.approx(float(theirs), abs=TOLERANCE)


def test_a_wrong_prompt_token_is_not_learnt(model: LoraModel) -> None:
    example = encode(model)[0]
    logits_at: list[torch.Tensor] = []
    head = model.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _i, output: logits_at.append(output))
    model.losses([example])
    handle.remove()
    # The last prompt token predicts the first of the response, the end token predicts nothing.
    assert [len(logits) for logits in logits_at] == [example.num_response_tokens]


def test_an_example_without_response_or_too_long_is_refused_not_cut(path: Path) -> None:
    short = LoraModel(path, LESS.model_copy(update={"max_length": 24}), **OPTIONS)
    empty = short.encode(Example("x", "What?", ""))
    assert isinstance(empty, ScoringFailure)
    assert empty.reason == "no_response"
    long = short.encode(TEXTS[2])
    assert isinstance(long, ScoringFailure)
    assert long.reason == "too_long"
    assert "the limit is 24" in long.message
