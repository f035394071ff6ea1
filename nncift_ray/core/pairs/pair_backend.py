"""Which code scores all pairs where: the CPU kernel, or a device by Triton or torch."""

from __future__ import annotations

import functools
import importlib.util
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.pairs.pair_scores import TopK, TopKState, top_k_rows
from nncift_ray.core.pairs.pair_threads import CpuThreads
from nncift_ray.core.pairs.score_histogram import CountedRows


class ScoresRows(Protocol):
    """`pair_scores.top_k_rows`, or the same on threads or on a device."""

    def __call__(
        self,
        a_IH: NDArray[np.float32],
        b_JH: NDArray[np.float32],
        w_H: NDArray[np.float32],
        bias: float,
        k: int,
        *,
        column_offset: int = 0,
        state: TopKState | None = None,
        counted: CountedRows | None = None,
    ) -> TopK:
        """Score all pairs and keep the K best columns of every row."""
        ...


def pair_backend(device: str = "cpu", *, num_threads: int = 1, half: bool = False) -> ScoresRows:
    """Return what scores all pairs on a device.

    "cpu" is the compiled kernel on so many threads and loads no torch; "cuda" is the Triton kernel
    where Triton is installed (it comes with a GPU build of torch), else plain torch.

    Args:
        device: "cpu", or a torch device.
        num_threads: Threads of a CPU.
        half: Score in half precision, on a device only.

    Raises:
        ValueError: If half precision is wanted of the CPU kernel, which has none.
    """
    if device == "cpu":
        if half:
            msg = "the CPU kernel has no half precision"
            raise ValueError(msg)
        return top_k_rows if num_threads == 1 else CpuThreads(num_threads).top_k_rows
    from nncift_ray.core.pairs.pair_device import fold_in_torch, top_k_rows_on

    fold = fold_in_torch
    if device.startswith("cuda") and importlib.util.find_spec("triton") is not None:
        from nncift_ray.core.pairs.pair_triton import fold_in_triton

        fold = fold_in_triton
    return functools.partial(top_k_rows_on, device=device, fold=fold, half=half)
