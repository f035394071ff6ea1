"""Conversations as a model's own chat template writes them, and which of their tokens are taught.

The template writes a whole conversation, which is then tokenised, as trainers do: the tokens of an
answer are those that it has in the conversation, never those of the answer alone.
"""

from __future__ import annotations

import functools
import json
import os
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from nncift_ray.corpus.examples import ASSISTANT, SYSTEM, USER, Example, Turn
from nncift_ray.engines.base import ScoringFailure, ScoringRequest
from nncift_ray.recipe.sections import TaughtTurns, Template

#: What is too long is cut by whole steps, so that requests of one helper stay alike for queries of
#: nearly the same length, and an engine can share them.
CUT_STEP = 256
MARK = "the-message-9c41d7"  # stands for a message while a template is looked at
#: Put into what a text has of special tokens, so that they stay text; a character of no language.
SPLIT = "\ufdd0"
CACHED_TEXTS = 8192  # an example is asked about many times
TODAY = "26 Jul 2024"  # Llama 3's own: templates that write the date write this one on any day

Turns = tuple[Turn, ...]


class RefusedError(Exception):
    """A chat template cannot write a conversation; the arguments are a reason and a message."""


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A tokenised example, and what of it the loss is on."""

    input_ids: array[int]  # packed, since a subset may have millions: 4 bytes a token
    spans: tuple[tuple[int, int], ...]  # starts and stops in input_ids, ascending, none empty
    prefix_length: int = 0  # leading tokens that other examples are likely to share

    @property
    def response_start(self) -> int:
        """The first token that the loss is on."""
        return self.spans[0][0]

    @property
    def taught(self) -> list[int]:
        """Places of the tokens that the loss is on."""
        return [at for start, stop in self.spans for at in range(start, stop)]

    @property
    def num_response_tokens(self) -> int:
        """Tokens that the loss is on."""
        return sum(stop - start for start, stop in self.spans)

    def request(self) -> ScoringRequest:
        """Return what asks for the probabilities of the tokens that the loss is on."""
        first, stop = self.response_start, self.spans[-1][1]
        asked = [at - first for at in self.taught] if len(self.spans) > 1 else None
        prompt, response = tuple(self.input_ids[:first]), tuple(self.input_ids[first:stop])
        return ScoringRequest(prompt, response, self.prefix_length, asked)


class Tokens(NamedTuple):
    """The tokens of a text, and where in it each starts and stops; packed, as many are kept."""

    ids: array[int]
    starts: array[int]
    stops: array[int]


class ChatTemplate:
    """Writes examples in a model's chat template.

    Special tokens come from the template alone: those written in an example are text, so a message
    cannot end itself. A system message that the template has no place for stands before the first
    message of the user.
    """

    def __init__(self, tokenizer: Any, turns: TaughtTurns = "all") -> None:
        """Take a tokenizer of transformers with a template.

        Args:
            tokenizer: It must tell where its tokens stand in a text, as all fast ones do.
            turns: Whether all turns of the assistant are taught, or the last.
        """
        self._tokenizer, self._turns = tokenizer, turns
        special = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = _any_of(token.content for token in special)
        #: What a text may be cut before: it takes nothing of what stands on its left.
        self._firm = _any_of(token.content for token in special if not token.lstrip)
        self._tokenise = functools.lru_cache(CACHED_TEXTS)(self._tokenise_anew)
        self._head = functools.lru_cache(CACHED_TEXTS)(self._find_head)

    def fit(
        self, example: Example, max_length: int, shown: Sequence[Example] = (), *, ask: bool = False
    ) -> TrainingExample | ScoringFailure:
        """Return the tokens of an example behind others, of which only what fits is left.

        Texts of the shown examples are cut from the left, the first example's first, by whole steps
        where that leaves some text. The example itself is never cut: where it does not fit, or
        leaves no room for any other, that is a failure.

        Args:
            example: Its system message and its tools are the conversation's.
            max_length: Tokens of the whole.
            shown: Stand before it as earlier turns; their tools are left out, and a system message
                other than the example's stands before their first message.
            ask: End where the last answer is to be written; then nothing is taught.
        """
        exchanges = [_as_shown(each, example) for each in shown]
        kept, cut = exchanges, 0
        try:
            while True:
                made = self._encode(example, kept, ask=ask)
                excess = len(made.input_ids) - max_length
                if excess <= 0 and (kept or not shown):
                    return made
                if not kept:
                    break
                for more in (-(-excess // CUT_STEP) * CUT_STEP, excess):
                    kept = self._cut(exchanges, cut + more)
                    if kept:
                        break
                cut += more
        except RefusedError as error:
            return ScoringFailure(*error.args)
        if excess <= 0:
            message = f"the example leaves no room for any other in {max_length} tokens"
            return ScoringFailure("no_room_for_example", message)
        length = len(made.input_ids)
        return ScoringFailure("too_long", f"{length} tokens, the limit is {max_length}")

    def message(self, text: str, answer: str = "") -> list[int]:
        """Return the tokens of a user's message up to where it is answered, and of an answer.

        Raises:
            RefusedError: If the template does not write one message of a user once.
        """
        if self._write((Turn(USER, MARK),), "", ask=True).count(MARK) != 1:
            raise RefusedError("chat_template", "it does not write a message once")
        written = self._write((Turn(USER, text),), "", ask=True)
        return list(self._tokenise(written + self._escape(answer)).ids)

    def _encode(self, example: Example, shown: Sequence[Turns], *, ask: bool) -> TrainingExample:
        full = example.full()
        num_system = int(full.turns[0].role == SYSTEM)
        before = (*full.turns[:num_system], *(turn for turns in shown for turn in turns))
        turns = (*before, *full.turns[num_system : -1 if ask else None])
        text = self._write(turns, full.tools, ask=ask)
        head = self._head(before, full.tools)
        head = head if text.startswith(head) else ""
        left, right = self._tokenise(head), self._tokenise(text[len(head) :])
        spans: list[tuple[int, int]] = []
        for start, stop in () if ask else self._spans(turns, len(before), full.tools, text):
            # A token that holds the end of the words before an answer and its start is taught.
            low = bisect_right(right.stops, start - len(head))
            high = bisect_left(right.starts, stop - len(head))
            spans.append((len(left.ids) + low, len(left.ids) + high))
        return TrainingExample(left.ids + right.ids, tuple(spans), len(left.ids))

    def _spans(self, turns: Turns, first: int, tools: str, text: str) -> Iterator[tuple[int, int]]:
        """Yield where the taught turns, of those from ``first`` on, stand in the written text."""
        taught = [k for k in range(first, len(turns)) if turns[k].role == ASSISTANT]
        if not taught or _is_empty(turns[taught[-1]]):
            raise RefusedError("no_response", "the example has no response")
        for k in taught if self._turns == "all" else taught[-1:]:
            if _is_empty(turns[k]):
                continue
            start = self._start(turns, k, tools, text)
            stop = self._stop(turns, k, tools, text, start)
            if any(self._escape(call.name) not in text[start:stop] for call in turns[k].tool_calls):
                raise RefusedError("chat_template", "the chat template writes no tool calls")
            yield start, stop

    def _start(self, turns: Turns, k: int, tools: str, text: str) -> int:
        """Return where what is written of a turn begins, behind the words that ask for it.

        Some templates ask for more than they write of an answer, such as for a train of thought.
        Then it is the first character that depends on the turn.
        """
        asked = self._write(turns[:k], tools, ask=True)
        if text.startswith(asked):
            return len(asked)
        other = self._write((*turns[:k], Turn(ASSISTANT, MARK), *turns[k + 1 :]), tools)
        return len(os.path.commonprefix([text, other]))

    def _stop(self, turns: Turns, k: int, tools: str, text: str, start: int) -> int:
        """Return where what is written of a turn ends; some templates write the last one apart."""
        if k + 1 == len(turns):
            return len(text)
        until = self._write(turns[: k + 1], tools)
        if text.startswith(until):
            return len(until)
        at = text.find(self._ending, start) if self._ending else -1
        if at < 0:
            message = "the chat template writes no end of an earlier answer; set turns to last"
            raise RefusedError("chat_template", message)
        return at + len(self._ending)

    @functools.cached_property
    def _ending(self) -> str:
        """What is written behind an answer that others follow; "" where no special token is."""
        turns = (Turn(USER, ""), Turn(ASSISTANT, MARK))
        last = self._write(turns, "").partition(MARK)[2]
        followed = self._write((*turns, Turn(USER, MARK)), "").partition(MARK)[2]
        special = [found.span() for found in self._special.finditer(followed)]
        size = len(os.path.commonprefix([last, followed]))
        size = min([start for start, stop in special if start < size < stop], default=size)
        if special and special[0][1] > size:  # the last answer ends with a token of its own
            size = special[0][1]
        return followed[:size] if special else ""

    def _find_head(self, before: Turns, tools: str) -> str:
        """Return what is written of some turns whatever the user says next.

        It ends before a special token, where a tokenizer cuts a text anyway.
        """
        written = self._write((*before, Turn(USER, MARK)), tools).partition(MARK)[0]
        return written[: max((found.start() for found in self._firm.finditer(written)), default=0)]

    def _write(self, turns: Turns, tools: str, *, ask: bool = False) -> str:
        import jinja2  # transformers runs templates in jinja2's sandbox

        try:
            return self._tokenizer.apply_chat_template(
                [self._message(turn) for turn in turns],
                tools=json.loads(self._escape(tools)) if tools else None,
                tokenize=False,
                add_generation_prompt=ask,
                strftime_now=lambda _: TODAY,
            )
        except (jinja2.TemplateError, LookupError, TypeError, ValueError) as error:
            if len(turns) > 1 and turns[0].role == SYSTEM and turns[1].role == USER:
                return self._write(_headed(turns[1:], turns[0].text), tools, ask=ask)
            message = f"the chat template refuses the conversation: {error}"
            raise RefusedError("chat_template", message) from error

    def _message(self, turn: Turn) -> dict[str, Any]:
        """Return a turn as templates read it."""
        message: dict[str, Any] = {"role": turn.role, "content": self._escape(turn.text)}
        if turn.reasoning:  # models have different names for it
            reasoning = self._escape(turn.reasoning)
            message |= {"reasoning_content": reasoning, "thinking": reasoning}
        if turn.tool_calls:
            message["tool_calls"] = [
                {"type": "function", "function": self._function(call.name, call.arguments)}
                | ({"id": call.id} if call.id else {})
                for call in turn.tool_calls
            ]
        named = {"tool_call_id": turn.tool_call_id, "name": turn.name}
        return message | {name: value for name, value in named.items() if value}

    def _function(self, name: str, arguments: str) -> dict[str, Any]:
        escaped = self._escape(arguments)
        try:
            return {"name": self._escape(name), "arguments": json.loads(escaped)}
        except ValueError:  # not every model wrote JSON
            return {"name": self._escape(name), "arguments": escaped}

    def _escape(self, text: str) -> str:
        text = well_formed(text).replace(SPLIT, "\ufffd")
        return self._special.sub(lambda found: found[0][0] + SPLIT + found[0][1:], text)

    def _tokenise_anew(self, text: str) -> Tokens:
        """Tokenise what a template wrote; SPLIT leaves no trace but that no token is special."""
        # Cut at special tokens, as the tokenizer does itself; a text without SPLIT is left whole.
        pieces = re.split(f"({self._special.pattern})", text) if SPLIT in text else [text]
        found = Tokens(array("i"), array("i"), array("i"))
        at = 0
        for piece in pieces:
            made = self._tokenizer(
                piece.replace(SPLIT, ""),
                add_special_tokens=False,
                verbose=False,
                split_special_tokens=SPLIT in piece,
                return_offsets_mapping=True,
            )
            places: Sequence[int] = range(at, at + len(piece) + 1)
            if SPLIT in piece:
                places = [at + n for n, letter in enumerate(f"{piece} ") if letter != SPLIT]
            found.ids.extend(made["input_ids"])
            found.starts.extend(places[start] for start, _ in made["offset_mapping"])
            found.stops.extend(places[stop] for _, stop in made["offset_mapping"])
            at += len(piece)
        return found

    def _cut(self, shown: Sequence[Turns], num_tokens: int) -> list[Turns]:
        """Return what is left when the texts of some examples lose their first tokens."""
        left: list[Turns] = []
        for turns in shown:
            kept: list[Turn] = []
            for turn in turns:
                text = self._escape(turn.text)
                starts = self._tokenise(text).starts
                rest = text[starts[num_tokens] :] if num_tokens < len(starts) else ""
                num_tokens = max(0, num_tokens - len(starts))
                kept.append(replace(turn, text=rest.replace(SPLIT, "")))
            if any(turn.text for turn in kept):
                left.append(tuple(kept))
        return left


def writing_settings(template: Template, turns: TaughtTurns) -> dict[str, Any]:
    """Return what of the keys enters a cache key; of plain text nothing does."""
    return {} if template == "paper" else {"template": template, "turns": turns}


def well_formed(text: str) -> str:
    """Return the text with "?" for lone surrogates, which no tokenizer can take."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _is_empty(turn: Turn) -> bool:
    return not (turn.text.strip() or turn.reasoning or turn.tool_calls)


def _as_shown(example: Example, beside: Example) -> Turns:
    """Return the turns of an example as they stand in the conversation of another."""
    turns = example.turns
    if turns[0].role != SYSTEM:
        return turns
    if turns[0] == beside.turns[0] or len(turns) == 1 or turns[1].role != USER:
        return turns[1:]
    return _headed(turns[1:], turns[0].text)


def _headed(turns: Turns, text: str) -> Turns:
    return (replace(turns[0], text=f"{text}\n\n{turns[0].text}"), *turns[1:])


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return what finds any of some texts, the longest first."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
