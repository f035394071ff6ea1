from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringResult
from nncift_ray.engines.models import EMBEDDED, EMBEDDED_LANGUAGE_MODEL, resolve_language_model
from nncift_ray.engines.tokens import SegmentTokenizer
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import EngineConfig
from nncift_ray.teachers.base import LabelRequest, Measurement, MeasurementFailure
from nncift_ray.teachers.selectit import (
    RATING_PROMPTS,
    RATINGS,
    TAIL,
    SelectItTeacher,
    example_text,
    head_text,
    resolve_rating_tokens,
    sentence_scores,
    token_scores,
)
from tests.fake_engines import FakeEngine
from tests.tiny_models import END, TRAINING_TEXT, make_tiny_llama, write_tokenizer

SCORE_TOLERANCE = 1e-5
TINY_POSITIONS = 1024  # the tiny tokenizer makes many tokens of a rating prompt
REQUESTS = [
    LabelRequest(example)
    for example in (
        Example("a", "What is two and two?", "four"),
        Example("b", "What is the capital of France?", "The capital of France is Paris."),
        Example("c", "Name a colour.", "Blue. " * 20),
    )
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    path = make_tiny_llama(tmp_path_factory.mktemp("tiny"), max_positions=TINY_POSITIONS)
    return TransformersEngine(path, device="cpu")


def _values(answers: list[Measurement | MeasurementFailure]) -> list[float]:
    assert all(isinstance(answer, Measurement) for answer in answers), answers
    return [answer.value for answer in answers if isinstance(answer, Measurement)]


def _plain_score(engine: TransformersEngine, example: Example) -> float:
    """Score one example with a forward pass a rating prompt, over the text's own tokens."""
    log_probs_RK = []
    for prompt in RATING_PROMPTS:
        pieces = (head_text(prompt), example_text(example), TAIL)
        ids = [i for piece in pieces for i in engine.encode(piece)]
        digits = [engine.encode(rating)[0] for rating in RATINGS]
        with torch.inference_mode():
            logits = engine._model(torch.tensor([ids])).logits[0, -1].double()
        log_probs_RK.append(torch.log_softmax(logits, dim=0)[digits].numpy())
    return float(sentence_scores(token_scores(np.stack(log_probs_RK))))


def test_scores_match_plain_forward_passes(engine: TransformersEngine) -> None:
    expected = [_plain_score(engine, request.helped) for request in REQUESTS]
    values = _values(SelectItTeacher([engine]).measure(REQUESTS))
    np.testing.assert_allclose(values, expected, atol=SCORE_TOLERANCE)
    assert np.ptp(values) > 100 * SCORE_TOLERANCE


def test_a_batch_scores_as_its_examples_do_alone(engine: TransformersEngine) -> None:
    teacher = SelectItTeacher([engine])
    alone = [_values(teacher.measure([request]))[0] for request in REQUESTS]
    np.testing.assert_allclose(_values(teacher.measure(REQUESTS)), alone, atol=SCORE_TOLERANCE)


def test_rating_prompts_are_computed_once_for_all_examples(engine: TransformersEngine) -> None:
    answers = SelectItTeacher([engine]).measure(REQUESTS)
    measured = [answer for answer in answers if isinstance(answer, Measurement)]
    computed = sum(answer.num_tokens - answer.num_cached_tokens for answer in measured)
    minimal = sum(answer.num_minimal_tokens for answer in measured)
    heads = sum(len(engine.encode(head_text(prompt))) for prompt in RATING_PROMPTS)
    assert minimal == sum(answer.num_tokens for answer in measured) - 2 * heads
    assert computed == minimal


@pytest.mark.parametrize(("template", "least"), [("paper", 0.1), ("auto", 0.02)])
def test_a_rating_is_what_the_packaged_model_expects_next(template: Any, least: float) -> None:
    package = EMBEDDED[EMBEDDED_LANGUAGE_MODEL].package
    try:
        distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    path = resolve_language_model(EMBEDDED_LANGUAGE_MODEL).path
    engine = TransformersEngine(path, EngineConfig(template=template), device="cpu")
    requests = SelectItTeacher([engine])._raters[0]._prepare(REQUESTS[1].helped)
    assert isinstance(requests, list)
    results = engine.score(requests)
    masses = [np.exp(r.log_probs).sum() for r in results if isinstance(r, ScoringResult)]
    assert len(masses) == len(RATING_PROMPTS)
    assert min(masses) > least  # five tokens of 49,152 have 0.0001 by chance


class _Tokenizing(FakeEngine):
    """A fake model behind a real tokenizer."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encode = SegmentTokenizer(folder).encode


def _write(folder: Path, core: Any) -> Path:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def _write_words(folder: Path, words: list[str]) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["<unk>", END, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return _write(folder, core)


def _write_pairs(folder: Path, merges: list[tuple[str, str]]) -> Path:
    """Write a byte-level tokenizer that does not cut a text before it merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges), "<unk>", END]
    core = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _write(folder, core)


def _write_prepending(folder: Path) -> Path:
    """Write a tokenizer that puts a space before all it is given, as Llama 2 and Phi-3 do."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    alphabet = sorted({c for text in TRAINING_TEXT for c in text} | {*"\n\u2581", *RATINGS})
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["<unk>", END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(TRAINING_TEXT, trainer)
    return _write(folder, core)


@pytest.mark.parametrize("kind", ["byte_level", "prepending", "words"])
def test_ratings_of_many_tokenizers_are_found(kind: str, tmp_path: Path) -> None:
    if kind == "byte_level":
        write_tokenizer(tmp_path)
    elif kind == "prepending":
        _write_prepending(tmp_path)
    else:
        _write_words(tmp_path, ["The", "answer", "is", ":", *RATINGS])
    tokens = resolve_rating_tokens(_Tokenizing(tmp_path))
    tokenizer = SegmentTokenizer(tmp_path)._tokenizer
    assert tokenizer.convert_ids_to_tokens(list(tokens.rating_ids)) == list(RATINGS)
    assert tokens.tail_ids


def test_a_space_and_newline_that_merge_only_at_the_end_stay_apart(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    # Cut like GPT-2's: behind ": \n" alone stands one piece of white space, before a digit two.
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "\u0120\u010a", "<unk>", END]
    core = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, [("\u0120", "\u010a")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine = _Tokenizing(_write(tmp_path, core))
    apart = [names.index("\u0120"), names.index("\u010a")]
    assert engine.encode(TAIL)[-1] == names.index("\u0120\u010a")
    assert list(resolve_rating_tokens(engine).tail_ids[-2:]) == apart


def test_a_tokenizer_without_digits_is_refused(tmp_path: Path) -> None:
    folder = _write_words(tmp_path, ["The", "answer", "is", ":"])
    with pytest.raises(ModelError, match=r"no token for each of them \(1 is \[0\] alone"):
        SelectItTeacher([_Tokenizing(folder)])


def test_a_tokenizer_that_merges_newline_and_digit_is_refused(tmp_path: Path) -> None:
    folder = _write_pairs(tmp_path, [("\u010a", digit) for digit in RATINGS])
    with pytest.raises(ModelError, match="no token for each of them"):
        SelectItTeacher([_Tokenizing(folder)])
