"""What the Triton kernel compiles to, counted without a GPU: Triton's own compiler and NVIDIA's.

Suffixes as in the kernel.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

triton: Any = pytest.importorskip("triton", reason="Triton is not installed")

LANES = 32
#: A score of the paper's network takes a maximum and a multiply-add a unit, of the pair network a
#: multiply-add; beside them stand loads, of which wide tiles need few.
MOST_SLOTS_A_UNIT = {"paper": 2.55, "pair": 1.45}
#: Beside its units: statistics, and whether a list wants it. What follows if so is rarely run.
MOST_SLOTS_A_SCORE = {"paper": 33, "pair": 42}
LONG_JUMP = 300  # over what makes keys and changes lists


class Code(NamedTuple):
    """The machine code of a kernel: operations, and where from and to it jumps."""

    operations: list[str]
    jumps: list[tuple[int, int]]

    @property
    def loops(self) -> list[range]:
        return [range(goal, at + 1) for at, goal in self.jumps if goal < at]

    def in_loop(self, loop: range) -> Counter[str]:
        return Counter(self.operations[at] for at in loop)


def compile_fold(network: str, architecture: int, folder: Path) -> Code:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nncift_ray.scores import triton_kernel as kernel

    function: Any = kernel._fold
    constants: dict[str, Any] = {
        "PADDED_K": 64,
        "UNROLLED": kernel.UNROLLED,
        "ROWS": kernel.ROWS,
        "COLUMNS": kernel.COLUMNS,
        "OWN": kernel.OWN,
        "LAST_COLUMN": kernel.LAST_COLUMN,
        "FIRST_KEY": kernel.FIRST_KEY,
        "NO_KEY": kernel.NO_KEY,
        {"paper": "own_I", "pair": "sign_H"}[network]: None,
    }
    types = {"key_IK": "*i64", "sum_I": "*fp64", "sum_of_squares_I": "*fp64"}
    names = function.arg_names
    signature = {
        name: "constexpr"
        if name in constants
        else types.get(name, "*fp32" if re.search("_[A-Z]+$", name) else "i32")
        for name in names
    }
    aligned = [["tt.divisibility", 16]]
    source = ASTSource(
        function,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {
            (at,): aligned
            for at, name in enumerate(names)
            if signature[name].startswith("*") or name == "num_hidden"
        },
    )
    target = GPUTarget("cuda", architecture, LANES)
    compiled = triton.compile(source, target=target, options={"num_warps": kernel.WARPS})
    (folder / "fold.cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    text = subprocess.run(
        [tool, "-c", folder / "fold.cubin"], capture_output=True, text=True, check=True
    ).stdout
    return read_code(text)


def read_code(text: str) -> Code:
    operations: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        if label := re.match(r"(\.L_\w+):", line.strip()):
            labels[label[1]] = len(operations)
        elif found := re.match(r"\s+/\*\w+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)\S*(.*);", line):
            goal = re.search(r"`\((\.L_\w+)\)", found[2])
            if found[1] == "BRA" and goal:
                jumps.append((len(operations), goal[1]))
            operations.append(found[1])
    # The end of a kernel is a jump to itself.
    return Code(operations, [(at, labels[goal]) for at, goal in jumps if labels[goal] != at])


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("network", ["paper", "pair"])
def test_a_unit_costs_little_more_than_its_arithmetic(
    network: str, architecture: int, tmp_path: Path
) -> None:
    from nncift_ray.scores.triton_kernel import COLUMNS, ROWS, UNROLLED, WARPS

    code = compile_fold(network, architecture, tmp_path)
    scores = ROWS * COLUMNS // (LANES * WARPS)  # of a thread
    wanted = Counter(FFMA=scores * UNROLLED)
    if network == "paper":
        wanted["FMNMX"] = scores * UNROLLED
    loops = [loop for loop in code.loops if wanted.items() <= code.in_loop(loop).items()]
    assert len(loops) == 1, "one loop over units"
    unit_loop = code.in_loop(loops[0])
    assert unit_loop["BAR"] == unit_loop["SHFL"] == unit_loop["STS"] == 0
    assert unit_loop["ISETP"] <= 1  # the loop's own: no masks
    assert unit_loop.total() <= MOST_SLOTS_A_UNIT[network] * scores * UNROLLED
    assert not {"LDL", "STL"} & unit_loop.keys()  # nothing is spilled
    tile = max((loop for loop in code.loops if loops[0].start in loop), key=len)
    at, goal = min(
        jump for jump in code.jumps if jump[0] > loops[0].stop and jump[1] - jump[0] > LONG_JUMP
    )
    beside = len(tile) - len(loops[0]) - len(range(at + 1, min(goal, tile.stop)))
    assert beside <= MOST_SLOTS_A_SCORE[network] * scores


def test_a_loop_is_found_by_its_jump_back() -> None:
    text = """
.L_x_1:
        /*0010*/                   FFMA R1, R2, R3, R1 ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/                   EXIT ;
"""
    code = read_code(text)
    assert code.operations == ["FFMA", "BRA", "BRA", "EXIT"]
    assert code.jumps == [(1, 3), (2, 0)]
    assert code.loops == [range(0, 3)]
