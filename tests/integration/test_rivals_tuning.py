"""The fast fine-tuning of the study of rivals, against transformers on the whole model."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.rivals.tuning import UpperModel
from nncift_ray.corpus.examples import Example
from nncift_ray.engines.models import EMBEDDED_LANGUAGE_MODEL, find_embedded

BFLOAT16 = 0.03  # of a loss, relative
TEXTS = [("What is the capital of France?", "Paris."), ("Say hello in Spanish, please.", "Hola!")]
EXAMPLES = [Example(example_id="", prompt=asked, response=said) for asked, said in TEXTS]


def test_the_model_cut_in_two_has_the_losses_of_the_whole() -> None:
    model = UpperModel()
    rows = model.read(EXAMPLES)
    found = model.tune_and_test([], rows, seed=0)
    path, _ = find_embedded(EMBEDDED_LANGUAGE_MODEL, "language model")
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for row, nll in zip(rows, found, strict=True):
        labels = row.ids_T.clone()
        labels[: row.response_start] = -100
        with torch.no_grad():
            expected = whole(row.ids_T[None], labels=labels[None]).loss
        np.testing.assert_allclose(nll, float(expected), rtol=BFLOAT16)


def test_tuning_on_rows_lowers_their_losses_and_leaves_the_model_as_it_was() -> None:
    model = UpperModel()
    rows = model.read(EXAMPLES)
    before = model.tune_and_test([], rows, seed=0)
    after = model.tune_and_test(rows * 8, rows, seed=0)
    assert (after < before).all()
    np.testing.assert_array_equal(model.tune_and_test([], rows, seed=0), before)
