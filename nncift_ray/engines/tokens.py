"""Texts and conversations to tokens and back, and which requests are computed together."""

from __future__ import annotations

import functools
import json
import os
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from nncift_ray.corpus.examples import ASSISTANT, SYSTEM, USER, Example, Turn
from nncift_ray.engines.base import (
    AnyScoringRequest,
    FinishReason,
    Generation,
    GenerationRequest,
    ScoringFailure,
    ScoringRequest,
    shareable_tokens,
)
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import TaughtTurns, Template

NEWLINE = "\n"
PROMPT_END = "\n"  # between a prompt and its response
TOKENS_PER_CHARACTER = 4  # at the most: a byte each
MIN_SHARED_TOKENS = 8  # a shorter prefix costs more to share than to compute again
CACHE_TOKENS_PER_BATCH_TOKEN = 16  # bound on the copies of a prefix: this times batch_tokens


class SegmentTokenizer:
    """Tokenises pieces of a text so that joining the pieces' tokens gives the text again.

    Tokenizers of the SentencePiece kind put a space before whatever they are given. In the middle
    of a text that space is not there, so such a piece is tokenised behind a newline, whose tokens
    are then taken off; the others tokenise a piece as it stands.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        template: Template = "auto",
        turns: TaughtTurns = "all",
    ) -> None:
        """Load the tokenizer of a model's folder.

        Args:
            model_path: The folder.
            template: "auto" writes examples in the model's chat template where it has one; "paper"
                never does.
            turns: Of the assistant, that are taught where examples are written in a template.

        Raises:
            ModelError: If there is none, it has no end token, or a template that cannot be used.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(model_path), trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"no tokenizer can be loaded from {model_path}: {error}") from error
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer of {model_path} names no end token, which the last response token "
                "must be; add eos_token to its tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self.eos_id = int(tokenizer.eos_token_id)
        #: The tokens that end an answer: chat models have one for a turn, too.
        self.end_ids = read_end_ids(model_path) | {self.eos_id}
        self.vocabulary_size = len(tokenizer)
        self.start_ids = self._find_start_ids()
        #: What stands before the first token of a text, where something must.
        bos = tokenizer.bos_token_id
        self.document_start = self.start_ids or [self.eos_id if bos is None else int(bos)]
        self._newline_ids = self._plain(NEWLINE)
        self._needs_newline = self._plain(NEWLINE + "x") != self._newline_ids + self._plain("x")
        if tokenizer.chat_template and not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {model_path} has a chat template and cannot tell where its "
                "tokens stand in a text; save a fast tokenizer (tokenizer.json) beside it"
            )
        self._template = ChatTemplate(tokenizer, turns) if tokenizer.chat_template else None
        #: What examples are written in; None: plain text.
        self.chat = self._template if template == "auto" else None

    def encode(self, text: str) -> list[int]:
        """Tokenise a piece of a text; no special tokens are added, none are read from the text."""
        text = well_formed(text)
        if not self._needs_newline:
            return self._plain(text)
        return self._plain(NEWLINE + text)[len(self._newline_ids) :]

    def encode_message(self, text: str) -> list[int]:
        """Tokenise a user's message as the model's chat template has it, ready to be answered.

        A model without a template gets its start tokens and the text.

        Raises:
            ModelError: If the template cannot be applied to one message of a user.
        """
        if self._template is None:
            return [*self.start_ids, *self.encode(text)]
        try:
            return self._template.message(text)
        except RefusedError as error:
            name = self._tokenizer.name_or_path
            raise ModelError(f"the chat template of {name} takes no message: {error}") from error

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self._tokenizer.save_pretrained(str(folder))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some tokens in the middle of a text; special tokens are left out."""
        if not self._needs_newline:
            return self._text(token_ids)
        behind = self._text([*self._newline_ids, *token_ids])
        return behind.removeprefix(self._text(self._newline_ids))

    def is_ended(self, request: GenerationRequest, token_ids: Sequence[int]) -> bool:
        """Return whether the last token ended the answer: an end token, or a stop text."""
        if token_ids[-1] in self.end_ids:
            return True
        if not request.stop_text:
            return False
        # The text may begin and end inside a token; before the last one it was not there.
        tail = TOKENS_PER_CHARACTER * len(request.stop_text) + 1
        return request.stop_text in self.decode(token_ids[-tail:])

    def read_answer(self, request: GenerationRequest, token_ids: Sequence[int]) -> Generation:
        """Return the answer that some generated tokens are, at least one."""
        ended = token_ids[-1] in self.end_ids
        text = self.decode(token_ids[:-1] if ended else token_ids)
        if request.stop_text and request.stop_text in text:
            ended, text = True, text.partition(request.stop_text)[0]
        reason: FinishReason = "stop" if ended else "length"
        return Generation(text, len(request.prompt_ids), len(token_ids), reason)

    def _text(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _plain(self, text: str) -> list[int]:
        # split_special_tokens: "<|im_end|>" in a user's text is text, not the end of the response.
        return list(
            self._tokenizer(
                text, add_special_tokens=False, verbose=False, split_special_tokens=True
            )["input_ids"]
        )

    def _find_start_ids(self) -> list[int]:
        bare = self._plain("x")
        dressed = list(self._tokenizer("x")["input_ids"])
        return dressed[: dressed.index(bare[0])] if bare and bare[0] in dressed else []


def read_end_ids(model_path: str | Path) -> frozenset[int]:
    """Return the tokens that a model's files say end what it generates; none if they say nothing.

    Chat models often have one for the end of a turn beside the one for the end of a text.
    """
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(str(model_path), local_files_only=True)
    except (OSError, ValueError):  # not every model has such a file
        return frozenset()
    ids: Any = config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(map(int, ids)) if isinstance(ids, list) else frozenset({int(ids)})


def encode_example(
    tokenizer: SegmentTokenizer, example: Example, max_length: int
) -> TrainingExample | ScoringFailure:
    r"""Tokenise an example in the chat template, or ``prompt + "\n"`` and ``response + end token``.

    Nothing is cut: half a response would be another example.

    Returns:
        The tokens, or a failure for the reason "no_response", "too_long" or "chat_template".
    """
    if tokenizer.chat is not None:
        return tokenizer.chat.fit(example, max_length)
    response = tokenizer.encode(example.response)
    if not response:
        return ScoringFailure("no_response", "the response has no tokens")
    prompt = (*tokenizer.start_ids, *tokenizer.encode(example.prompt + PROMPT_END))
    input_ids = (*prompt, *response, tokenizer.eos_id)
    if len(input_ids) > max_length:
        return ScoringFailure("too_long", f"{len(input_ids)} tokens, the limit is {max_length}")
    return TrainingExample(array("i", input_ids), ((len(prompt), len(input_ids)),))


# Which requests a model computes together: those of one prefix, of similar length.


@dataclass(frozen=True, slots=True)
class Job:
    """A text to run through a model, and which probabilities to read off it.

    The state at ``positions[r]`` is asked for the probability of ``targets[r]`` coming next.
    """

    token_ids: tuple[int, ...]
    prefix_length: int  # leading tokens that may be computed together with another job's
    positions: tuple[int, ...]
    targets: tuple[int, ...]


def make_job(request: AnyScoringRequest) -> Job:
    """Return what a request needs of a model."""
    prompt_ids, prefix_length = tuple(request.prompt_ids), shareable_tokens(request)
    last = len(prompt_ids) - 1
    if isinstance(request, ScoringRequest):
        response_ids = tuple(request.response_ids)
        # The token at t is predicted by the state at t - 1.
        positions = tuple(at - 1 for at in request.scored)
        targets = tuple(request.scored_ids)
        return Job((*prompt_ids, *response_ids), prefix_length, positions, targets)
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


# Conversations as a model's own chat template writes them, and which of their tokens are taught.
#
# The template writes a whole conversation, which is then tokenised, as trainers do: the tokens of
# an answer are those that it has in the conversation, never those of the answer alone.

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

    def request(
        self, example: Example, max_length: int, shown: Sequence[Example] = ()
    ) -> ScoringRequest | ScoringFailure:
        """Return what asks for the probabilities of an example that is fitted (``fit``)."""
        made = self.fit(example, max_length, shown)
        return made if isinstance(made, ScoringFailure) else made.request()

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
