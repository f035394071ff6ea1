"""The compiled loops of pair scoring: score eight rows at once, fold the scores in.

Pairs are scored by hidden units (`score_panel`) or, where there are no signs of units, by the
squared positive part of an inner product (`pair_panel`).

Only plain IEEE additions in a fixed order, and maxima and minima, which are exact: vectors run
across columns, so a pair's score has the same bits in any tile, row group or vector width.

A kept column is one 64-bit key: the score's bits in an order that integers share, then the column,
counted down. A larger key is a better column, ties included, and no two are equal. A row's keys are
a heap with the worst at its root; place k holds NO_KEY + k while it is empty.

Suffixes: I rows, R the eight rows scored at once, T columns of a tile, P panels of C columns,
K places of a heap, H hidden, G groups of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncift_ray import jit as code
from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

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

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        group, panel, sign, base, score = code.arrays(context, builder, signature, arguments, 5)
        _fold_panel(context, builder, (group, panel, base, score), arguments[5], sign)
        return context.get_dummy_value()

    return code.types.void(group_HR, panel_HC, sign_H, base_T, score_RT, first), generate


@code.intrinsic
def multiply_panel(
    typing_context: Any, group_FR: Any, panel_FC: Any, base_T: Any, product_RT: Any, first: Any
) -> Any:
    """Write product[r, first + c] = base[first + c] + sum_f group[f, r] panel[f, c].

    The sum runs over f in order, each step rounded once. Arrays as in `score_panel`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = code.arrays(context, builder, signature, arguments, 4)
        _fold_panel(context, builder, arrays, arguments[4], None)
        return context.get_dummy_value()

    return code.types.void(group_FR, panel_FC, base_T, product_RT, first), generate


@code.intrinsic
def pair_panel(
    typing_context: Any, group_XR: Any, panel_FC: Any, base_T: Any, score_RT: Any, first: Any
) -> Any:
    """Write score[r, first + c] = base[first + c] + group[F, r] + max(t, 0)^2.

    t = sum_f group[f, r] panel[f, c], over f in order, each step rounded once; X = F + 1.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = code.arrays(context, builder, signature, arguments, 4)
        _fold_panel(context, builder, arrays, arguments[4], None, squares=True)
        return context.get_dummy_value()

    return code.types.void(group_XR, panel_FC, base_T, score_RT, first), generate


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

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, sign, *rest = code.arrays(context, builder, signature, arguments, 5)
        score = code.array(context, builder, signature, arguments, 6)
        _fold_listed(context, builder, (row, sign, *rest, score), arguments[5])
        return context.get_dummy_value()

    signature = code.types.void(row_H, sign_H, weighted_JH, base_J, listed_C, first, score_C)
    return signature, generate


@code.intrinsic
def pair_gathered(
    typing_context: Any, row_F: Any, offset: Any, column_JF: Any, base_J: Any, listed_C: Any,
    first: Any, score_C: Any,
) -> Any:  # fmt: skip
    """Score one row, of its own offset, against sixteen listed columns as `pair_panel` does.

    For the rest as `score_gathered`; F is a multiple of 16.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, column, base, listed, score = (
            code.array(context, builder, signature, arguments, n) for n in (0, 2, 3, 4, 6)
        )
        arrays = (row, None, column, base, listed, score)
        _fold_listed(context, builder, arrays, arguments[5], offset=arguments[1])
        return context.get_dummy_value()

    signature = code.types.void(row_F, offset, column_JF, base_J, listed_C, first, score_C)
    return signature, generate


@code.intrinsic
def append_reaching(
    typing_context: Any, product_RT: Any, row: Any, column_T: Any, num_panels: Any, threshold: Any,
    key_B: Any, count: Any,
) -> Any:  # fmt: skip
    """Append the keys of a row's columns that reach a threshold, and return their new number.

    Keys are those of `key_of`. The buffer has to have room for all columns.
    """
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
    """Return `key_of`: the score's bits in the order of integers, then the column."""
    zero = code.ir.Constant(code.FLOAT, 0.0)
    bits = builder.bitcast(builder.fadd(score, zero), code.INT32)  # -0 + 0 is 0
    negative = builder.ashr(bits, code.ir.Constant(code.INT32, 31))
    ordered = builder.xor(bits, builder.and_(negative, code.ir.Constant(code.INT32, 0x7FFFFFFF)))
    high = builder.shl(builder.sext(ordered, code.INT64), code.const(32))
    low = builder.sub(code.const(0x7FFFFFFF), builder.sext(column, code.INT64))
    return builder.add(high, low)


def _fold_listed(
    context: Any, builder: Any, arrays: Any, first: Any, offset: Any | None = None
) -> None:
    """Fold one row into sixteen listed columns; with an offset as `pair_panel` does."""
    row, sign, weighted, base, listed, score = arrays
    width, _ = _shape_held(context)
    num_hidden = code.cgutils.unpack_tuple(builder, row.shape)[0]
    with code.cgutils.for_range(builder, code.const(GATHERED_COLUMNS // width)) as loop:
        start = builder.add(first, builder.mul(loop.index, code.const(width)))
        columns, later = (
            [_listed(builder, listed, start, distance + n) for n in range(width)]
            for distance in (0, GATHERED_COLUMNS)
        )
        bases = code.collect(builder, base.data, columns)
        none = code.ir.Constant(bases.type, None)  # zeros
        held = code.register(builder, bases if offset is None else none)
        lines, later_lines = (
            [builder.mul(column, num_hidden) for column in group] for group in (columns, later)
        )
        num_blocks = builder.udiv(num_hidden, code.const(width))
        with code.cgutils.for_range(builder, num_blocks) as blocks:
            unit = builder.mul(blocks.index, code.const(width))
            _add_block(builder, (row, sign, weighted), unit, lines, later_lines, held)
        total = builder.load(held)
        if offset is not None:
            own = code.repeat(builder, offset, bases.type)
            total = _add_square(builder, total, builder.fadd(bases, own))
        code.store(builder, total, score.data, start)


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
        x = code.spread(builder, row.data, place, kind)
        if sign is not None:
            x, b = code.spread(builder, sign.data, place, kind), code.select(builder, ">", x, b)
        total = code.fused(builder, x, b, total)
    builder.store(total, held)


def _add_square(builder: Any, total: Any, base: Any) -> Any:
    """Return base + max(total, 0)^2, rounded once after the sum of base."""
    positive = code.select(builder, ">", total, code.ir.Constant(total.type, None))
    return code.fused(builder, positive, positive, base)


def _fold_panel(
    context: Any, builder: Any, arrays: Any, first: Any, sign: Any | None, *, squares: bool = False
) -> None:
    """Fold eight rows into a panel, as many columns at a time as stay in registers."""
    width, num_vectors = _shape_held(context)
    kind, step = code.vector_of(code.FLOAT, width), num_vectors * width
    with code.cgutils.for_range(builder, code.const(PANEL_COLUMNS // step)) as loop:
        start = builder.mul(loop.index, code.const(step))
        offsets = [builder.add(start, code.const(v * width)) for v in range(num_vectors)]
        _fold_columns(builder, arrays, first, offsets, kind, sign, squares)


def _fold_columns(
    builder: Any, arrays: Any, first: Any, offsets: list[Any], kind: Any, sign: Any | None,
    squares: bool,
) -> None:  # fmt: skip
    """Fold the rows into vectors of the panel's columns that start at the given offsets.

    With signs a step is sign * max(a, b), without it is a * b. ``squares``: what is written is the
    squared positive part, added to the column's base and the row's own number, its last.
    """
    group, panel, base, score = arrays
    num_steps = code.cgutils.unpack_tuple(builder, panel.shape)[0]
    tile_columns = code.cgutils.unpack_tuple(builder, score.shape)[1]
    columns = [builder.add(first, offset) for offset in offsets]
    zeros = code.ir.Constant(kind, None)
    held_RV = [
        [
            code.register(
                builder, zeros if squares else code.load(builder, base.data, column, kind)
            )
            for column in columns
        ]
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
    last = builder.mul(num_steps, code.const(NUM_ROWS))
    for r, held_V in enumerate(held_RV):
        line = builder.mul(code.const(r), tile_columns)
        for column, held in zip(columns, held_V, strict=True):
            total = builder.load(held)
            if squares:
                own = code.spread(builder, group.data, builder.add(last, code.const(r)), kind)
                bases = code.load(builder, base.data, column, kind)
                total = _add_square(builder, total, builder.fadd(bases, own))
            code.store(builder, total, score.data, builder.add(line, column))


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


# Keys, and the heap of a row.

NO_KEY = -(2**63)
FIRST_KEY = NO_KEY + 2**32  # keys below stand for empty places
LAST_COLUMN = 2**31 - 1  # a column's place in its key is counted down from here


@compiled
def key_of(score: np.float32, column: int) -> np.int64:
    """Return the key of a column."""
    bits = np.int64(np.float32(score + 0).view(np.int32))  # -0 + 0 is 0: the two are equal
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) + (LAST_COLUMN - column)


@compiled
def score_of(key: np.int64) -> np.float32:
    """Return the score in a key, -inf in an empty place."""
    bits = key >> 32
    score = np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
    return score if key >= FIRST_KEY else np.float32(-np.inf)


@compiled
def replace_worst(key_K: I64, key: np.int64) -> None:
    """Put a key in place of the root and restore the heap."""
    place, last = 0, len(key_K) - 1
    while 2 * place + 1 <= last:
        child = 2 * place + 1
        child += key_K[min(child + 1, last)] < key_K[child]  # a branch would be mispredicted
        if key_K[child] >= key:
            break
        key_K[place] = key_K[child]
        place = child
    key_K[place] = key


@compiled
def offer_pairs(key_IK: I64, row_P: I64, column_P: I64, score_P: F32) -> None:
    """Offer pairs, each with its score, to the heaps of their rows."""
    for p in range(len(row_P)):
        key_K = key_IK[row_P[p]]
        key = key_of(score_P[p], column_P[p])
        if key > key_K[0]:
            replace_worst(key_K, key)


@compiled
def _offer(key_K: I64, score_T: F32, first_column: int) -> None:
    """Offer the scores of neighbouring columns to the heap of their row."""
    threshold = score_of(key_K[0])
    for start in range(0, len(score_T), SCAN_COLUMNS):
        stop = min(start + SCAN_COLUMNS, len(score_T))
        if _count_reaching(score_T[start:stop], threshold) == 0:
            continue
        for j in range(start, stop):
            if score_T[j] >= threshold:
                key = key_of(score_T[j], first_column + j)
                if key > key_K[0]:
                    replace_worst(key_K, key)
                    threshold = score_of(key_K[0])


@compiled
def _count_reaching(score_T: F32, threshold: np.float32) -> int:
    count = 0
    for j in range(len(score_T)):
        count += score_T[j] >= threshold
    return count


# Tiles of columns: packed, and scored eight rows at a time.

SCAN_COLUMNS = 16  # columns that are dismissed at once when none reaches the top K
ONE = 2.0**32  # the fixed-point value of 1
# A double this large has no bits below 1, so adding and taking it away rounds to a whole number
# (half to even), below 2**51 either side; vectors have such additions and no rounded conversion.
ROUND_TO_WHOLE = 1.5 * 2.0**52


@compiled
def pack_panels(b_TH: F32, w_H: F32, place_H: I64, sign_H: F32, bias: float) -> tuple[F32, F32]:
    """Return columns as panels [P, H, C], and their terms bias + sum_h w_h b_jh, padded with 0.

    A panel holds -w_h b_jh at the place of unit h, negated where the sign is -1: units of a minimum
    become units of a maximum, since min(x, y) = -max(-x, -y). Terms are summed h in order.
    """
    num_columns, num_hidden = b_TH.shape
    num_panels = (num_columns + PANEL_COLUMNS - 1) // PANEL_COLUMNS
    panel_PHC = np.zeros((num_panels, num_hidden, PANEL_COLUMNS), np.float32)
    base_X = np.zeros(num_panels * PANEL_COLUMNS, np.float32)
    value_HC = np.zeros((num_hidden, PANEL_COLUMNS), np.float32)  # stays in the first cache
    for p in range(num_panels):
        first = p * PANEL_COLUMNS
        width = min(PANEL_COLUMNS, num_columns - first)
        base_C = np.full(PANEL_COLUMNS, bias, np.float64)
        for c in range(width):
            for h in range(num_hidden):
                value_HC[h, c] = w_H[h] * b_TH[first + c, h]
        for h in range(num_hidden):
            place = place_H[h]
            for c in range(width):
                panel_PHC[p, place, c] = sign_H[place] * -value_HC[h, c]
            for c in range(width):
                base_C[c] += np.float64(value_HC[h, c])
        for c in range(width):
            base_X[first + c] = np.float32(base_C[c])
    return panel_PHC, base_X


def pack_pairs(b_TX: F32, bias: float) -> tuple[F32, F32]:
    """Return columns as panels [P, F, C], and their own effects + bias, padded with 0."""
    num_columns, num_features = len(b_TX), b_TX.shape[1] - 1
    num_panels = (num_columns + PANEL_COLUMNS - 1) // PANEL_COLUMNS
    padded_XF = np.zeros((num_panels * PANEL_COLUMNS, num_features), np.float32)
    padded_XF[:num_columns] = b_TX[:, :-1]
    panel_PFC = padded_XF.reshape(num_panels, PANEL_COLUMNS, num_features).transpose(0, 2, 1)
    base_X = np.zeros(len(padded_XF), np.float32)
    base_X[:num_columns] = b_TX[:, -1].astype(np.float64) + bias
    return np.ascontiguousarray(panel_PFC), base_X


@compiled
def _score_rows(
    rows_IH: F32, first: int, panel_PHC: F32, base_X: F32, sign_H: F32, num_columns: int,
    group_HR: F32, score_RX: F32,
) -> None:  # fmt: skip
    """Score eight rows from `first` on against a tile.

    A last group that is not full repeats its last row, and a last panel its first column: both are
    scored, and never counted twice.
    """
    for r in range(NUM_ROWS):
        row_H = rows_IH[min(first + r, len(rows_IH) - 1)]
        for h in range(len(row_H)):
            group_HR[h, r] = row_H[h]
    for p in range(len(panel_PHC)):
        if len(sign_H):
            score_panel(group_HR, panel_PHC[p], sign_H, base_X, score_RX, p * PANEL_COLUMNS)
        else:
            pair_panel(group_HR, panel_PHC[p], base_X, score_RX, p * PANEL_COLUMNS)
    for r in range(NUM_ROWS):
        score_RX[r, num_columns:] = score_RX[r, 0]


@compiled
def score_tile(
    rows_IH: F32, panel_PHC: F32, base_X: F32, sign_H: F32, num_columns: int, first_column: int,
    score_IJ: F32,
) -> None:  # fmt: skip
    """Write the scores of all rows against one tile, whose first column is `first_column`."""
    group_HR = np.empty((rows_IH.shape[1], NUM_ROWS), np.float32)
    score_RX = np.empty((NUM_ROWS, len(base_X)), np.float32)
    for first in range(0, len(rows_IH), NUM_ROWS):
        _score_rows(rows_IH, first, panel_PHC, base_X, sign_H, num_columns, group_HR, score_RX)
        for r in range(min(NUM_ROWS, len(rows_IH) - first)):
            for j in range(num_columns):
                score_IJ[first + r, first_column + j] = score_RX[r, j]


@compiled
def add_tile(
    rows_IH: F32, panel_PHC: F32, base_X: F32, sign_H: F32, first_column: int, key_IK: I64,
    statistics: Any, column_max_T: F32,
) -> None:  # fmt: skip
    """Score all rows against one tile and fold the scores into heaps, statistics and maxima."""
    num_rows, num_columns = len(rows_IH), len(column_max_T)
    num_pairs_I, min_I, max_I, sum_I, square_I = statistics
    group_HR = np.empty((rows_IH.shape[1], NUM_ROWS), np.float32)
    score_RX = np.empty((NUM_ROWS, len(base_X)), np.float32)
    low_P, high_P = np.empty(len(panel_PHC), np.float32), np.empty(len(panel_PHC), np.float32)
    for first in range(0, num_rows, NUM_ROWS):
        rows_here = min(NUM_ROWS, num_rows - first)
        _score_rows(rows_IH, first, panel_PHC, base_X, sign_H, num_columns, group_HR, score_RX)
        _raise_column_max(column_max_T, score_RX)
        _add_sums(score_RX, num_columns, sum_I, square_I, first, rows_here)
        for r in range(rows_here):
            i = first + r
            _raise_extremes(score_RX[r], i, min_I, max_I, low_P, high_P)
            num_pairs_I[i] += num_columns
            for p in range(len(panel_PHC)):
                if high_P[p] >= score_of(key_IK[i, 0]):
                    start = p * PANEL_COLUMNS
                    part_T = score_RX[r, start : min(start + PANEL_COLUMNS, num_columns)]
                    _offer(key_IK[i], part_T, first_column + start)


@compiled
def sum_tile(
    rows_IH: F32, panel_PHC: F32, base_X: F32, sign_H: F32, group_I: I64, statistics: Any,
    sum_GT: I64,
) -> None:  # fmt: skip
    """Score all rows against one tile and add each, in fixed point, to its group's columns."""
    num_rows, num_columns = len(rows_IH), sum_GT.shape[1]
    num_pairs_I, min_I, max_I, sum_I, square_I = statistics
    group_HR = np.empty((rows_IH.shape[1], NUM_ROWS), np.float32)
    score_RX = np.empty((NUM_ROWS, len(base_X)), np.float32)
    low_P, high_P = np.empty(len(panel_PHC), np.float32), np.empty(len(panel_PHC), np.float32)
    for first in range(0, num_rows, NUM_ROWS):
        rows_here = min(NUM_ROWS, num_rows - first)
        _score_rows(rows_IH, first, panel_PHC, base_X, sign_H, num_columns, group_HR, score_RX)
        _add_sums(score_RX, num_columns, sum_I, square_I, first, rows_here)
        for r in range(rows_here):
            i = first + r
            _raise_extremes(score_RX[r], i, min_I, max_I, low_P, high_P)
            num_pairs_I[i] += num_columns
            sum_T = sum_GT[group_I[i]]
            for j in range(num_columns):
                whole = (np.float64(score_RX[r, j]) * ONE + ROUND_TO_WHOLE) - ROUND_TO_WHOLE
                sum_T[j] += np.int64(whole)


@compiled
def _raise_extremes(score_T: F32, i: int, min_I: F32, max_I: F32, low_P: F32, high_P: F32) -> None:
    """Find a row's extremes, also by panel."""
    find_extremes(score_T, len(low_P), low_P, high_P)
    for p in range(len(low_P)):
        min_I[i], max_I[i] = min(min_I[i], low_P[p]), max(max_I[i], high_P[p])


@compiled
def _raise_column_max(column_max_T: F32, score_RT: F32) -> None:
    for r in range(0, NUM_ROWS, 4):
        for j in range(len(column_max_T)):
            top = max(score_RT[r, j], score_RT[r + 1, j])
            bottom = max(score_RT[r + 2, j], score_RT[r + 3, j])
            column_max_T[j] = max(column_max_T[j], max(top, bottom))


@compiled
def _add_sums(
    score_RT: F32, num_columns: int, sum_I: F64, square_I: F64, first: int, num_rows: int
) -> None:
    """Add scores column after column, so that tiles do not change a bit of the sums."""
    sum_R, square_R = np.zeros(NUM_ROWS), np.zeros(NUM_ROWS)
    sum_R[:num_rows] = sum_I[first : first + num_rows]
    square_R[:num_rows] = square_I[first : first + num_rows]
    num_blocks = num_columns // SUM_COLUMNS
    add_columns(score_RT, num_blocks, sum_R, square_R)
    for j in range(num_blocks * SUM_COLUMNS, num_columns):
        for r in range(num_rows):
            wide = np.float64(score_RT[r, j])
            sum_R[r] += wide
            square_R[r] += wide * wide
    sum_I[first : first + num_rows] = sum_R[:num_rows]
    square_I[first : first + num_rows] = square_R[:num_rows]


# Rows scored against lists of columns.


@compiled
def score_lists(
    rows_IH: F32, offset_I: F32, sign_H: F32, weighted_JH: F32, base_J: F32, listed_IC: I32,
    key_IC: I64, num_pairs_I: I64,
) -> None:  # fmt: skip
    """Write the key of every distinct column in each row's ascending list, and their number."""
    num_listed = listed_IC.shape[1]
    # The last group is filled up, and another follows that is fetched and not scored.
    num_places = num_listed + 2 * GATHERED_COLUMNS
    padded_C = np.empty(num_places, np.int32)
    score_C = np.empty(num_places, np.float32)
    for i in range(len(rows_IH)):
        count = _move_distinct(listed_IC[i])
        num_pairs_I[i] = count
        for c in range(key_IC.shape[1]):
            key_IC[i, c] = NO_KEY + c
        if count == 0:
            continue
        padded_C[:count] = listed_IC[i, :count]
        padded_C[count:] = listed_IC[i, count - 1]
        for c in range(0, count, GATHERED_COLUMNS):
            if len(sign_H):
                score_gathered(rows_IH[i], sign_H, weighted_JH, base_J, padded_C, c, score_C)
            else:
                pair_gathered(rows_IH[i], offset_I[i], weighted_JH, base_J, padded_C, c, score_C)
        for c in range(count):
            key_IC[i, c] = key_of(score_C[c], listed_IC[i, c])


@compiled
def _move_distinct(listed_C: I32) -> int:
    """Move the distinct columns of an ascending list to its front and return their number."""
    count = 0
    for c in range(len(listed_C)):
        column = listed_C[c]
        if column >= 0 and (count == 0 or column != listed_C[count - 1]):
            listed_C[count] = column
            count += 1
    return count


# Matrix products of rows, summed in one fixed order: a row's bits are the same in any call.


def multiply_rows(x_NF: F32, matrix_FC: F32) -> F32:
    """Return x times the matrix [N, C], each number summed over F in order.

    Raises:
        ShapeError: If F differs.

    Memory: 4 * N * C bytes and the matrix, its columns padded to a multiple of 64.
    """
    if x_NF.ndim != 2 or matrix_FC.ndim != 2 or x_NF.shape[1] != len(matrix_FC):
        msg = f"{x_NF.shape} cannot be multiplied by {matrix_FC.shape}"
        raise ShapeError(msg)
    product_NC = np.empty((len(x_NF), matrix_FC.shape[1]), np.float32)
    num_panels = -(-matrix_FC.shape[1] // PANEL_COLUMNS)
    padded_FX = np.zeros((len(matrix_FC), num_panels * PANEL_COLUMNS), np.float32)
    padded_FX[:, : matrix_FC.shape[1]] = matrix_FC
    panel_PFC = padded_FX.reshape(len(matrix_FC), num_panels, PANEL_COLUMNS).transpose(1, 0, 2)
    _multiply(np.ascontiguousarray(x_NF, np.float32), np.ascontiguousarray(panel_PFC), product_NC)
    return product_NC


@compiled
def _multiply(x_NF: F32, panel_PFC: F32, product_NC: F32) -> None:
    num_columns, every = product_NC.shape[1], np.arange(len(x_NF))
    group_FR = np.empty((x_NF.shape[1], NUM_ROWS), np.float32)
    base_X = np.zeros(len(panel_PFC) * PANEL_COLUMNS, np.float32)
    product_RX = np.empty((NUM_ROWS, len(base_X)), np.float32)
    for first in range(0, len(x_NF), NUM_ROWS):
        gather_rows(x_NF, every, first, group_FR)
        for p in range(len(panel_PFC)):
            multiply_panel(group_FR, panel_PFC[p], base_X, product_RX, p * PANEL_COLUMNS)
        for r in range(min(NUM_ROWS, len(x_NF) - first)):
            for c in range(num_columns):
                product_NC[first + r, c] = product_RX[r, c]


@compiled
def gather_rows(rows_IF: F32, chosen_N: I64, first: int, group_FR: F32) -> None:
    """Write eight of the chosen rows, from `first` on, side by side; the last one fills up."""
    for r in range(NUM_ROWS):
        i = chosen_N[min(first + r, len(chosen_N) - 1)]
        for f in range(len(group_FR)):
            group_FR[f, r] = rows_IF[i, f]
