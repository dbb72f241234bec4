"""The machine code of the Triton kernels: compiled for a GPU that need not be there, and taken apart.

    from minimrcnn.roi_ops import triton_code
    code = triton_code.compile_kernel("forward", torch.bfloat16, (9, 0))
    print(code.registers, code.spilled, code.count("LDG.E.128"))

What is compiled is what `triton_align` would launch: the launch is run on tensors without memory (device
"meta") and its arguments are kept in place of being sent to a GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minimrcnn.roi_ops import triton_align

KERNELS = ("forward", "scatter", "gather", "list")
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class MachineCode:
    """One kernel compiled for one architecture.

    Attributes:
        instructions: SASS, the GPU's own instructions, in order, each with its operands.
        ptx: the portable assembly it was made from.
        registers: of a thread; a GPU has 65,536 in each of its multiprocessors. spilled: bytes of a thread's
            numbers that did not fit in them and went to memory.
    """

    instructions: tuple[str, ...]
    ptx: str
    registers: int
    spilled: int

    def count(self, name: str) -> int:
        """How many instructions begin with `name`, such as "LDG.E.128"; a predicate before it is skipped."""
        pattern = re.compile(rf"(@!?U?P\w+ )?{re.escape(name)}(?![A-Za-z0-9])")
        return sum(bool(pattern.match(line)) for line in self.instructions)


def launch_arguments(kernel: str, dtype: torch.dtype, channels: int, bins: int, sampling_ratio: int) -> tuple:
    """The kernel and the arguments with which `triton_align` launches it for maps of 100 x 152 cells."""
    kept = {}

    class Keep:
        def __init__(self, function: triton.runtime.JITFunction) -> None:
            self.function = function

        def __getitem__(self, grid: tuple) -> Keep:
            return self

        def __call__(self, **arguments: object) -> None:
            kept[self.function.__name__] = self.function, arguments

    with mock.patch.object(triton_align, "wrap_triton", Keep), torch.device("meta"):
        boxes, index = torch.empty(16, 4), torch.empty(16, dtype=torch.int64)
        rois = boxes, index, index, [0.25]
        if kernel == "forward":
            maps = [torch.empty(2, channels, 100, 152, dtype=dtype)]
            triton_align.forward(maps, *rois, [bins, bins], sampling_ratio, False, "scatter")
        else:
            crops = torch.empty(16, channels, bins, bins, dtype=dtype)
            method = "scatter" if kernel == "scatter" else "gather"
            triton_align.backward(crops, *rois, 2, [100, 152], sampling_ratio, False, method)
    return kept[f"{kernel}_kernel"]


def compile_kernel(
    kernel: str,
    dtype: torch.dtype,
    capability: tuple[int, int],
    channels: int = 256,
    bins: int = 7,
    sampling_ratio: int = 2,
) -> MachineCode:
    """Compile a kernel without a GPU.

    Args:
        kernel: "forward", "scatter", "gather" or "list". dtype: of the features.
        capability: (8, 0) for an A100, (9, 0) for an H100 or H200, (10, 0) for a B200.
        channels, bins: of the crops (R, channels, bins, bins). sampling_ratio: 0 for the adaptive one.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so that there is nothing to compile.
    """
    if triton_align.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set, and an interpreted kernel is never compiled: unset it")
    function, arguments = launch_arguments(kernel, dtype, channels, bins, sampling_ratio)
    options = {"num_warps": arguments.pop("num_warps")}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(function.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]  # memory begins at a multiple of 16 bytes
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    compiled = triton.compile(source, target=target, options=options)
    return take_apart(compiled.asm["cubin"], compiled.asm["ptx"])


def take_apart(cubin: bytes, ptx: str) -> MachineCode:
    """Read a compiled kernel with the disassembler that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        sass, usage = (
            subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout
            for option in ("-sass", "-res-usage")
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", sass, re.MULTILINE)
    return MachineCode(tuple(instructions), ptx, int(registers), int(stack))
