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
GATHERED_COLUMNS = 16  # listed columns that `score_gathered` scores at once
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
        group, panel, sign, base, score = (
            code.array(context, builder, signature, arguments, n) for n in range(5)
        )
        arrays = [group, panel, base, score]
        width, num_vectors = _shape_held(context)
        step = num_vectors * width
        with code.cgutils.for_range(builder, code.const(PANEL_COLUMNS // step)) as loop:
            start = builder.mul(loop.index, code.const(step))
            offsets = [builder.add(start, code.const(v * width)) for v in range(num_vectors)]
            _fold_columns(
                builder, arrays, arguments[5], offsets, code.vector_of(code.FLOAT, width), sign
            )
        return context.get_dummy_value()

    return signature, generate


@code.intrinsic
def multiply_panel(
    typing_context: Any, group_FR: Any, panel_FC: Any, base_T: Any, product_RT: Any, first: Any
) -> Any:
    """Write product[r, first + c] = base[first + c] + sum_f group[f, r] panel[f, c].

    The sum runs over f in order, each step rounded once. Arrays as in `score_panel`.
    """
    del typing_context
    signature = code.types.void(group_FR, panel_FC, base_T, product_RT, first)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [code.array(context, builder, signature, arguments, n) for n in range(4)]
        width, num_vectors = _shape_held(context)
        step = num_vectors * width
        with code.cgutils.for_range(builder, code.const(PANEL_COLUMNS // step)) as loop:
            start = builder.mul(loop.index, code.const(step))
            offsets = [builder.add(start, code.const(v * width)) for v in range(num_vectors)]
            _fold_columns(
                builder, arrays, arguments[4], offsets, code.vector_of(code.FLOAT, width), None
            )
        return context.get_dummy_value()

    return signature, generate


@code.intrinsic
def score_gathered(
    typing_context: Any, row_H: Any, sign_H: Any, weighted_JH: Any, base_J: Any, listed_C: Any,
    first: Any, score_C: Any,
) -> Any:  # fmt: skip
    """Score one row against sixteen listed columns, each a run of memory, as `score_panel` does.

    Blocks of columns by units are turned in registers, so that vectors run across columns and the
    sum over h keeps its order. The sixteen columns listed behind are fetched meanwhile: they have
    to be there too. Arrays are contiguous, float32 but for int32 `listed_C`; H is a multiple of 16.
    """
    del typing_context
    signature = code.types.void(row_H, sign_H, weighted_JH, base_J, listed_C, first, score_C)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, sign, weighted, base, listed, score = (
            code.array(context, builder, signature, arguments, n) for n in (0, 1, 2, 3, 4, 6)
        )
        width, _ = _shape_held(context)
        num_hidden = code.cgutils.unpack_tuple(builder, row.shape)[0]
        with code.cgutils.for_range(builder, code.const(GATHERED_COLUMNS // width)) as loop:
            start = builder.add(arguments[5], builder.mul(loop.index, code.const(width)))
            columns, later = (
                [_listed(builder, listed, start, distance + n) for n in range(width)]
                for distance in (0, GATHERED_COLUMNS)
            )
            held = code.register(builder, code.collect(builder, base.data, columns))
            lines, later_lines = (
                [builder.mul(column, num_hidden) for column in group] for group in (columns, later)
            )
            num_blocks = builder.udiv(num_hidden, code.const(width))
            with code.cgutils.for_range(builder, num_blocks) as blocks:
                unit = builder.mul(blocks.index, code.const(width))
                _add_block(builder, (row, sign, weighted), unit, lines, later_lines, held)
            code.store(builder, builder.load(held), score.data, start)
        return context.get_dummy_value()

    return signature, generate


@code.intrinsic
def append_reaching(
    typing_context: Any, product_RT: Any, row: Any, column_T: Any, num_panels: Any, threshold: Any,
    key_B: Any, count: Any,
) -> Any:  # fmt: skip
    """Append the keys of a row's columns that reach a threshold, and return their new number.

    Keys are those of `pair_kernel.key_of`. The buffer has to have room for all columns.
    """
    del typing_context
    signature = code.types.int64(product_RT, row, column_T, num_panels, threshold, key_B, count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product, column, key = (
            code.array(context, builder, signature, arguments, n) for n in (0, 2, 5)
        )
        tile_columns = code.cgutils.unpack_tuple(builder, product.shape)[1]
        line = builder.mul(arguments[1], tile_columns)
        limit = code.repeat(builder, arguments[4], _FLOATS)
        count = code.register(builder, arguments[6])
        bits = code.register(builder, code.ir.Constant(code.ir.IntType(_WIDTH), 0))
        num_vectors = builder.mul(arguments[3], code.const(PANEL_COLUMNS // _WIDTH))
        with code.cgutils.for_range(builder, num_vectors) as loop:
            first = builder.mul(loop.index, code.const(_WIDTH))
            scores = code.load(builder, product.data, builder.add(line, first), _FLOATS)
            reaching = builder.fcmp_ordered(">=", scores, limit)
            builder.store(builder.bitcast(reaching, code.ir.IntType(_WIDTH)), bits)
            with code.each_bit(builder, bits) as lane:
                place = builder.add(first, lane)
                score = builder.load(builder.gep(product.data, [builder.add(line, place)]))
                number = builder.load(builder.gep(column.data, [place]))
                at = builder.gep(key.data, [builder.load(count)])
                builder.store(_key(builder, score, number), at)
                builder.store(builder.add(builder.load(count), code.const(1)), count)
        return builder.load(count)

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


def _key(builder: Any, score: Any, column: Any) -> Any:
    """Return `pair_kernel.key_of`: the score's bits in the order of integers, then the column."""
    zero = code.ir.Constant(code.FLOAT, 0.0)
    bits = builder.bitcast(builder.fadd(score, zero), code.INT32)  # -0 + 0 is 0
    negative = builder.ashr(bits, code.ir.Constant(code.INT32, 31))
    ordered = builder.xor(bits, builder.and_(negative, code.ir.Constant(code.INT32, 0x7FFFFFFF)))
    high = builder.shl(builder.sext(ordered, code.INT64), code.const(32))
    low = builder.sub(code.const(0x7FFFFFFF), builder.sext(column, code.INT64))
    return builder.add(high, low)


def _listed(builder: Any, listed: Any, start: Any, distance: int) -> Any:
    place = builder.gep(listed.data, [builder.add(start, code.const(distance))])
    return builder.sext(builder.load(place), code.INT64)


def _add_block(
    builder: Any, arrays: Any, unit: Any, lines: list[Any], later_lines: list[Any], held: Any
) -> None:
    """Add as many units as there are columns to the columns' scores."""
    row, sign, weighted = arrays
    kind = code.vector_of(code.FLOAT, len(lines))
    for line in later_lines:
        code.fetch(builder, weighted.data, builder.add(line, unit))
    block = [code.load(builder, weighted.data, builder.add(line, unit), kind) for line in lines]
    total = builder.load(held)
    for step, b in enumerate(_turn(builder, block)):
        place = builder.add(unit, code.const(step))
        larger = code.select(builder, ">", code.spread(builder, row.data, place, kind), b)
        total = code.fused(builder, code.spread(builder, sign.data, place, kind), larger, total)
    builder.store(total, held)


def _fold_columns(
    builder: Any, arrays: Any, first: Any, offsets: list[Any], kind: Any, sign: Any | None
) -> None:
    """Fold the rows into vectors of the panel's columns that start at the given offsets.

    With signs a step is sign * max(a, b), without it is a * b.
    """
    group, panel, base, score = arrays
    num_steps = code.cgutils.unpack_tuple(builder, group.shape)[0]
    tile_columns = code.cgutils.unpack_tuple(builder, score.shape)[1]
    columns = [builder.add(first, offset) for offset in offsets]
    held_RV = [
        [code.register(builder, code.load(builder, base.data, column, kind)) for column in columns]
        for _ in range(NUM_ROWS)
    ]
    with code.cgutils.for_range(builder, num_steps) as loop:
        line = builder.mul(loop.index, code.const(PANEL_COLUMNS))
        b_V = [
            code.load(builder, panel.data, builder.add(line, offset), kind) for offset in offsets
        ]
        sign_h = None if sign is None else code.spread(builder, sign.data, loop.index, kind)
        units = builder.mul(loop.index, code.const(NUM_ROWS))
        for r, held_V in enumerate(held_RV):
            a = code.spread(builder, group.data, builder.add(units, code.const(r)), kind)
            for b, held in zip(b_V, held_V, strict=True):
                x, y = (a, b) if sign_h is None else (sign_h, code.select(builder, ">", a, b))
                builder.store(code.fused(builder, x, y, builder.load(held)), held)
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
    """Transpose n vectors of n: each round interleaves vectors n / 2 apart."""
    half = len(block) // 2
    low = [lane for n in range(half) for lane in (n, n + 2 * half)]
    high = [lane + half for lane in low]
    for _ in range(half.bit_length()):
        block = [
            code.pick(builder, block[n], block[n + half], lanes)
            for n in range(half)
            for lanes in (low, high)
        ]
    return block
