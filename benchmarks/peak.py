"""The most (max, fma) steps a second that this core can do: a loop that never leaves registers.

Several shapes are tried, because which one fills the units of a processor depends on how many
registers and how much latency it has; the fastest counts as the peak.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from nncift_ray import jit as code
from nncift_ray.jit import compiled

SHAPES = (
    (2, 4),
    (1, 8),
    (4, 4),
    (4, 5),
)  # vectors loaded a step x vectors kept; their product is summed
VECTOR_STEPS = 400_000_000  # some 50 ms: as long as a processor's moods, like the kernel's calls
DATA_FLOATS = 4096  # 16 KB, in the first-level cache
STEPS_BEFORE_REPEAT = 16


def peak_loops() -> list[Callable[[], None]]:
    """Return loops to time, each of VECTOR_STEPS steps of a vector."""
    data = np.random.default_rng(0).standard_normal(DATA_FLOATS).astype(np.float32)
    return [_bind(_loop(*shape), data, VECTOR_STEPS // (shape[0] * shape[1])) for shape in SHAPES]


def peak_rate(loops: list[Callable[[], None]]) -> float:
    """Return the most floats a second that any of the loops goes through now."""
    return VECTOR_STEPS * vector_floats() / min(map(seconds_of, loops))


def vector_floats() -> int:
    """Return how many floats a vector of this processor holds, as numba compiles for it."""
    return int(_count_floats())


def seconds_of(function: Callable[[], Any]) -> float:
    """Return the processor time of one call in this thread."""
    started = time.thread_time()
    function()
    return time.thread_time() - started


def _bind(loop: Callable[..., None], data: np.ndarray, steps: int) -> Callable[[], None]:
    total = np.zeros(DATA_FLOATS, np.float32)
    loop(data, 1, total)  # compiles
    return lambda: loop(data, steps, total)


def _width(context: Any) -> int:
    return 16 if code.has_wide_registers(context) else 8


@code.intrinsic
def _floats(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return code.const(_width(context))

    return code.types.int64(), generate


@compiled
def _count_floats() -> int:
    return _floats()


def _loop(num_loaded: int, num_kept: int) -> Callable[..., None]:
    """Return a loop of total_kl += weight * max(loaded_l, kept_k) for every k and l."""

    @code.intrinsic
    def run(typing_context: Any, data: Any, steps: Any, total: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            width = _width(context)
            kind = code.vector_of(code.FLOAT, width)
            source, target = (
                code.array(context, builder, signature, arguments, n).data for n in (0, 2)
            )
            places = [code.const(width * n) for n in range(num_loaded * num_kept)]
            kept = [code.load(builder, source, place, kind) for place in places[:num_kept]]
            weight = code.load(builder, source, code.const(DATA_FLOATS // 2), kind)
            totals = [
                code.register(builder, code.load(builder, target, place, kind)) for place in places
            ]
            with code.cgutils.for_range(builder, arguments[1]) as loop:
                step = builder.and_(loop.index, code.const(STEPS_BEFORE_REPEAT - 1))
                first = builder.mul(step, code.const(num_loaded * width))
                for n in range(num_loaded):
                    place = builder.add(first, code.const(n * width))
                    loaded = code.load(builder, source, place, kind)
                    for k, other in enumerate(kept):
                        held = totals[n * num_kept + k]
                        larger = code.select(builder, ">", loaded, other)
                        value = code.fused(builder, weight, larger, builder.load(held))
                        builder.store(value, held)
                body = builder.basic_block
            code.keep_rolled(builder, body.terminator)
            for place, held in zip(places, totals, strict=True):
                code.store(builder, builder.load(held), target, place)
            return context.get_dummy_value()

        return code.types.void(data, steps, total), generate

    def peak_loop(data: Any, steps: int, total: Any) -> None:
        run(data, steps, total)

    return compiled(peak_loop)
