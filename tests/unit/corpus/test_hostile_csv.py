"""CSV and TSV: broken rows cost themselves, quoted newlines and odd dialects cost nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.corpus.hostile import SMALL_RECORD, Kind, expected, interleave, read_file, reasons

HEADER = b"id,prompt,response"

KINDS = [
    Kind("too few values", b"1,a", "bad_csv_row"),
    Kind("too many values", b"1,a,b,c", "bad_csv_row"),
    Kind("text after a quote", b'1,"a" b,r', "bad_csv_row"),
    Kind("unclosed quote", b'1,"a,r', "bad_csv_row"),
    Kind("backslash quotes", b'1,"say \\"hi\\"",r', "bad_csv_row"),
    Kind("NUL", b"1,a\0,r", "bad_csv_row"),
    Kind("Latin-1", b"1,caf\xe9,r", "invalid_utf8"),
    Kind("overlong line", b"1," + b"a" * 30_000 + b",r", "too_long"),
    Kind("overlong prompt", b"1," + b"a" * 2_500 + b",r", "too_long"),
    Kind("no prompt", b"1,,r", "no_prompt"),
    Kind("no response", b"1,a,", "no_response"),
    Kind("blank response", b'1,a," "', "no_response"),
    Kind("commas in quotes", b'1,"a, b, c",r', None),
    Kind("doubled quotes", b'1,"say ""hi""",r', None),
    Kind("empty further values", b"1,a,r,,", None),
    Kind("quote inside a value", b'1,5" tall,r', None),
]


def _rows(kinds: list[Kind]) -> list[Kind]:
    return [
        Kind(kind.name, b"0,%s,r" % kind.name.encode(), None) if "good" in kind.name else kind
        for kind in interleave(kinds)
    ]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_one_odd_row_costs_at_most_itself(tmp_path: Path, kind: Kind, newline: bytes) -> None:
    rows = _rows([kind])
    path = tmp_path / "corpus.csv"
    path.write_bytes(newline.join([HEADER, *(row.text for row in rows)]) + newline)
    good, bad = read_file(path)
    assert ([row["line"] for row in good], reasons(bad)) == expected(rows, first=2)


def test_all_kinds_together_are_told_apart(tmp_path: Path) -> None:
    rows = _rows(KINDS)
    path = tmp_path / "corpus.csv"
    path.write_bytes(b"\n".join([HEADER, *(row.text for row in rows)]))
    good, bad = read_file(path)
    assert ([row["line"] for row in good], reasons(bad)) == expected(rows, first=2)


def test_quoted_newlines_belong_to_the_value_and_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    path.write_bytes(HEADER + b'\n1,"two\nlines","x\r\n\r\ny"\n2,next,r\n')
    good, bad = read_file(path)
    assert [(row["line"], row["prompt"], row["response"]) for row in good] == [
        (2, "two\nlines", "x\r\n\r\ny"),
        (6, "next", "r"),
    ]
    assert not bad


def test_an_unclosed_quote_does_not_swallow_the_rest(tmp_path: Path) -> None:
    rows = b"".join(b"%d,good %d,r\n" % (number, number) for number in range(5_000))
    path = tmp_path / "corpus.csv"
    path.write_bytes(HEADER + b'\n1,"never closed,r\n' + rows)
    good, bad = read_file(path)
    assert [row["prompt"] for row in good] == [f"good {number}" for number in range(5_000)]
    assert reasons(bad) == [(2, "bad_csv_row")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tabs.tsv", b"prompt\tresponse\na, b\tr\n"),
        ("tabs.csv", b"prompt\tresponse\na, b\tr\n"),
        ("semicolons.csv", b"prompt;response\na, b;r\n"),
        ("quoted.csv", b'"prompt","response"\r\n"a, b","r"\r\n'),
        ("mark.csv", b'\xef\xbb\xbfprompt,response\n"a, b",r\n'),
        ("spaces.csv", b'\n prompt , response \n"a, b",r'),
    ],
)
def test_common_dialects_are_read(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    good, bad = read_file(tmp_path / name)
    assert [(row["prompt"], row["response"]) for row in good] == [("a, b", "r")]
    assert not bad


@pytest.mark.parametrize("text", [b"", b"\n\n", HEADER, HEADER + b"\n\n"])
def test_a_table_without_rows_yields_none(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "empty.csv"
    path.write_bytes(text)
    assert read_file(path) == ([], [])


@pytest.mark.parametrize("text", [b'"prompt,response\na,b\n', b"a" * (SMALL_RECORD + 1)])
def test_an_unreadable_header_is_one_error(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "header.csv"
    path.write_bytes(text)
    good, bad = read_file(path)
    assert (good, reasons(bad)) == ([], [(1, "unreadable_file")])


def test_columns_of_the_same_name_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_bytes(b"prompt,response,note,note,\na,b,c,d,e\n")
    (row,), _ = read_file(path)
    assert row["record"] == (
        '{"prompt": "a", "response": "b", "note": "c", "note_4": "d", "column_5": "e"}'
    )
