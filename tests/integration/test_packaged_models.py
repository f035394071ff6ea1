from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest

from nncift_ray.corpus.examples import Example
from nncift_ray.embedders import SentenceTransformerEmbedder
from nncift_ray.engines.base import ScoringRequest, ScoringResult
from nncift_ray.engines.models import (
    EMBEDDED,
    EMBEDDED_EMBEDDER,
    EMBEDDED_LANGUAGE_MODEL,
    resolve_embedder,
    resolve_language_model,
)
from nncift_ray.engines.tokens import TrainingExample
from nncift_ray.engines.transformers import TransformersEngine

UNIT_TOLERANCE = 1e-5
BATCH_TOLERANCE = 1e-5
PLAIN_ENGLISH = (
    "The sun rises in the east and sets in the west. Plants use sunlight to turn water and carbon "
    "dioxide into sugar and oxygen, which animals then breathe. In winter the days are short and "
    "the nights are long, and many birds fly south to find food."
)
START_ID = 0
SANE_NATS = (2.0, 3.2)  # a token of plain English; about 7 for the same words shuffled


def _needs(name: str) -> None:
    package = EMBEDDED[name].package
    try:
        distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module")
def model_path() -> Path:
    _needs(EMBEDDED_LANGUAGE_MODEL)
    return Path(resolve_language_model(EMBEDDED_LANGUAGE_MODEL).path)


@pytest.fixture(scope="module")
def language_model(model_path: Path) -> TransformersEngine:
    return TransformersEngine(model_path, device="cpu")


@pytest.fixture(scope="module")
def embedder() -> SentenceTransformerEmbedder:
    _needs(EMBEDDED_EMBEDDER)
    return SentenceTransformerEmbedder(resolve_embedder(EMBEDDED_EMBEDDER).path, device="cpu")


def _nats_a_token(engine: TransformersEngine, text: str) -> float:
    answer = engine.score([ScoringRequest([START_ID], engine.encode(text))])[0]
    assert isinstance(answer, ScoringResult)
    return -float(answer.log_probs.mean())


def test_packaged_language_model_reads_plain_english(language_model: TransformersEngine) -> None:
    low, high = SANE_NATS
    assert low < _nats_a_token(language_model, PLAIN_ENGLISH) < high
    shuffled = " ".join(sorted(PLAIN_ENGLISH.split()))
    assert _nats_a_token(language_model, shuffled) > high + 1


def test_packaged_tokenizer_splits_digits(language_model: TransformersEngine) -> None:
    tokenizer = language_model._tokenizer
    tokens = tokenizer._tokenizer.convert_ids_to_tokens(tokenizer.encode("\n\n1. In 1984"))
    assert tokens == ["\u010a\u010a", "1", ".", "\u0120In", "\u0120", "1", "9", "8", "4"]


def test_packaged_model_ends_with_its_own_end_token(language_model: TransformersEngine) -> None:
    assert language_model.eos_id == 2
    assert language_model._tokenizer._tokenizer.bos_token_id == START_ID


def test_a_conversation_has_the_tokens_that_trainers_give_it(
    language_model: TransformersEngine,
) -> None:
    library, chat = language_model._tokenizer._tokenizer, language_model.chat
    assert chat is not None
    for prompt, response in [("What is 12 + 30?", "42"), ("\n\n1. é 中\n", " In 1984\n\n* a\n")]:
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ]
        asked = library.apply_chat_template(
            messages[:1], add_generation_prompt=True, return_dict=False
        )
        whole = library.apply_chat_template(messages, return_dict=False)
        made = chat.fit(Example("x", prompt, response), 100)
        assert isinstance(made, TrainingExample)
        assert list(made.input_ids) == whole
        assert made.spans == ((len(asked), len(whole)),)  # TRL's completion-only loss


def test_converted_model_is_reused(model_path: Path) -> None:
    stamp = (model_path / "model.safetensors").stat().st_mtime_ns
    again = resolve_language_model(EMBEDDED_LANGUAGE_MODEL)
    assert Path(again.path) == model_path
    assert (model_path / "model.safetensors").stat().st_mtime_ns == stamp
    assert not list(model_path.parent.glob(f".{model_path.name}.*"))


def test_similar_sentences_lie_closer(embedder: SentenceTransformerEmbedder) -> None:
    cat, kitten, tax = embedder.embed(
        ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Income tax is due in April."]
    )
    assert cat @ kitten > 0.5 > cat @ tax


def test_embeddings_are_unit_vectors_in_the_order_given(
    embedder: SentenceTransformerEmbedder,
) -> None:
    texts = ["long " * 50, "short", "", "of middle length, this one", "a lone \ud800 surrogate"]
    vectors = embedder.embed(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=UNIT_TOLERANCE)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(vectors, alone, atol=BATCH_TOLERANCE)


def test_tokens_are_counted_uncut(embedder: SentenceTransformerEmbedder) -> None:
    counts = embedder.count_tokens(["one", "one two", "one " * 1000, ""])
    assert counts.tolist() == [1, 2, 1000, 0]
    assert embedder.embed([]).shape == (0, embedder.dimension)
