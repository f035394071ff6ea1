"""The innermost loops of `pair_kernel`, written as vectors that stay in registers.

numba's own vector code goes through memory after every few hidden units; a tile of 4 rows x 64
columns held in registers is two to three times as fast. The code is LLVM's, for any processor: a
vector too wide for one is cut into pieces, and no piece changes a bit, because lanes never meet.

Suffixes: R rows scored at once, H hidden units, C columns of a panel, T columns of a tile (whole
panels), P panels.
"""

from __future__ import annotations

from typing import Any, cast

import llvmlite.ir as llvmlite_ir  # pyright: ignore[reportMissingTypeStubs]
from numba.core import cgutils as numba_cgutils  # pyright: ignore[reportMissingTypeStubs]
from numba.core import types as numba_types  # pyright: ignore[reportMissingTypeStubs]
from numba.extending import (  # pyright: ignore[reportMissingTypeStubs]
    intrinsic as numba_intrinsic,  # pyright: ignore[reportUnknownVariableType]
)

# None of these has types.
ir, cgutils, types = (cast("Any", module) for module in (llvmlite_ir, numba_cgutils, numba_types))
intrinsic = cast("Any", numba_intrinsic)

NUM_ROWS = 8  # rows scored at once
PANEL_COLUMNS = 64  # columns packed side by side
SUM_COLUMNS = 8  # columns that `add_columns` turns at once
_ROWS_HELD = 4  # rows whose scores are in registers together
_WIDTH = 16  # floats of a vector

_FLOAT, _DOUBLE, _INT32, _INT64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, _WIDTH)


@intrinsic
def score_panel(
    typing_context: Any, group_HR: Any, panel_HC: Any, sign_H: Any, base_T: Any, score_RT: Any,
    first: Any,
) -> Any:  # fmt: skip
    """Write score[r, first + c] = base[first + c] + sum_h sign_h max(group[h, r], panel[h, c]).

    The sum runs over h in order, each step rounded once: multiplying by a sign of 1 or -1 is exact,
    so the fused step is the addition or subtraction, on units that many processors have spare.
    All arrays are float32 and contiguous, `first` a multiple of 64.
    """
    del typing_context
    signature = types.void(group_HR, panel_HC, sign_H, base_T, score_RT, first)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [_array(context, builder, signature, arguments, n) for n in range(5)]
        num_vectors = _vectors_held(context)
        for row in range(0, NUM_ROWS, _ROWS_HELD):
            for start in range(0, PANEL_COLUMNS, num_vectors * _WIDTH):
                offsets = range(start, start + num_vectors * _WIDTH, _WIDTH)
                _score_columns(builder, arrays, arguments[5], row, offsets)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def find_extremes(
    typing_context: Any, score_T: Any, num_panels: Any, low_P: Any, high_P: Any
) -> Any:  # fmt: skip
    """Write the smallest and the largest score of every panel; all arrays float32, contiguous."""
    del typing_context
    signature = types.void(score_T, num_panels, low_P, high_P)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        score, low, high = (
            _array(context, builder, signature, arguments, n).data for n in (0, 2, 3)
        )
        with cgutils.for_range(builder, arguments[1]) as loop:
            panel = builder.mul(loop.index, _const(PANEL_COLUMNS))
            parts = [
                _load(builder, score, builder.add(panel, _const(start)), _FLOATS)
                for start in range(0, PANEL_COLUMNS, _WIDTH)
            ]
            for comparison, place in (("<", low), (">", high)):
                best = parts[0]
                for part in parts[1:]:
                    best = _select(builder, comparison, part, best)
                for distance in (8, 4, 2, 1):
                    lanes = [(lane + distance) % _WIDTH for lane in range(_WIDTH)]
                    best = _select(builder, comparison, _pick(builder, best, best, lanes), best)
                first = builder.extract_element(best, _const(0))
                builder.store(first, builder.gep(place, [loop.index]))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_columns(
    typing_context: Any, score_RT: Any, num_blocks: Any, sum_R: Any, square_R: Any
) -> Any:  # fmt: skip
    """Add blocks of eight columns to the float64 sums and sums of squares of eight rows.

    Each row is added column after column; the vectors run across rows.
    """
    del typing_context
    signature = types.void(score_RT, num_blocks, sum_R, square_R)
    rows_of_doubles = ir.VectorType(_DOUBLE, NUM_ROWS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        score, sums, squares = (
            _array(context, builder, signature, arguments, n) for n in (0, 2, 3)
        )
        tile_columns = cgutils.unpack_tuple(builder, score.shape)[1]
        held_sum, held_square = (
            _held(builder, _load(builder, place.data, _const(0), rows_of_doubles))
            for place in (sums, squares)
        )
        with cgutils.for_range(builder, arguments[1]) as loop:
            first = builder.mul(loop.index, _const(SUM_COLUMNS))
            lines = [builder.mul(_const(r), tile_columns) for r in range(NUM_ROWS)]
            block = [
                _load(builder, score.data, builder.add(line, first), ir.VectorType(_FLOAT, 8))
                for line in lines
            ]
            for column in _turn(builder, block):
                wide = builder.fpext(column, rows_of_doubles)
                square = builder.fmul(wide, wide)  # exact: 24 bits times 24 bits
                builder.store(builder.fadd(builder.load(held_sum), wide), held_sum)
                builder.store(builder.fadd(builder.load(held_square), square), held_square)
        for held, place in ((held_sum, sums), (held_square, squares)):
            _store(builder, builder.load(held), place.data, _const(0))
        return context.get_dummy_value()

    return signature, generate


def _score_columns(builder: Any, arrays: Any, first: Any, row: int, offsets: range) -> None:
    """Score the four rows from `row` on against the panel's columns at the given offsets."""
    group, panel, sign, base, score = arrays
    num_hidden = cgutils.unpack_tuple(builder, sign.shape)[0]
    tile_columns = cgutils.unpack_tuple(builder, score.shape)[1]
    rows = range(row, row + _ROWS_HELD)
    columns = [builder.add(first, _const(offset)) for offset in offsets]
    held = {
        (r, v): _held(builder, _load(builder, base.data, column, _FLOATS))
        for r in rows
        for v, column in enumerate(columns)
    }
    with cgutils.for_range(builder, num_hidden) as loop:
        line = builder.mul(loop.index, _const(PANEL_COLUMNS))
        b_V = [
            _load(builder, panel.data, builder.add(line, _const(offset)), _FLOATS)
            for offset in offsets
        ]
        sign_h = _spread(builder, sign.data, loop.index)
        units = builder.mul(loop.index, _const(NUM_ROWS))
        for r in rows:
            a = _spread(builder, group.data, builder.add(units, _const(r)))
            for v, b in enumerate(b_V):
                larger = _select(builder, ">", a, b)
                total = _fused(builder, sign_h, larger, builder.load(held[r, v]))
                builder.store(total, held[r, v])
    for (r, v), register in held.items():
        place = builder.add(builder.mul(_const(r), tile_columns), columns[v])
        _store(builder, builder.load(register), score.data, place)


def _vectors_held(context: Any) -> int:
    """Return how many vectors of 16 columns, times 4 rows, the registers hold with operands."""
    features = context.codegen().magic_tuple()[2]
    return 4 if "+avx512f" in features else 1  # 32 registers of 16 floats, or 16 of 8


def _array(context: Any, builder: Any, signature: Any, arguments: Any, index: int) -> Any:
    return context.make_array(signature.args[index])(context, builder, arguments[index])


def _const(value: int) -> Any:
    return ir.Constant(_INT64, value)


def _held(builder: Any, value: Any) -> Any:
    """Return a variable with this value; LLVM keeps it in a register."""
    return cgutils.alloca_once_value(builder, value)


def _load(builder: Any, data: Any, index: Any, kind: Any) -> Any:
    place = builder.bitcast(builder.gep(data, [index]), kind.as_pointer())
    return builder.load(place, align=4)


def _store(builder: Any, value: Any, data: Any, index: Any) -> None:
    place = builder.bitcast(builder.gep(data, [index]), value.type.as_pointer())
    builder.store(value, place, align=4)


def _spread(builder: Any, data: Any, index: Any) -> Any:
    """Return a vector of one float, repeated."""
    empty = ir.Constant(_FLOATS, ir.Undefined)
    value = builder.load(builder.gep(data, [index]))
    return _pick(builder, builder.insert_element(empty, value, _const(0)), empty, [0] * _WIDTH)


def _pick(builder: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    """Return the given lanes of two vectors laid end to end."""
    return builder.shuffle_vector(
        x, y, ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes)
    )


def _turn(builder: Any, block: list[Any]) -> list[Any]:
    """Transpose eight vectors of eight: three rounds, each interleaving vectors four apart."""
    low = [lane for pair in zip(range(4), range(8, 12), strict=True) for lane in pair]
    high = [lane + 4 for lane in low]
    for _ in range(3):
        block = [
            _pick(builder, block[n], block[n + 4], lanes) for n in range(4) for lanes in (low, high)
        ]
    return block


def _select(builder: Any, comparison: str, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered(comparison, x, y), x, y)


def _fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x * y + z, rounded once."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    name = f"llvm.fma.v{_WIDTH}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x, y, z])
