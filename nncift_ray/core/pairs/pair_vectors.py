"""The innermost loops of `pair_kernel`, written as vectors that stay in registers.

numba's own vector code goes through memory after every few hidden units; eight rows by 8 or 32
columns, held in registers until all units are added, are two to three times as fast. The code is
LLVM's, for any processor: a vector too wide for one is cut into pieces, and no piece changes a bit,
because lanes never meet.

Suffixes: R rows scored at once, H hidden units, C columns of a panel, T columns of a tile (whole
panels), P panels.
"""

from __future__ import annotations

from typing import Any

from nncift_ray.core.pairs import vector_code as code

NUM_ROWS = 8  # rows scored at once
PANEL_COLUMNS = 64  # columns packed side by side
SUM_COLUMNS = 8  # columns that `add_columns` turns at once
_WIDTH = 16  # floats of a vector, where the processor has no say

_FLOATS = code.vector_of(code.FLOAT, _WIDTH)


@code.intrinsic
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
    signature = code.types.void(group_HR, panel_HC, sign_H, base_T, score_RT, first)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [code.array(context, builder, signature, arguments, n) for n in range(5)]
        width, num_vectors = _shape_held(context)
        step = num_vectors * width
        with code.cgutils.for_range(builder, code.const(PANEL_COLUMNS // step)) as loop:
            start = builder.mul(loop.index, code.const(step))
            offsets = [builder.add(start, code.const(v * width)) for v in range(num_vectors)]
            _score_columns(
                builder, arrays, arguments[5], offsets, code.vector_of(code.FLOAT, width)
            )
        return context.get_dummy_value()

    return signature, generate


@code.intrinsic
def find_extremes(
    typing_context: Any, score_T: Any, num_panels: Any, low_P: Any, high_P: Any
) -> Any:  # fmt: skip
    """Write the smallest and the largest score of every panel; all arrays float32, contiguous."""
    del typing_context
    signature = code.types.void(score_T, num_panels, low_P, high_P)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        score, low, high = (
            code.array(context, builder, signature, arguments, n).data for n in (0, 2, 3)
        )
        with code.cgutils.for_range(builder, arguments[1]) as loop:
            panel = builder.mul(loop.index, code.const(PANEL_COLUMNS))
            parts = [
                code.load(builder, score, builder.add(panel, code.const(start)), _FLOATS)
                for start in range(0, PANEL_COLUMNS, _WIDTH)
            ]
            for comparison, place in (("<", low), (">", high)):
                best = parts[0]
                for part in parts[1:]:
                    best = code.select(builder, comparison, part, best)
                for distance in (8, 4, 2, 1):
                    lanes = [(lane + distance) % _WIDTH for lane in range(_WIDTH)]
                    best = code.select(
                        builder, comparison, code.pick(builder, best, best, lanes), best
                    )
                first = builder.extract_element(best, code.const(0))
                builder.store(first, builder.gep(place, [loop.index]))
        return context.get_dummy_value()

    return signature, generate


@code.intrinsic
def add_columns(
    typing_context: Any, score_RT: Any, num_blocks: Any, sum_R: Any, square_R: Any
) -> Any:  # fmt: skip
    """Add blocks of eight columns to the float64 sums and sums of squares of eight rows.

    Each row is added column after column; the vectors run across rows.
    """
    del typing_context
    signature = code.types.void(score_RT, num_blocks, sum_R, square_R)
    rows_of_doubles = code.vector_of(code.DOUBLE, NUM_ROWS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        score, sums, squares = (
            code.array(context, builder, signature, arguments, n) for n in (0, 2, 3)
        )
        tile_columns = code.cgutils.unpack_tuple(builder, score.shape)[1]
        held_sum, held_square = (
            code.register(builder, code.load(builder, place.data, code.const(0), rows_of_doubles))
            for place in (sums, squares)
        )
        with code.cgutils.for_range(builder, arguments[1]) as loop:
            first = builder.mul(loop.index, code.const(SUM_COLUMNS))
            lines = [builder.mul(code.const(r), tile_columns) for r in range(NUM_ROWS)]
            block = [
                code.load(
                    builder, score.data, builder.add(line, first), code.vector_of(code.FLOAT, 8)
                )
                for line in lines
            ]
            for column in _turn(builder, block):
                wide = builder.fpext(column, rows_of_doubles)
                builder.store(builder.fadd(builder.load(held_sum), wide), held_sum)
                # The product is exact, 24 bits times 24 bits: fused is the same as apart.
                squares_so_far = code.fused(builder, wide, wide, builder.load(held_square))
                builder.store(squares_so_far, held_square)
        for held, place in ((held_sum, sums), (held_square, squares)):
            code.store(builder, builder.load(held), place.data, code.const(0))
        return context.get_dummy_value()

    return signature, generate


def _score_columns(builder: Any, arrays: Any, first: Any, offsets: list[Any], kind: Any) -> None:
    """Score the rows against vectors of the panel's columns that start at the given offsets."""
    group, panel, sign, base, score = arrays
    num_hidden = code.cgutils.unpack_tuple(builder, sign.shape)[0]
    tile_columns = code.cgutils.unpack_tuple(builder, score.shape)[1]
    columns = [builder.add(first, offset) for offset in offsets]
    held_RV = [
        [code.register(builder, code.load(builder, base.data, column, kind)) for column in columns]
        for _ in range(NUM_ROWS)
    ]
    with code.cgutils.for_range(builder, num_hidden) as loop:
        line = builder.mul(loop.index, code.const(PANEL_COLUMNS))
        b_V = [
            code.load(builder, panel.data, builder.add(line, offset), kind) for offset in offsets
        ]
        sign_h = code.spread(builder, sign.data, loop.index, kind)
        units = builder.mul(loop.index, code.const(NUM_ROWS))
        for r, held_V in enumerate(held_RV):
            a = code.spread(builder, group.data, builder.add(units, code.const(r)), kind)
            for b, held in zip(b_V, held_V, strict=True):
                larger = code.select(builder, ">", a, b)
                builder.store(code.fused(builder, sign_h, larger, builder.load(held)), held)
        body = builder.basic_block
    code.keep_rolled(builder, body.terminator)
    for r, held_V in enumerate(held_RV):
        line = builder.mul(code.const(r), tile_columns)
        for column, held in zip(columns, held_V, strict=True):
            code.store(builder, builder.load(held), score.data, builder.add(line, column))


def _shape_held(context: Any) -> tuple[int, int]:
    """Return width and number of the vectors that, times 8 rows, stay in registers."""
    return (16, 2) if code.has_wide_registers(context) else (8, 1)


def _turn(builder: Any, block: list[Any]) -> list[Any]:
    """Transpose eight vectors of eight: three rounds, each interleaving vectors four apart."""
    low = [lane for pair in zip(range(4), range(8, 12), strict=True) for lane in pair]
    high = [lane + 4 for lane in low]
    for _ in range(3):
        block = [
            code.pick(builder, block[n], block[n + 4], lanes)
            for n in range(4)
            for lanes in (low, high)
        ]
    return block
