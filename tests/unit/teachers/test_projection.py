from __future__ import annotations

import math

import pytest
import torch

from nncift_ray.errors import ShapeError
from nncift_ray.teachers.gradients import NUM_LANES, RademacherProjector

D, P = 3000, 512
ROUNDING = 2e-5  # of sums of D float32 numbers near 1, relative to sqrt(D) near 55
DEVIATIONS = 5  # standard deviations that a fixed seed may be off


def inputs(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, D, generator=torch.Generator().manual_seed(seed))


def signs(projector: RademacherProjector) -> torch.Tensor:
    """The matrix as the kernel shows it: each row of the identity projected."""
    return projector.project(torch.eye(projector.input_dim)) * math.sqrt(projector.output_dim)


def test_the_matrix_is_plus_and_minus_one_and_fair_in_rows_and_columns() -> None:
    matrix = signs(RademacherProjector(640, 300, seed=1))
    torch.testing.assert_close(matrix.abs(), torch.ones(640, 300))
    assert abs(float(matrix.mean())) < DEVIATIONS / math.sqrt(640 * 300)
    assert float(matrix.mean(0).abs().max()) < DEVIATIONS / math.sqrt(640)
    assert float(matrix.mean(1).abs().max()) < DEVIATIONS / math.sqrt(300)


def test_rows_and_columns_of_the_matrix_do_not_resemble_each_other() -> None:
    matrix = signs(RademacherProjector(640, 640, seed=1))
    for gram in (matrix @ matrix.T / 640, matrix.T @ matrix / 640):
        off_diagonal = gram - torch.eye(640)
        assert float(off_diagonal.abs().max()) < (DEVIATIONS + 1) / math.sqrt(640)


def test_torch_integers_make_the_same_signs_as_the_compiled_kernel() -> None:
    projector = RademacherProjector(200, 77, seed=5)
    written = torch.cat(
        [projector._signs(low, high, torch.device("cpu")) for low, high in ((0, 90), (90, 200))],
        dim=1,
    )
    torch.testing.assert_close(signs(projector), written.T)


def test_tables_equal_a_product_with_the_written_matrix() -> None:
    projector = RademacherProjector(D, P, seed=2)
    x = inputs(5)
    torch.testing.assert_close(
        projector.project(x), projector._project_with_blocks(x), rtol=ROUNDING, atol=ROUNDING
    )


def test_inner_products_keep_their_value_within_the_theoretical_bound() -> None:
    x = torch.nn.functional.normalize(inputs(40), dim=1)
    x[1] = 0.6 * x[0] + 0.8 * x[1]  # one pair that is far from orthogonal
    projected = RademacherProjector(D, P, seed=0).project(x)
    error = projected @ projected.T - x @ x.T
    bound = math.sqrt(2 / P)  # the standard deviation for unit vectors is at most this
    assert float(error.abs().max()) < DEVIATIONS * bound
    assert 0.3 * bound < float(error.std()) < bound  # not silently zero, nor copied


def test_a_row_has_the_same_bits_whatever_stands_beside_it_and_on_any_threads() -> None:
    projector, x = RademacherProjector(D, P, seed=3), inputs(NUM_LANES + 3)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    together = projector.project(x)
    torch.set_num_threads(1)
    alone = projector.project(x[-1:])
    torch.set_num_threads(before)
    assert torch.equal(together[-1:], alone)


def test_another_seed_is_another_matrix() -> None:
    first, second = (signs(RademacherProjector(64, 64, seed)) for seed in (0, 1))
    assert 0.4 < float((first == second).float().mean()) < 0.6


def test_inputs_of_another_length_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[B, 3001\]"):
        RademacherProjector(D + 1, P, seed=0).project(inputs(1))


def test_a_projector_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        RademacherProjector(D, 0, seed=0)
