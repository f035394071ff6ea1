"""ROUGE between an answer and its reference: how many words, and in what order, are the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nncift_ray.core.evaluation.words import words


@dataclass(frozen=True, slots=True)
class RougeScores:
    """F measures, 0 to 1."""

    rouge1: float  # words, in any order
    rouge_l: float  # longest common subsequence of words


class _Words:
    """What the library calls a tokenizer. Its own drops every letter that is not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


class Rouge:
    """ROUGE-1 and ROUGE-L by the library rouge-score, for text in any script.

    No stemming: it is for English only. An answer without words scores 0. ROUGE-L takes time and
    memory in the product of the words of both texts.

    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
    """

    def __init__(self) -> None:
        """Load the library, which takes a second or more."""
        from rouge_score.rouge_scorer import (  # pyright: ignore[reportMissingTypeStubs]
            RougeScorer,
        )

        self._scorer: Any = RougeScorer(["rouge1", "rougeL"], tokenizer=_Words())

    def score(self, answer: str, reference: str) -> RougeScores:
        """Score one answer against one reference."""
        scores = self._scorer.score(target=reference, prediction=answer)
        return RougeScores(float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure))
