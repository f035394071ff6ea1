"""How the kernels of this package are compiled: on disk where a cache can be written, else anew."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.ir as llvmlite_ir  # pyright: ignore[reportMissingTypeStubs]
import numba  # pyright: ignore[reportMissingTypeStubs]
from numba.core import cgutils as numba_cgutils  # pyright: ignore[reportMissingTypeStubs]
from numba.core import types as numba_types  # pyright: ignore[reportMissingTypeStubs]
from numba.extending import (  # pyright: ignore[reportMissingTypeStubs]
    intrinsic as numba_intrinsic,  # pyright: ignore[reportUnknownVariableType]
)

SOURCES = Path(__file__).parent
DIGEST_HEX_LENGTH = 12

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function on its first call, keeping strict IEEE arithmetic.

    No fast-math: additions keep the order they are written in, so that the same numbers come out
    of vector bodies, scalar tails and machines with other vector widths.

    The machine code is cached beside the source or in the user's cache directory; where neither
    can be written (read-only images) it is compiled anew in every process.
    """
    njit = cast("Callable[..., Callable[[Function], Function]]", cast("Any", numba).njit)
    with _cache_of_these_sources():
        try:
            return njit(cache=True, error_model="numpy", nogil=True)(function)
        except RuntimeError:  # numba found no directory that it can write
            return njit(error_model="numpy", nogil=True)(function)


def sources_digest(folder: Path = SOURCES) -> str:
    """Name the state of all sources that a kernel may be compiled from."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:DIGEST_HEX_LENGTH]


@functools.cache
def _cache_folder(root: str) -> str:
    parent = Path(root) if root else SOURCES / "__pycache__"
    return str(parent / f"kernels-{sources_digest()}")


@contextmanager
def _cache_of_these_sources() -> Generator[None]:
    """Give every state of the sources a cache of its own.

    numba looks at the time of a function's own file only: after an upgrade it would run machine
    code into which an older version of an imported kernel was inlined.
    """
    config = cast("Any", numba).config
    given = str(config.CACHE_DIR or "")
    config.CACHE_DIR = _cache_folder(given)
    try:
        yield
    finally:
        config.CACHE_DIR = given


# Words for writing LLVM vector code with numba's builder: loads, lanes, maxima, fused steps.

ir, cgutils, types = (cast("Any", module) for module in (llvmlite_ir, numba_cgutils, numba_types))
intrinsic = cast("Any", numba_intrinsic)

FLOAT, DOUBLE, INT32, INT64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)


def vector_of(kind: Any, width: int) -> Any:
    """Return the type of so many floats or doubles side by side."""
    return ir.VectorType(kind, width)


def has_wide_registers(context: Any) -> bool:
    """Return whether numba compiles for 32 registers of 16 floats (AVX-512), not 16 of 8."""
    return "+avx512f" in context.codegen().magic_tuple()[2]


def array(context: Any, builder: Any, signature: Any, arguments: Any, index: int) -> Any:
    """Return the array that is an argument of the function; its `data` is a pointer."""
    return context.make_array(signature.args[index])(context, builder, arguments[index])


def arrays(context: Any, builder: Any, signature: Any, arguments: Any, count: int) -> list[Any]:
    """Return the first so many arguments of the function, which are arrays."""
    return [array(context, builder, signature, arguments, index) for index in range(count)]


def const(value: int) -> Any:
    """Return a 64-bit whole number."""
    return ir.Constant(INT64, value)


def register(builder: Any, value: Any) -> Any:
    """Return a variable with this value; LLVM keeps it in a register."""
    return cgutils.alloca_once_value(builder, value)


def load(builder: Any, data: Any, index: Any, kind: Any) -> Any:
    """Return the vector that starts at an index of the data."""
    place = builder.bitcast(builder.gep(data, [index]), kind.as_pointer())
    return builder.load(place, align=4)


def store(builder: Any, value: Any, data: Any, index: Any) -> None:
    """Write a vector at an index of the data."""
    place = builder.bitcast(builder.gep(data, [index]), value.type.as_pointer())
    builder.store(value, place, align=4)


def spread(builder: Any, data: Any, index: Any, kind: Any) -> Any:
    """Return a vector of one float, repeated."""
    return repeat(builder, builder.load(builder.gep(data, [index])), kind)


def repeat(builder: Any, value: Any, kind: Any) -> Any:
    """Return a vector of one value, repeated."""
    empty = ir.Constant(kind, ir.Undefined)
    return pick(builder, builder.insert_element(empty, value, const(0)), empty, [0] * kind.count)


def collect(builder: Any, data: Any, indices: list[Any]) -> Any:
    """Return a vector of the data at the given indices."""
    vector = ir.Constant(vector_of(data.type.pointee, len(indices)), ir.Undefined)
    for lane, index in enumerate(indices):
        value = builder.load(builder.gep(data, [index]))
        vector = builder.insert_element(vector, value, const(lane))
    return vector


def fetch(builder: Any, data: Any, index: Any) -> None:
    """Ask for the cache line of an index of the data, to be read soon."""
    place = builder.bitcast(builder.gep(data, [index]), ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [place.type, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    read, near, data_cache = (ir.Constant(INT32, value) for value in (0, 3, 1))
    builder.call(function, [place, read, near, data_cache])


def pick(builder: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    """Return the given lanes of two vectors laid end to end."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(INT32, len(lanes)), lanes))


def select(builder: Any, comparison: str, x: Any, y: Any) -> Any:
    """Return lane by lane x where `x comparison y` holds, else y: a maximum with ">"."""
    return builder.select(builder.fcmp_ordered(comparison, x, y), x, y)


def fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x * y + z, rounded once."""
    kind = ir.FunctionType(x.type, [x.type] * 3)
    name = f"llvm.fma.v{x.type.count}{'f32' if x.type.element == FLOAT else 'f64'}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x, y, z])


@contextmanager
def each_bit(builder: Any, bits: Any) -> Generator[Any]:
    """Run a body for every bit that is set in a variable, lowest first; yields its number."""
    kind = bits.type.pointee
    test, body, done = (builder.append_basic_block(name) for name in ("test", "body", "done"))
    builder.branch(test)
    builder.position_at_end(test)
    left = builder.load(bits)
    builder.cbranch(builder.icmp_unsigned("!=", left, ir.Constant(kind, 0)), body, done)
    builder.position_at_end(body)
    lane = builder.cttz(left, ir.Constant(ir.IntType(1), 1))
    builder.store(builder.and_(left, builder.sub(left, ir.Constant(kind, 1))), bits)
    yield builder.zext(lane, INT64)
    builder.branch(test)
    builder.position_at_end(done)


def keep_rolled(builder: Any, branch: Any) -> None:
    """Forbid LLVM to unroll a loop: two steps at once need more registers than there are."""
    rule = builder.module.add_metadata(["llvm.loop.unroll.disable"])
    loop = builder.module.add_metadata([rule])
    loop.operands = (loop, rule)  # a loop's name is a node that points to itself
    branch.set_metadata("llvm.loop", loop)
