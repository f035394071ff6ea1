"""Teachers and profiles in a chat template: the numbers are those of one plain forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nncift_ray.corpus.examples import Conversation, Example, Turn
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.engines.lora import LoraModel
from nncift_ray.engines.tokens import SegmentTokenizer, TrainingExample, encode_example
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.profiles.quality_step import Ask, context_requests
from nncift_ray.profiles.reader import ProfilingEngine, StatesEmbedder, profile_examples
from nncift_ray.recipe.sections import EngineConfig, LessConfig
from nncift_ray.teachers.base import LabelRequest, Measurement
from nncift_ray.teachers.delift import DeliftTeacher
from nncift_ray.teachers.selectit import RATING_PROMPTS, SelectItTeacher, resolve_rating_tokens
from tests.chat_models import make_chat_llama

TOLERANCE = 2e-5
HELPERS = [Example("h", "What is one and one?", "two"), Example("i", "Paris?", "The capital.")]
TALK = (
    Turn("system", "Be brief."),
    Turn("user", "Count."),
    Turn("assistant", "1. one"),
    Turn("user", "Go on."),
    Turn("assistant", "2. two 3. three"),
)
HELPED = [
    Example("a", "What is two and two?", "four"),
    Example("b", "Capital of France?", "The capital of France is Paris."),
    Example("t", "Go on.", "2. two 3. three", Conversation(TALK).to_json()),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_llama(tmp_path_factory.mktemp("chat"), "llama")


@pytest.fixture(scope="module")
def engine(path: Path) -> ProfilingEngine:
    return ProfilingEngine(path, device="cpu", num_threads=1)


def talk(helped: Example, helper: Example | None) -> list[dict[str, str]]:
    """Return the conversation that is scored, as the messages of transformers."""
    turns = list(helped.turns)
    num_system = int(turns[0].role == "system")
    turns[num_system:num_system] = helper.turns if helper else ()
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def by_hand(engine: ProfilingEngine, helped: Example, helper: Example | None) -> np.ndarray:
    """Return the log-probabilities of the helped example's own answers, token by token."""
    library: Any = engine._tokenizer._tokenizer
    messages = talk(helped, helper)
    ids = library.apply_chat_template(messages, return_dict=False)
    with torch.no_grad():
        log_probs = engine._model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    own: list[int] = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant" and place >= (3 if helper else 0):
            before, through = (
                len(library.apply_chat_template(messages[:stop], return_dict=False, **ask))
                for stop, ask in ((place, {"add_generation_prompt": True}), (place + 1, {}))
            )
            own += range(before, through)
    return np.array([log_probs[at - 1, ids[at]] for at in own])


def test_delift_measures_the_answers_behind_the_helper(engine: ProfilingEngine) -> None:
    pairs = [(helped, helper) for helper in (None, *HELPERS) for helped in HELPED]
    found = DeliftTeacher(engine).measure([LabelRequest(*pair) for pair in pairs])
    for (helped, helper), measured in zip(pairs, found, strict=True):
        log_probs = by_hand(engine, helped, helper)
        expected = np.sqrt(np.mean((1 - np.exp(log_probs)) ** 2))
        assert isinstance(measured, Measurement), measured
        assert measured.value == pytest.approx(expected, abs=TOLERANCE)
    # Each helper's exchange was computed for the first of the two queries without a system message.
    assert found[4].num_cached_tokens > 20
    assert found[7].num_cached_tokens > 20


def test_the_last_turn_alone_is_measured_where_the_recipe_says_so(path: Path) -> None:
    last = TransformersEngine(path, EngineConfig(turns="last"), device="cpu", num_threads=1)
    (measured,) = DeliftTeacher(last).measure([LabelRequest(HELPED[2])])
    log_probs = by_hand(last, HELPED[2], None)  # type: ignore[arg-type]
    turn = last._tokenizer._tokenizer("2. two 3. three<|eot_id|>")["input_ids"]
    expected = np.sqrt(np.mean((1 - np.exp(log_probs[-len(turn) :])) ** 2))
    assert isinstance(measured, Measurement)
    assert measured.value == pytest.approx(expected, abs=TOLERANCE)


def test_the_papers_prompt_is_kept_where_the_recipe_says_so(path: Path) -> None:
    plain = TransformersEngine(path, EngineConfig(template="paper"), device="cpu", num_threads=1)
    request = DeliftTeacher(plain)._prepare(LabelRequest(HELPED[0], HELPERS[0]))
    assert not isinstance(request, ScoringFailure)
    text = plain._tokenizer._tokenizer.decode(request.prompt_ids)
    assert text.startswith("Instruction:\nUse the following example")
    assert "<|start_header_id|>" not in text


def test_profiles_are_of_all_taught_turns(engine: ProfilingEngine) -> None:
    found = profile_examples(engine, HELPED)
    for at, example in enumerate(HELPED):
        log_probs = by_hand(engine, example, None)
        assert found["nll"][at] == pytest.approx(-log_probs.mean(), abs=TOLERANCE)
        assert found["num_response_tokens"][at] == len(log_probs)


def test_rds_plus_reads_the_whole_conversation_as_it_is_trained_on(path: Path) -> None:
    embedder = StatesEmbedder(path, device="cpu", num_threads=1)
    library: Any = embedder._tokenizer._tokenizer
    found = embedder.embed(HELPED)
    for place, example in enumerate(HELPED):
        ids = library.apply_chat_template(talk(example, None), return_dict=False)
        with torch.no_grad():
            states = embedder._model.base_model(torch.tensor([ids])).last_hidden_state[0].numpy()
        mean = np.average(states, axis=0, weights=np.arange(1, len(ids) + 1))
        np.testing.assert_allclose(found[place], mean / np.linalg.norm(mean), atol=TOLERANCE)
        assert embedder.count_tokens([example]) == [len(ids)]


def test_near_examples_are_earlier_turns_of_a_candidates_conversation(
    engine: ProfilingEngine,
) -> None:
    texts = dict(enumerate([*HELPED[:2], *HELPERS]))
    run = [(0, Ask(0, (2, 3))), (1, Ask(1, (2, 3)))]
    requests = [request for _, request in context_requests(engine, run, texts)]
    shared = {tuple(request.prompt_ids[: request.prefix_length]) for request in requests}
    assert len(shared) == 1
    decode = engine._tokenizer._tokenizer.decode
    text = decode(list(shared.pop()))
    assert text.index("Paris?") < text.index("one and one?")  # the nearest stands last
    assert "two and two" not in text


def test_a_rating_begins_the_answer_to_a_message(engine: ProfilingEngine) -> None:
    tokens = resolve_rating_tokens(engine)
    decode = engine._tokenizer._tokenizer.decode
    assert [decode([token]) for token in tokens.rating_ids] == list("12345")
    teacher = SelectItTeacher([engine])
    requests = teacher._raters[0]._prepare(HELPED[0])
    assert isinstance(requests, list)
    text = decode(list(requests[0].prompt_ids))
    assert text.startswith(
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{RATING_PROMPTS[0]}"
    )
    assert text.endswith(
        "The answer is:<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert requests[0].prefix_length > 20
    assert isinstance(teacher.measure([LabelRequest(HELPED[0])])[0], Measurement)


def test_training_takes_the_tokens_that_teachers_measure(path: Path) -> None:
    less = LessConfig(rank=2, alpha=4.0, dropout=0.0, target_modules=("q_proj",))
    model = LoraModel(path, less, device="cpu", num_threads=1)
    encoded = [model.encode(example) for example in HELPED]
    assert all(isinstance(one, TrainingExample) for one in encoded)
    engine = ProfilingEngine(path, device="cpu", num_threads=1)
    losses = model.losses(encoded).tolist()  # type: ignore[arg-type]
    for loss, example in zip(losses, HELPED, strict=True):
        assert loss == pytest.approx(-by_hand(engine, example, None).mean(), abs=TOLERANCE)
    plain = encode_example(SegmentTokenizer(path, template="paper"), HELPED[0], 100)
    assert isinstance(plain, TrainingExample)
    assert model.tokenizer._tokenizer.decode(list(plain.input_ids)).endswith("\nfour<|eot_id|>")
