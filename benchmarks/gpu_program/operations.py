"""Floating-point operations of a kernel: those of its matrix products and convolutions.

A multiplication and an addition count as two. The operations of a convolution are those of the
direct algorithm, with the padding. Element-wise operations and sums are not counted: reading and
writing their arrays takes longer.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.gpu_program import target
from benchmarks.gpu_program.hlo import Computation, Instruction, Program, dims, dtype


class Work(NamedTuple):
    """The operations of one product or convolution.

    Attributes:
      flops: floating-point operations; of "three products in TensorFloat-32" those of all three.
      format: the format of the factors, if the program fixes it; None: that of the precision.
    """

    flops: float
    format: str | None = None

    def seconds(self, precision: str) -> float:
        """The least seconds at this precision."""
        return self.flops / target.RATES[self.format or precision]


def work(program: Program, computation: Computation, kernel: Instruction) -> Iterator[Work]:
    """The products and convolutions of a kernel, those of its fusion included."""
    if kernel.op == "dot":
        contracted = kernel.numbers("lhs_contracting_dims")
        yield _product(computation, kernel, contracted)
    elif kernel.op == "convolution" or "__cudnn$conv" in kernel.target:
        yield _work(computation, kernel, _convolution(computation, kernel))
    elif kernel.target.startswith("__cublas$"):
        listed = kernel.text(r'"lhs_contracting_dimensions":\[([^\]]*)\]') or ""
        yield _product(computation, kernel, tuple(map(int, re.findall(r"\d+", listed))))
    elif _is_patch_pool(kernel):
        patches, other = (dims(computation.shape(name)) for name in kernel.operands[:2])
        yield Work(2.0 * math.prod(patches) * other[-1])
    for name in kernel.called("calls"):
        inner = program.computations[name]
        for instruction in inner.instructions:
            yield from work(program, inner, instruction)


def is_counted(kernel: Instruction) -> bool:
    """False for a custom call whose operations are not known, such as a factorisation."""
    known = ("__cudnn$conv", "__cublas$")
    return kernel.op != "custom-call" or kernel.target.startswith(known) or _is_patch_pool(kernel)


def _is_patch_pool(kernel: Instruction) -> bool:
    """True for our kernels in Pallas: products of all patches with a kernel, or with a gradient."""
    return "triton" in kernel.target and (kernel.text(r' name = "(\w+)"') or "").startswith(
        "patch_pool"
    )


def _product(computation: Computation, kernel: Instruction, contracted: tuple[int, ...]) -> Work:
    left = dims(computation.shape(kernel.operands[0]))
    terms = math.prod(left[axis] for axis in contracted)
    return _work(computation, kernel, 2.0 * math.prod(dims(kernel.shape)) * terms)


def _work(computation: Computation, kernel: Instruction, flops: float) -> Work:
    """The work of a product that is computed once, or several times as its algorithm says."""
    algorithm = kernel.text(r"(?i)\balgorithm[=:\"]+(?:alg_)?dot_(\w+)")
    if algorithm:
        format, *_ = algorithm.lower().split("_")
        products = re.search(r"_x(\d)$", algorithm, re.IGNORECASE)
        return Work(flops * (int(products[1]) if products else 1), _FORMATS.get(format))
    kind = dtype(computation.shape(kernel.operands[0]))
    # Factors that are stored as float32 may still be rounded to another format.
    return Work(flops, _FORMATS.get(kind) if kind != "f32" else None)


_FORMATS = {"f32": "float32", "tf32": "tensorfloat32", "bf16": "bfloat16", "f16": "bfloat16"}


def _convolution(computation: Computation, kernel: Instruction) -> float:
    """Operations of a forward or a backward convolution, with any number of groups.

    All three use every entry of the kernel once for each image and each position of the output of
    the forward convolution. In a kernel [o, i / groups, ...], each output channel has the inputs
    of its group only.
    """
    labels = kernel.text(r"dim_labels=([\w?>\-]+)")
    out = (labels or "").split("->")[1]
    left, right = (dims(computation.shape(name)) for name in kernel.operands[:2])
    result = dims(kernel.shape)
    if "BackwardInput" in kernel.target:  # (gradient of the output, kernel) -> that of the image
        weights, positions = right, _positions(left, out)
    elif "BackwardFilter" in kernel.target:  # (image, gradient of the output) -> that of the kernel
        weights, positions = result, _positions(right, out)
    else:
        weights, positions = right, _positions(result, out)
    return 2.0 * positions * math.prod(weights)


def _positions(shape: tuple[int, ...], labels: str) -> int:
    """Images times positions of an output with labels such as b01f."""
    return math.prod(n for n, label in zip(shape, labels, strict=True) if label != "f")
