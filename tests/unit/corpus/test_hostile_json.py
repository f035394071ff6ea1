"""JSON and JSON Lines: no good row is lost, every bad one is named, nothing crashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nncift_ray.corpus import formats
from nncift_ray.corpus.formats import EXCERPT_CHARS
from nncift_ray.errors import DataError
from tests.unit.corpus.hostile import (
    ALL_JSON,
    BAD_JSON,
    Kind,
    expected,
    good_pair,
    interleave,
    read_file,
    reasons,
)

MIN_KINDS = 30


def test_there_are_at_least_thirty_kinds_of_bad_rows() -> None:
    assert len({kind.name for kind in BAD_JSON}) == len(BAD_JSON) >= MIN_KINDS


@pytest.mark.parametrize("kind", ALL_JSON, ids=lambda kind: kind.name)
def test_one_odd_line_costs_at_most_itself(tmp_path: Path, kind: Kind) -> None:
    rows = [Kind("", good_pair(0), None), kind, Kind("", good_pair(1), None)]
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\n".join(row.text for row in rows))
    good, bad = read_file(path)
    assert ([row["line"] for row in good], reasons(bad)) == expected(rows)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\n\n", b"\r\n \t\r\n"])
def test_hostile_lines_are_told_apart_whatever_ends_them(tmp_path: Path, newline: bytes) -> None:
    rows = list(interleave(ALL_JSON))
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(newline.join(row.text for row in rows) + newline)
    step = newline.count(b"\n")
    lines, errors = expected(rows)
    good, bad = read_file(path)
    assert [row["line"] for row in good] == [(line - 1) * step + 1 for line in lines]
    assert reasons(bad) == [((line - 1) * step + 1, reason) for line, reason in errors]


#: Rows that no parser gets past, so that an array ends with them.
UNREADABLE = ["plain text", "cut object", "trailing comma", "single quotes", "bare key", "comment"]
UNREADABLE += ["two objects", "5,000 digits", "raw NUL", "raw control", "NUL outside", "deep lists"]
BROKEN = [kind for kind in BAD_JSON if kind.name in UNREADABLE]
READABLE = [kind for kind in ALL_JSON if kind.name not in UNREADABLE]


@pytest.mark.parametrize("separator", [b",", b",\n", b" ,\r\n\t"])
def test_bad_elements_of_an_array_cost_only_themselves(tmp_path: Path, separator: bytes) -> None:
    rows = list(interleave(READABLE))
    path = tmp_path / "corpus.json"
    path.write_bytes(b"[\n" + separator.join(row.text for row in rows) + b"\n]\n")
    good, bad = read_file(path)
    assert ([row["line"] for row in good], reasons(bad)) == expected(rows)


@pytest.mark.parametrize("wrapper", [b"[%s]", b'{"data": [%s]}'])
@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.name)
def test_an_element_that_is_not_json_ends_the_array(
    tmp_path: Path, kind: Kind, wrapper: bytes
) -> None:
    rows = [good_pair(0), good_pair(1), kind.text, good_pair(2)]
    path = tmp_path / "corpus.json"
    path.write_bytes(wrapper % b",".join(rows))
    good, bad = read_file(path)
    before = ["good 0", "good 1"]
    assert [row["prompt"] for row in good] == before + (["a"] if kind.name == "two objects" else [])
    ((line, reason),) = reasons(bad)
    assert line == len(good) + 1
    assert reason == kind.reason
    assert "nothing more of the file is read" in bad[0]["message"]


@pytest.mark.parametrize("chunk", [1, 2, 7, 50])
def test_an_array_is_read_the_same_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    values = [b"12", b"-1.5e+3", b"true", rb'"\u00e9\ud83d\ude00"', '{"prompt": "\u4e2d"}'.encode()]
    rows = [good_pair(0), rb'{"prompt": "\ud83d\ude00 \\ud800", "response": "r"}', *values]
    path = tmp_path / "corpus.json"
    path.write_bytes(b" [ " + b" ,".join(rows) + b" ] ")
    whole = read_file(path)
    monkeypatch.setattr(formats, "CHUNK_BYTES", chunk)
    assert read_file(path) == whole
    assert [row["line"] for row in whole[0]] == [1, 2]
    assert [row["line"] for row in whole[1]] == [3, 4, 5, 6, 7]


def test_an_endless_element_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_bytes(b"[" + good_pair(0) + b', {"prompt": "' + b"a" * 5_000_000 + b'"}]')
    good, bad = read_file(path)
    assert [row["prompt"] for row in good] == ["good 0"]
    assert reasons(bad) == [(2, "too_long")]


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_bomb_of_brackets_is_one_error(tmp_path: Path, opening: bytes) -> None:
    path = tmp_path / "corpus.json"
    path.write_bytes(b"[" + good_pair(0) + b"," + opening * 300_000)
    good, bad = read_file(path, 4 << 20, 200_000)
    assert [row["prompt"] for row in good] == ["good 0"]
    assert reasons(bad) == [(2, "too_deep")]


def test_errors_hold_file_line_sentence_and_a_short_printable_excerpt(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\n".join(row.text for row in interleave(BAD_JSON)))
    _, bad = read_file(path)
    assert len(bad) == len(BAD_JSON)
    for row in bad:
        assert row["source"] == str(path)
        assert row["message"]
        assert row["excerpt"]
        assert len(row["excerpt"]) <= EXCERPT_CHARS
        assert row["excerpt"].isprintable()


def test_records_keep_keys_values_and_order(tmp_path: Path) -> None:
    record = {"z": [1, 2.5, None], "prompt": "\u00e9\u4e2d ", "response": "b\n", "a": {"k": True}}
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    (row,), _ = read_file(path)
    assert row["record"] == json.dumps(record)  # as it is written, escapes and all
    assert (row["prompt"], row["response"]) == ("\u00e9\u4e2d ", "b\n")


def test_byte_order_marks_are_no_part_of_the_data(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(mark + good_pair(0) + b"\n" + mark + good_pair(1))
    good, bad = read_file(path)
    assert [row["prompt"] for row in good] == ["good 0", "good 1"]
    assert not bad


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.json", good_pair(0) + b"\n" + good_pair(1)),
        ("lines_with_bad_first.json", b'{"cut\n' + good_pair(0) + b"\n" + good_pair(1)),
        ("array.jsonl", b"[" + good_pair(0) + b"," + good_pair(1) + b"]"),
        ("array_of_lines.jsonl", b"[\n" + good_pair(0) + b",\n" + good_pair(1) + b"\n]\n"),
        (
            "wrapped.json",
            b'{"version": "1", "data": [' + good_pair(0) + b"," + good_pair(1) + b"]}",
        ),
        (
            "wrapped_deep.json",
            b'{"meta":\n{"data": [1, 2], "d": "data"},\n"data": [\n'
            + good_pair(0)
            + b","
            + good_pair(1)
            + b'], "end": 1}',
        ),
        ("blank_head.json", b"\n\n  [" + good_pair(0) + b"," + good_pair(1) + b"]"),
    ],
)
def test_the_content_decides_the_shape_not_the_name(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    good, _ = read_file(tmp_path / name)
    assert [row["prompt"] for row in good] == ["good 0", "good 1"]


def test_a_pretty_printed_object_is_one_record(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"prompt": "a", "response": "b", "tags": ["x"]}, indent=4))
    good, bad = read_file(path)
    assert [(row["line"], row["prompt"]) for row in good] == [(1, "a")]
    assert not bad


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.99])
def test_rows_before_the_break_of_an_array_are_kept(tmp_path: Path, cut: float) -> None:
    rows = [good_pair(number) for number in range(100)]
    text = b"[" + b",".join(rows) + b"]"
    path = tmp_path / "cut.json"
    path.write_bytes(text[: int(len(text) * cut)])
    good, bad = read_file(path)
    num_whole = path.read_bytes().count(b"},")
    assert [row["prompt"] for row in good] == [f"good {number}" for number in range(num_whole)]
    assert reasons(bad) == [(num_whole + 1, "truncated_file")]


def test_an_unclosed_quote_in_an_array_keeps_the_rows_before_it(tmp_path: Path) -> None:
    path = tmp_path / "quote.json"
    bad_row = b'{"prompt": "5" tall", "response": "b"}'
    path.write_bytes(b"[" + good_pair(0) + b"," + bad_row + b"," + good_pair(1) + b"]")
    good, bad = read_file(path)
    assert [row["prompt"] for row in good][:1] == ["good 0"]
    assert bad
    assert bad[0]["line"] == 2


def test_text_after_an_array_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "twice.json"
    path.write_bytes(b"[" + good_pair(0) + b"]\n[" + good_pair(1) + b"]")
    good, bad = read_file(path)
    assert [row["prompt"] for row in good] == ["good 0"]
    assert reasons(bad) == [(2, "not_json")]


@pytest.mark.parametrize("text", [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf", b"[]", b"[ \n ]"])
@pytest.mark.parametrize("name", ["empty.json", "empty.jsonl"])
def test_a_file_without_rows_yields_none(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    assert read_file(tmp_path / name) == ([], [])


def test_a_row_is_judged_by_the_limit_not_by_the_chunk(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    rows = [good_pair(0).replace(b"good 0", b"x" * size) for size in (599_969, 599_970, 5)]
    path.write_bytes(b"\n".join(rows))
    good, bad = read_file(path, max_record_bytes=600_000, max_chars=1_000_000)
    assert [row["line"] for row in good] == [1, 3]
    assert reasons(bad) == [(2, "too_long")]


def test_rows_that_fit_no_layout_stop_with_the_columns_found(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"title": "a", "body": "b"}\n' * 3)
    with pytest.raises(DataError, match=r"'title', 'body'.*data\.columns") as caught:
        read_file(path)
    assert str(path) in str(caught.value)
