"""What a worker scores pairs with: the threads or the GPU that Ray gave it."""

from __future__ import annotations

import os

from nncift_ray.core.pairs.pair_backend import ScoresRows, pair_backend
from nncift_ray.errors import StageError
from nncift_ray.stages.driving.stage import Resources


def num_threads_of(resources: Resources) -> int:
    """Return the threads of an actor: its CPUs, never more than the machine has."""
    return max(1, min(int(resources.num_cpus), os.cpu_count() or 1))


def make_backend(resources: Resources, *, half: bool) -> tuple[int, ScoresRows]:
    """Return an actor's threads, and what scores all pairs there.

    Raises:
        StageError: If Ray gave a GPU that torch cannot use, or half precision is wanted without.
    """
    num_threads = num_threads_of(resources)
    if not resources.num_gpus:
        if half:
            raise StageError(
                "pair_scores.half is for GPUs, and this actor has none: set "
                "pair_scores.pool.num_gpus to 1 on a cluster that has some, or half to false"
            )
        return num_threads, pair_backend("cpu", num_threads=num_threads)
    import torch  # a CPU worker does without

    if not torch.cuda.is_available():
        raise StageError(
            "Ray gave this actor a GPU, but torch finds none: install torch for CUDA, or set "
            "pair_scores.pool.num_gpus to 0"
        )
    return num_threads, pair_backend("cuda", half=half)
