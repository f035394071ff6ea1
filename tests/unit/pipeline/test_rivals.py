"""Teachers that are not asked, as whole recipes on a tiny model, against their formulas by hand."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nncift_ray import pipeline as runner
from nncift_ray.errors import ConfigError, DataError
from nncift_ray.pipeline import RunResult
from nncift_ray.recipe.loading import make_config
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.output import column_matrix
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.scores.teacher_scores import ifd_scores, ridge_weights, unit_rows
from nncift_ray.teachers.gradients import read_checkpoint
from nncift_ray.teachers.less import less_score, pack_features, target_subspace, unpack_features
from tests.tiny_models import make_tiny_llama

NUM_CANDIDATES, NUM_TARGETS, BUDGET = 30, 4, 9
TOLERANCE = 2e-5
WORDS = "one two three four five six seven eight nine ten".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


def rows(name: str, count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(len(name))
    return [
        {
            "prompt": f"{name} {i}: say {' '.join(rng.choice(WORDS, 3))}",
            "completion": " ".join(rng.choice(WORDS, int(rng.integers(1, 9)))),
            "score": round(float(rng.random()) * 5, 3),
        }
        for i in range(count)
    ]


def run(
    folder: Path,
    model: Path,
    kind: str,
    objective: str,
    targets: int = 0,
    *,
    tree: dict[str, dict[str, Any]] | None = None,
    **selection: Any,
) -> RunResult:
    data: dict[str, Any] = {}
    for name, count in (("candidates", NUM_CANDIDATES), ("targets", targets)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(name, count)))
        data[name] = [str(path)] if count else []
    own = tree or {}
    config = make_config({
        "run_dir": str(folder / "run"),
        "data": data,
        "teacher": {"kind": kind, "model": str(model), "engine": "transformers"}
        | own.get("teacher", {}),
        "pair_scores": own.get("pair_scores", {}),
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "selection": {"objective": objective, "budget": BUDGET} | selection,
    })  # fmt: skip
    return runner.run(config, reporter=SilentReporter(), execute=execute_here, until="select")


def picks(result: RunResult) -> list[int]:
    return result.outputs["select"].read("ranking")["row_index"].to_pylist()


def best(score_N: np.ndarray) -> list[int]:
    return np.argsort(-score_N, kind="stable")[:BUDGET].tolist()


@cache
def loaded(model: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)


def nll(model: Path, prompt: str, response: str, lm: Any = None) -> float:
    """Return the loss of a response's tokens, its end token among them, behind a prompt."""
    base, tokenizer = loaded(model)
    lm = base if lm is None else lm
    head = tokenizer(prompt)["input_ids"] if prompt else [tokenizer.eos_token_id]
    ids = [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = lm(torch.tensor([[*head, *ids]])).logits[0].log_softmax(1)
    places = range(len(head) - 1, len(head) + len(ids) - 1)
    return -float(np.mean([logits[at, y] for at, y in zip(places, ids, strict=True)]))


def test_longest_takes_the_responses_of_most_tokens(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "longest", "top_k")
    tokenizer = loaded(model)[1]
    lengths = [len(tokenizer(row["completion"])["input_ids"]) for row in rows("candidates", 30)]
    found = picks(result)
    assert [lengths[at] for at in found] == sorted(lengths, reverse=True)[:BUDGET]
    assert not {"profiles", "quality", "label", "fit"} & set(result.outputs)


def test_ifd_takes_the_highest_ratio_of_losses_below_one(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "ifd", "top_k")
    template = "Instruction: Please generate a response to the following query.\n\n\nQuery: {}\n"
    ifd = np.array([
        nll(model, template.format(row["prompt"]), row["completion"])
        / nll(model, "", row["completion"])
        for row in rows("candidates", NUM_CANDIDATES)
    ])  # fmt: skip
    assert picks(result) == best(np.where(ifd < 1, ifd, 1 - ifd))
    assert (ifd >= 1).any()  # so that the bound is seen
    assert "quality" not in result.outputs


def test_ifd_puts_wrong_pairs_last_and_unknown_ones_nowhere() -> None:
    found = ifd_scores(np.array([1.0, 2.0, 3.0, np.nan, 1.0]), np.array([2.0, 2.0, 1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(found, [0.5, 0.0, -2.0, np.nan, np.nan])


def test_consistency_takes_what_near_examples_explain_best(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "consistency", "top_k")
    near = result.outputs["quality"].read("candidates")["neighbours"].to_pylist()
    texts = rows("candidates", NUM_CANDIDATES)
    ratio: list[float] = []
    for row, shown in zip(texts, near, strict=True):
        context = "".join(
            "{prompt}\n{completion}\n\n".format(**texts[at]) for at in reversed(shown)
        )
        behind = nll(model, f"<|end|>{context}{row['prompt']}\n", row["completion"])
        ratio.append(behind / nll(model, "", row["completion"]))
    assert picks(result) == best(-np.array(ratio))


def in_turn(score_IJ: np.ndarray) -> list[int]:
    found: list[int] = []
    while len(found) < BUDGET:
        for row_J in score_IJ:
            free = [j for j in np.argsort(-row_J) if j not in found]
            found += [int(free[0])] * (len(found) < BUDGET)
    return found


def test_cosine_gives_each_target_its_nearest_in_turn(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "cosine", "round_robin", NUM_TARGETS)
    target_ID, candidate_JD = (
        column_matrix(result.outputs["embed"].read(table)["embedding"])
        for table in ("targets", "candidates")
    )
    assert picks(result) == in_turn(target_ID @ candidate_JD.T)


def test_cosine_without_targets_covers_the_candidates(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "cosine", "facility_location")
    vector_JD = column_matrix(result.outputs["embed"].read("candidates")["embedding"])
    value_IJ = np.maximum(vector_JD @ vector_JD.T, 0) ** 2
    np.fill_diagonal(value_IJ, 1.0)
    value_IJ /= value_IJ.max()
    assert picks(result) == cover(value_IJ)
    assert not {"label", "teacher_scores"} & set(result.outputs)
    kept = result.outputs["score_pairs"].read("within_top_helpers").to_pylist()
    for row in kept:
        expected_J = value_IJ[row["row_index"], row["helper_index"]]
        np.testing.assert_allclose(row["influence"], expected_J, atol=2e-6)


def cover(value_IJ: np.ndarray) -> list[int]:
    found = list[int]()
    for _ in range(BUDGET):
        covered_I = value_IJ[:, found].max(axis=1, initial=0.0)
        found.append(int(np.maximum(value_IJ, covered_I[:, None]).sum(axis=0).argmax()))
    return found


def test_a_field_weighs_what_a_candidate_covers(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "cosine", "facility_location", weight_by="score")
    vector_JD = column_matrix(result.outputs["embed"].read("candidates")["embedding"])
    value_IJ = np.maximum(vector_JD @ vector_JD.T, 0) ** 2
    value_IJ = (value_IJ - value_IJ.min()) / (value_IJ.max() - value_IJ.min())
    weight_J = np.array([row["score"] for row in rows("candidates", NUM_CANDIDATES)])
    assert picks(result) == cover(value_IJ * weight_J / weight_J.max())
    with pytest.raises(DataError, match=r"weight_by: 'no' of .*candidates.jsonl:1 is None"):
        run(tmp_path, model, "cosine", "facility_location", weight_by="no")


def test_deita_takes_the_best_by_a_field_that_lie_apart(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "deita", "top_k", weight_by="score", min_distance=0.1)
    vector_JD = column_matrix(result.outputs["embed"].read("candidates")["embedding"])
    by_score = np.argsort([-row["score"] for row in rows("candidates", NUM_CANDIDATES)]).tolist()
    found = list[int]()
    for most in (0.9, 2.0):  # what was left out fills the budget
        for j in by_score:
            if j not in found and (not found or (vector_JD[found] @ vector_JD[j]).max() <= most):
                found.append(j)
    assert picks(result) == found[:BUDGET] != by_score[:BUDGET]
    assert not {"profiles", "quality", "label"} & set(result.outputs)


def test_deitas_own_score_is_difficulty_times_quality(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "deita", "top_k")
    loss, judged = (result.outputs[name].read("candidates") for name in ("profiles", "quality"))
    ifd = loss["nll"].to_numpy() / loss["nll_alone"].to_numpy()
    assert picks(result) == best(np.where(ifd < 1, ifd * judged["quality"].to_numpy(), 1 - ifd))


def test_loss_drop_in_context_is_what_targets_before_it_save(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "loss_drop_in_context", "top_k", 3)  # all three are shown
    shown = "".join("{prompt}\n{completion}\n\n".format(**row) for row in rows("targets", 3))
    drop: list[float] = []
    for row in rows("candidates", NUM_CANDIDATES):
        asked = f"{row['prompt']}\n", row["completion"]
        drop.append(nll(model, f"<|end|>{asked[0]}", asked[1])
                    - nll(model, f"<|end|>{shown}{asked[0]}", asked[1]))  # fmt: skip
    assert picks(result) == best(np.array(drop))


def test_loss_drop_is_what_training_on_the_targets_saves(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "loss_drop", "top_k", NUM_TARGETS)
    lm = copy.deepcopy(loaded(model)[0])
    adapter = read_checkpoint(3, result.outputs["warmup"].read_file).adapter
    for name, module in lm.named_modules():  # W + (alpha / rank) B A
        key = f"{name}.lora_A.weight"
        if key in adapter:
            down, up = (adapter[f"{name}.lora_{half}.weight"] for half in "AB")
            module.weight.data += torch.tensor(512 / 128 * up @ down)
    drop: list[float] = []
    for row in rows("candidates", NUM_CANDIDATES):
        asked = f"{row['prompt']}\n", row["completion"]
        before = nll(model, *asked)
        drop.append((before - nll(model, *asked, lm=lm)) / before)
    table = result.outputs["loss_drop"].read("candidates")
    before, after = (table[name].to_numpy() for name in ("nll_before", "nll_after"))
    np.testing.assert_allclose((before - after) / before, drop, atol=TOLERANCE)
    assert picks(result) == best((before.astype(np.float64) - after) / before)
    assert np.abs(drop).max() > 10 * TOLERANCE


LESS = {"rank": 4, "alpha": 8, "num_epochs": 2, "learning_rate": 1e-3, "warmup_fraction": 0.3,
        "projection_dim": 512}  # fmt: skip


def test_less_over_all_rows_is_every_cosine_of_gradients(tmp_path: Path, model: Path) -> None:
    options = {"teacher": {"less": LESS | {"storage": "float32"}}, "pair_scores": {"by": "teacher"}}
    result = run(tmp_path, model, "less", "top_k", NUM_TARGETS, tree=options)
    rate_C = result.outputs["warmup"].read("checkpoints")["mean_learning_rate"].to_numpy()
    helped_CIP, helper_CJP = (
        np.stack([
            column_matrix(result.outputs[step].read(f"checkpoint_{c}")["feature"]) for c in (0, 1)
        ])
        for step in ("target_gradients", "gradients")
    )  # fmt: skip
    truth_IJ = np.array([
        [less_score(helped_CIP[:, i], helper_CJP[:, j], rate_C / rate_C.sum())
         for j in range(NUM_CANDIDATES)]
        for i in range(NUM_TARGETS)
    ])  # fmt: skip
    assert picks(result) == best(truth_IJ.mean(axis=0))
    assert "label" not in result.outputs


@pytest.mark.parametrize(("storage", "error"), [("int8", 0.01), ("bit", 0.15)])
def test_a_small_store_of_gradients_keeps_the_cosines(storage: str, error: float) -> None:
    rng = np.random.default_rng(0)
    shared_P, rows_NP = rng.standard_normal(2048), rng.standard_normal((20, 2048))
    rows_NP = unit_rows((rows_NP + 0.7 * shared_P).astype(np.float32))
    kept_NP = unpack_features(pack_features(rows_NP, storage), 2048)
    assert (
        pack_features(rows_NP, storage).nbytes == rows_NP.nbytes / {"int8": 4, "bit": 32}[storage]
    )
    off_NN = ~np.eye(20, dtype=bool)
    difference = (kept_NP @ rows_NP.T - rows_NP @ rows_NP.T)[off_NN]
    assert np.abs(difference).max() < error
    assert abs(difference.mean()) < error / 10


def test_other_targets_take_no_gradient_of_a_candidate_again(tmp_path: Path, model: Path) -> None:
    options = {"teacher": {"less": LESS}, "pair_scores": {"by": "teacher"}}
    first = run(tmp_path, model, "less", "round_robin", NUM_TARGETS, tree=options)
    other = run(tmp_path, model, "less", "round_robin", 2, tree=options)
    for name in ("warmup", "gradients"):
        assert other.outputs[name].fingerprint == first.outputs[name].fingerprint
    assert (
        other.outputs["target_gradients"].fingerprint
        != first.outputs["target_gradients"].fingerprint
    )


def test_the_targets_directions_are_their_singular_vectors() -> None:
    row_ID = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float32)
    basis_DR = target_subspace(row_ID, 3)
    right_RD = np.linalg.svd(row_ID, full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs(right_RD @ basis_DR), np.eye(3), atol=1e-5)
    assert target_subspace(np.vstack([row_ID, row_ID]), 10).shape == (40, 5)


def test_landmarks_tell_all_scores_from_the_exact_ones_of_some(tmp_path: Path, model: Path) -> None:
    tree = {"teacher": {"less": LESS | {"num_landmarks": 12, "storage": "float32"}}}
    result = run(tmp_path, model, "landmarks", "round_robin", NUM_TARGETS, tree=tree)
    outputs = result.outputs
    rate_C = outputs["warmup"].read("checkpoints")["mean_learning_rate"].to_numpy()
    helped, helper = (
        [column_matrix(outputs[step].read(f"checkpoint_{c}")["feature"]) for c in (0, 1)]
        for step in ("target_gradients", "gradients")
    )
    exact_IL = sum(
        w * a @ b.T for w, a, b in zip(rate_C / rate_C.sum(), helped, helper, strict=True)
    )
    landmarks = outputs["gradients"].read("checkpoint_0")["row_index"].to_numpy()
    state_JD = column_matrix(outputs["states"].read("candidates")["embedding"])
    x_JD = np.c_[state_JD, np.ones(NUM_CANDIDATES)]
    assert picks(result) == in_turn(ridge_weights(x_JD[landmarks], exact_IL) @ x_JD.T)
    assert len(landmarks) == 12


def test_the_ridge_is_the_normal_equations_at_the_penalty_that_leaving_out_prefers() -> None:
    rng = np.random.default_rng(2)
    x_LD = rng.standard_normal((14, 6)).astype(np.float32)
    y_IL = (x_LD @ rng.standard_normal((6, 3))).T + rng.standard_normal((3, 14))

    def fit(rows: np.ndarray, penalty: float) -> np.ndarray:
        x = x_LD[rows].astype(np.float64)
        return np.linalg.solve(x.T @ x + penalty * np.eye(6), x.T @ y_IL[:, rows].T).T

    everything = np.arange(14)
    penalties = np.linalg.svd(x_LD)[1][0] ** 2 * np.logspace(-6, 0, 7)
    errors = [
        sum(
            ((fit(np.delete(everything, at), penalty) @ x_LD[at] - y_IL[:, at]) ** 2).sum()
            for at in everything
        )
        for penalty in penalties
    ]
    best_one = penalties[int(np.argmin(errors))]
    np.testing.assert_allclose(
        ridge_weights(x_LD, y_IL.astype(np.float32)), fit(everything, best_one), atol=1e-4
    )


def test_rds_plus_weighs_the_last_states_by_position(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, "rds_plus", "round_robin", NUM_TARGETS)
    lm, tokenizer = loaded(model)
    vectors: dict[str, np.ndarray] = {}
    for table, count in (("candidates", NUM_CANDIDATES), ("targets", NUM_TARGETS)):
        pooled: list[np.ndarray] = []
        for row in rows(table, count):
            text = [
                *tokenizer(row["prompt"])["input_ids"],
                *tokenizer(row["completion"])["input_ids"],
            ]
            ids = torch.tensor([[*text, tokenizer.eos_token_id]])
            with torch.no_grad():
                state_SD = lm(ids, output_hidden_states=True).hidden_states[-1][0].numpy()
            mean_D = np.average(state_SD, axis=0, weights=np.arange(1, len(state_SD) + 1))
            pooled.append(mean_D / np.linalg.norm(mean_D))
        vectors[table] = np.array(pooled)
        stored = column_matrix(result.outputs["states"].read(table)["embedding"])
        np.testing.assert_allclose(stored, vectors[table], atol=TOLERANCE)
    assert picks(result) == in_turn(vectors["targets"] @ vectors["candidates"].T)


def test_a_network_over_what_is_measured_is_refused(tmp_path: Path) -> None:
    tree = {
        "run_dir": str(tmp_path),
        "data": {"candidates": ["c.jsonl"]},
        "teacher": {"kind": "rds_plus"},
        "selection": {"objective": "facility_location", "budget": 5},
    }
    assert make_config(tree).pair_scores.by == "teacher"
    with pytest.raises(ConfigError, match=r"pair_scores.by.*rds_plus scores everything by itself"):
        make_config(tree | {"pair_scores": {"by": "network"}})
    with pytest.raises(ConfigError, match=r"pair_scores.by: cosine has no labels"):
        make_config(tree | {"teacher": "cosine", "pair_scores": {"by": "teacher"}})
    with pytest.raises(ConfigError, match="profiles.model: ifd is made of the profiles"):
        make_config(tree | {"teacher": {"kind": "ifd"}, "profiles": {"model": None},
                            "selection": {"objective": "top_k", "budget": 5}})  # fmt: skip
