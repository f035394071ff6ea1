"""Examples in chat templates: the tokens and the masks are those that trainers compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.corpus.examples import Conversation, Example, ToolCall, Turn
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.engines.tokens import CUT_STEP, SPLIT, ChatTemplate, TrainingExample
from tests.chat_models import SPECIAL, TEMPLATES, write_chat_tokenizer

LONG = 10_000
ONE = Example("a", "What is two and two?", "four")
HELPER = Example("b", "The capital of France?", "Paris, as everybody knows.")
OTHER = Example("c", "Count to three.", "1. one 2. two 3. three")


def made(*turns: Turn, tools: str = "") -> Example:
    """Return an example of some turns; the texts do not matter where there is a conversation."""
    text = Conversation(turns, tools).to_json()
    return Example("x", turns[0].text, turns[-1].text, text)


def user(text: str) -> Turn:
    return Turn("user", text)


def says(text: str, **fields: Any) -> Turn:
    return Turn("assistant", text, **fields)


TALK = made(user("Hi there"), says("Hello"), user("What is two?"), says("1. one 2. two"))


@pytest.fixture(scope="module", params=list(TEMPLATES))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


class Tools:
    """A tokenizer of a kind: plain, and with the marks of what the assistant writes."""

    def __init__(self, folder: Path, kind: str) -> None:
        from transformers import AutoTokenizer

        for marked in (False, True):
            write_chat_tokenizer(folder / str(marked), kind, marked=marked)
        self.plain: Any = AutoTokenizer.from_pretrained(folder / "False")
        self.marked: Any = AutoTokenizer.from_pretrained(folder / "True")
        self.special = SPECIAL[kind]

    def chat(self, turns: Any = "all") -> ChatTemplate:
        return ChatTemplate(self.plain, turns)

    def mask(self, example: Example) -> tuple[list[int], list[int]]:
        """Return the tokens, and for each whether the assistant wrote it, as transformers says."""
        found = self.marked.apply_chat_template(
            messages(example), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return found["input_ids"], found["assistant_masks"]


def messages(example: Example) -> list[dict[str, Any]]:
    return [{"role": turn.role, "content": turn.text} for turn in example.turns]


@pytest.fixture(scope="module")
def tools(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return Tools(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return Tools(tmp_path_factory.mktemp("qwen"), "qwen")


def fitted(chat: ChatTemplate, example: Example, *shown: Example, room: int = LONG) -> Any:
    found = chat.fit(example, room, shown)
    assert isinstance(found, TrainingExample), found
    return found


def taught_text(tools: Tools, example: TrainingExample) -> list[str]:
    ids = list(example.input_ids)
    return [tools.plain.decode(ids[start:stop]).strip() for start, stop in example.spans]


@pytest.mark.parametrize("example", [ONE, HELPER, TALK, Example("d", " x\n", "\n y ")])
def test_tokens_and_masks_are_transformers_own(tools: Tools, example: Example) -> None:
    ids, mask = tools.mask(example)
    found = fitted(tools.chat(), example)
    assert list(found.input_ids) == ids
    assert found.taught == [at for at, wrote in enumerate(mask) if wrote]


def test_the_last_turn_is_what_follows_its_own_prompt(tools: Tools) -> None:
    asked = tools.plain.apply_chat_template(
        messages(TALK)[:-1], add_generation_prompt=True, return_dict=False
    )
    whole = tools.plain.apply_chat_template(messages(TALK), return_dict=False)
    found = fitted(tools.chat("last"), TALK)
    assert list(found.input_ids) == whole
    assert found.spans == ((len(asked), len(whole)),)
    assert list(tools.chat().fit(TALK, LONG, ask=True).input_ids) == asked


def test_a_request_asks_for_the_taught_tokens_alone(tools: Tools) -> None:
    found = fitted(tools.chat(), TALK)
    request = found.request()
    assert [*request.prompt_ids, *request.response_ids] == list(found.input_ids)
    assert list(request.scored) == found.taught
    assert list(request.scored_ids) == [found.input_ids[at] for at in found.taught]


def test_a_shown_example_is_an_earlier_exchange_of_the_conversation(tools: Tools) -> None:
    together = made(*HELPER.turns, *ONE.turns)
    ids, _ = tools.mask(together)
    found = fitted(tools.chat(), ONE, HELPER)
    assert list(found.input_ids) == ids
    assert len(found.spans) == 1
    assert list(found.input_ids[found.response_start :]) == [
        found.input_ids[at] for at in fitted(tools.chat("last"), together).taught
    ]


def test_all_queries_of_a_helper_share_its_tokens(tools: Tools) -> None:
    chat = tools.chat()
    first, second = (fitted(chat, example, HELPER) for example in (ONE, OTHER))
    assert first.prefix_length == second.prefix_length
    shared = first.input_ids[: first.prefix_length]
    assert shared == second.input_ids[: first.prefix_length]
    assert "everybody knows" in tools.plain.decode(list(shared))
    assert fitted(chat, ONE).prefix_length == fitted(chat, OTHER).prefix_length


#: All but the code point that splits special tokens: it stands for no character, and is replaced.
LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters=SPLIT)


@settings(max_examples=30, deadline=None)
@given(prompt=st.text(LETTERS, max_size=30), response=st.text(LETTERS, min_size=1, max_size=30))
def test_joined_pieces_are_the_tokens_of_the_whole(qwen: Tools, prompt: str, response: str) -> None:
    helper, example = Example("h", response, prompt), Example("x", prompt, response)
    found = qwen.chat().fit(example, LONG, [helper])
    if not response.strip():
        assert isinstance(found, ScoringFailure)
        return
    assert list(found.input_ids) == qwen.mask(made(*helper.turns, *example.turns))[0]


def test_special_tokens_in_a_text_are_text(tools: Tools) -> None:
    names = " ".join(tools.special)
    attack = Example("x", f"It is so. {names} end", f"four {names}")
    found = fitted(tools.chat(), attack)
    for name in tools.special:
        token = tools.plain.convert_tokens_to_ids(name)
        assert list(found.input_ids).count(token) == list(
            fitted(tools.chat(), ONE).input_ids
        ).count(token)
    assert names in tools.plain.decode(list(found.input_ids))
    assert f"four {names}" in taught_text(tools, found)[0]


def test_a_helper_that_is_too_long_is_cut_from_its_left(tools: Tools) -> None:
    chat = tools.chat()
    words = " ".join(f"w{n}" for n in range(600))
    whole = fitted(chat, ONE, Example("l", words, "The end of it."))
    room = len(whole.input_ids) - 10
    cut = fitted(chat, ONE, Example("l", words, "The end of it."), room=room)
    text = tools.plain.decode(list(cut.input_ids))
    assert room - 2 * CUT_STEP < len(cut.input_ids) <= room
    assert "w599" in text
    assert "w0 " not in text
    assert "The end of it." in text
    assert taught_text(tools, cut) == taught_text(tools, whole)
    bare = fitted(chat, ONE)
    assert chat.fit(ONE, len(bare.input_ids), [HELPER]).reason == "no_room_for_example"
    assert chat.fit(ONE, len(bare.input_ids) - 1, [HELPER]).reason == "too_long"
    assert chat.fit(ONE, len(bare.input_ids) - 1).reason == "too_long"


def test_an_empty_response_is_no_response(tools: Tools) -> None:
    failure = tools.chat().fit(Example("x", "Say it.", " "), LONG)
    assert isinstance(failure, ScoringFailure)
    assert failure.reason == "no_response"


SYSTEM = made(Turn("system", "Be brief."), *ONE.turns)


def test_a_system_message_stands_where_the_template_has_a_place_for_it(tools: Tools) -> None:
    text = tools.plain.decode(list(fitted(tools.chat(), SYSTEM, HELPER).input_ids))
    assert text.index("Be brief.") < text.index("The capital of France?")
    assert text.count("Be brief.") == 1


def test_a_helpers_own_system_message_stands_before_its_first_message(qwen: Tools) -> None:
    polite = made(Turn("system", "Be polite."), *HELPER.turns)
    text = qwen.plain.decode(list(fitted(qwen.chat(), SYSTEM, polite).input_ids))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nBe polite.")
    same = made(Turn("system", "Be brief."), *HELPER.turns)
    assert qwen.plain.decode(list(fitted(qwen.chat(), SYSTEM, same).input_ids)).count("Be") == 1


TOOLS = json.dumps([{"type": "function", "function": {"name": "add", "parameters": {}}}])
CALL = ToolCall("add", '{"a": 2, "b": "<|im_end|>"}', "1")
CALLING = made(
    user("What is two and two?"),
    says("", tool_calls=(CALL,)),
    Turn("tool", "4", tool_call_id="1"),
    says("four"),
    tools=TOOLS,
)


def test_tools_calls_and_results_go_through_the_template(qwen: Tools) -> None:
    found = fitted(qwen.chat(), CALLING)
    text = qwen.plain.decode(list(found.input_ids))
    assert '"name": "add", "parameters"' in text
    assert "<tool_response>\n4\n</tool_response>" in text
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": "<|im_end|>"}}\n</tool_call>'
    assert [part.removesuffix("<|im_end|>") for part in taught_text(qwen, found)] == [
        call,
        "<think>\n\n</think>\n\nfour",
    ]


def test_a_call_that_the_template_leaves_out_is_a_failure(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    llama = Tools(tmp_path_factory.mktemp("llama"), "llama")
    failure = llama.chat().fit(CALLING, LONG)
    assert isinstance(failure, ScoringFailure)
    assert failure.reason == "chat_template"
    assert "tool calls" in failure.message


def test_a_train_of_thought_is_taught_where_the_template_writes_it(qwen: Tools) -> None:
    thinking = made(
        user("Hi"), says("Hello", reasoning="greet"), user("two?"), says("2", reasoning="count")
    )
    parts = taught_text(qwen, fitted(qwen.chat(), thinking))
    assert parts == ["Hello<|im_end|>", "<think>\ncount\n</think>\n\n2<|im_end|>"]


def test_a_conversation_that_the_template_refuses_is_a_failure(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    gemma = Tools(tmp_path_factory.mktemp("gemma"), "gemma")
    failure = gemma.chat().fit(made(user("a"), user("b"), says("c")), LONG)
    assert isinstance(failure, ScoringFailure)
    assert failure.reason == "chat_template"
    assert "roles must alternate" in failure.message


def test_the_date_in_a_template_is_the_same_on_any_day(qwen: Tools) -> None:
    from copy import deepcopy

    dated = deepcopy(qwen.plain)
    dated.chat_template = "{{ strftime_now('%d %b %Y') }} " + dated.chat_template
    assert "26 Jul 2024" in dated.decode(fitted(ChatTemplate(dated), ONE).input_ids)
