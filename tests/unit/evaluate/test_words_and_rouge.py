"""Words in any script, and ROUGE by hand and by the library's own tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.evaluation.metrics import rouge, words

EXACT = 1e-12
ENGLISH = st.text(st.characters(max_codepoint=126), max_size=60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5_m, OK?", ["it", "s", "3", "5", "m", "ok"]),
        ("Привет, МИР!", ["привет", "мир"]),
        ("北京 是ABC首都。", ["北", "京", "是", "abc", "首", "都"]),
        ("हिन्दी किताब", ["हिन्दी", "किताब"]),
        ("１２ ｆｕｌｌ", ["12", "full"]),
        ("cafe\u0301 Straße", ["café", "strasse"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("... !?", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_rouge_by_hand() -> None:
    # Common words: the, cat, sat (recall 3/6, precision 3/4); longest common order: cat sat.
    expected = 2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6)
    found = rouge("cat sat the quietly", "The cat sat on the mat.")
    assert found == pytest.approx((expected, expected), abs=EXACT)
    assert rouge("sat cat", "cat sat") == (1.0, 0.5)


@pytest.mark.parametrize("text", ["北京是中国的首都", "Москва — столица России", "กรุงเทพ"])
def test_text_without_ascii_is_scored(text: str) -> None:
    assert rouge(text, text)[0] == 1.0
    assert rouge(text, "something else")[0] == 0.0


@pytest.mark.parametrize("answer", ["", "  \n", "!!!"])
def test_an_answer_without_words_scores_zero(answer: str) -> None:
    assert rouge(answer, "four") == (0.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(answer=ENGLISH, reference=ENGLISH)
def test_english_scores_are_the_library_s_own(answer: str, reference: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    expected = RougeScorer(["rouge1", "rougeL"]).score(reference, answer)
    assert rouge(answer, reference) == (expected["rouge1"].fmeasure, expected["rougeL"].fmeasure)
