"""The gain of a column that holds every row, in vectors.

A sum in row order would wait for each addition, and LLVM may not reorder one. So the order is ours:
LANES partial sums, lane l adding rows l, l + LANES, ..., put together at the end in lane order. The
width of a processor's registers does not change it.
Suffixes: I rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.pairs import vector_code as code

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

WIDTH = 8  # doubles side by side
NUM_SUMS = 4  # vectors under way: as many as an addition takes cycles
LANES = WIDTH * NUM_SUMS


def _above(builder: Any, value: Any, cover: Any) -> Any:
    """Return max(value - cover, 0)."""
    zero = code.ir.Constant(value.type, [0.0] * WIDTH)
    return code.select(builder, ">", builder.fsub(value, cover), zero)


def _within(builder: Any, value: Any, left: Any) -> Any:
    """Return min(value, left)."""
    return code.select(builder, "<", value, left)


def _lane_sums(term: Callable[[Any, Any, Any], Any]) -> Any:
    """Return a function that writes the lanes of sum_i term(value_i, held_i) over whole steps."""

    @code.intrinsic
    def run(context: Any, values: Any, start: Any, held: Any, num_steps: Any, lane: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value, other, target = (
                code.array(context, builder, signature, arguments, n).data for n in (0, 2, 4)
            )
            wide = code.vector_of(code.DOUBLE, WIDTH)
            zero = code.ir.Constant(wide, [0.0] * WIDTH)
            sums = [code.register(builder, zero) for _ in range(NUM_SUMS)]
            with code.cgutils.for_range(builder, arguments[3]) as loop:
                first = builder.mul(loop.index, code.const(LANES))
                for n, held_sum in enumerate(sums):
                    place = builder.add(first, code.const(n * WIDTH))
                    x = _doubles(builder, value, builder.add(arguments[1], place), wide)
                    y = _doubles(builder, other, place, wide)
                    added = builder.fadd(builder.load(held_sum), term(builder, x, y))
                    builder.store(added, held_sum)
            for n, held_sum in enumerate(sums):
                code.store(builder, builder.load(held_sum), target, code.const(n * WIDTH))
            return context.get_dummy_value()

        return code.types.void(values, start, held, num_steps, lane), generate

    return run


def _doubles(builder: Any, data: Any, place: Any, wide: Any) -> Any:
    """Load floats or doubles as doubles."""
    if data.type.pointee == code.DOUBLE:
        return code.load(builder, data, place, wide)
    narrow = code.vector_of(code.FLOAT, WIDTH)
    return builder.fpext(code.load(builder, data, place, narrow), wide)


_sums_above, _sums_within = _lane_sums(_above), _lane_sums(_within)


@compiled
def covered_gain(values: F32, first: int, cover_I: F32) -> float:
    """Return sum_i max(v_i - cover_i, 0) of the column that begins at entry `first`."""
    lanes = np.empty(LANES)
    steps = len(cover_I) // LANES
    _sums_above(values, first, cover_I, steps, lanes)
    for i in range(steps * LANES, len(cover_I)):
        lanes[i % LANES] += max(np.float64(values[first + i]) - np.float64(cover_I[i]), 0.0)
    return _total(lanes)


@compiled
def saturated_gain(values: F32, first: int, left_I: F64) -> float:
    """Return sum_i min(v_i, left_i) of the column that begins at entry `first`."""
    lanes = np.empty(LANES)
    steps = len(left_I) // LANES
    _sums_within(values, first, left_I, steps, lanes)
    for i in range(steps * LANES, len(left_I)):
        lanes[i % LANES] += min(np.float64(values[first + i]), left_I[i])
    return _total(lanes)


@compiled
def _total(lanes: F64) -> float:
    total = 0.0
    for lane in range(LANES):
        total += lanes[lane]
    return total
