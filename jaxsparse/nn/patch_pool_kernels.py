"""The GPU kernels of `patch_pool`, in Pallas."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

_PLACES = 4  # as in `patch_pool`, which imports this module
_CUT = 4

_ROWS = 32  # windows of a block
_LEAST = 16  # rows and columns of a product of Triton
_PROGRAMS = 512  # about how many programs of a kernel fill a GPU: two rounds on 132 processors


def _padded(size: int) -> int:
    """The number of columns in a block: Triton wants a power of two."""
    return max(_LEAST, 2 ** math.ceil(math.log2(size)))


def _at_precision(precision: str) -> Any:
    exact = precision in ("float32", "highest", "BF16_BF16_F32_X6", "BF16_BF16_F32_X9")
    return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT


class _Block:
    """The rows and columns that a program works on, and which of them exist."""

    def __init__(self, block: Array, count: int, columns: int, inner: int):
        self.row = block * _ROWS + jnp.arange(_ROWS)
        self.column = jnp.arange(_padded(columns))
        self.inner = jnp.arange(_padded(inner))
        self.has_row, self.has_column = self.row < count, self.column < columns
        self.has_inner = self.inner < inner

    def load_patches(self, ref: Any, task: Array, place: int) -> Array:
        at = ref.at[task, place, self.row[:, None], self.inner[None]]
        return triton.load(at, mask=self.has_row[:, None] & self.has_inner[None], other=0.0)

    def load_kernel(self, ref: Any, task: Array) -> Array:
        at = ref.at[task, self.inner[:, None], self.column[None]]
        return triton.load(at, mask=self.has_inner[:, None] & self.has_column[None], other=0.0)

    def of(self, ref: Any, task: Array) -> tuple[Any, Array]:
        """A block of an array [windows, tasks, columns], and the mask of what exists."""
        at = ref.at[self.row[:, None], task, self.column[None]]
        return at, self.has_row[:, None] & self.has_column[None]


def _pool(patches: Any, kernel: Any, out: Any, place: Any, *, precision: Any) -> None:
    task = pl.program_id(1)
    block = _Block(pl.program_id(0), patches.shape[2], kernel.shape[2], patches.shape[3])
    weights = block.load_kernel(kernel, task)
    products = [
        jnp.dot(block.load_patches(patches, task, i), weights, precision=precision)
        for i in range(_PLACES)
    ]
    best, chosen = products[0], jnp.zeros(products[0].shape, jnp.int32)
    for i, y in enumerate(products[1:], 1):
        ahead = (y > best) | ((y != y) & (best == best))  # NaN is the only number unequal to itself
        best, chosen = jnp.where(ahead, y, best), jnp.where(ahead, i, chosen)
    stopped = best <= 0
    at, mask = block.of(out, task)
    triton.store(at, jnp.where(stopped, 0.0, best), mask=mask)
    at, mask = block.of(place, task)
    triton.store(at, jnp.where(stopped, _CUT, chosen).astype(jnp.uint8), mask=mask)


def pool(
    patches: Array, kernel: Array, *, precision: str, interpret: bool = False
) -> tuple[Array, Array]:
    """Patches [t, 4, windows, k] and kernels [t, k, o] -> output and places [windows, t, o]."""
    tasks, _, windows, _ = patches.shape
    shape = (windows, tasks, kernel.shape[-1])
    return pl.pallas_call(
        partial(_pool, precision=_at_precision(precision)),
        grid=(pl.cdiv(windows, _ROWS), tasks),
        out_shape=[
            jax.ShapeDtypeStruct(shape, patches.dtype),
            jax.ShapeDtypeStruct(shape, jnp.uint8),
        ],
        compiler_params=triton.CompilerParams(),
        interpret=interpret,
        name="patch_pool",
    )(patches, kernel)


def _kernel_gradient(
    patches: Any, gradient: Any, place: Any, out: Any, *, blocks: int, precision: Any
) -> None:
    part, task = pl.program_id(0), pl.program_id(1)
    windows, columns = patches.shape[2], gradient.shape[2]

    def add(i: Array, total: Array) -> Array:
        block = _Block(part * blocks + i, windows, columns, patches.shape[3])
        at, mask = block.of(gradient, task)
        own = triton.load(at, mask=mask, other=0.0)
        at, mask = block.of(place, task)
        chosen = triton.load(at, mask=mask, other=_CUT).astype(jnp.int32)
        for p in range(_PLACES):
            here = jnp.where(chosen == p, own, 0.0)
            rows = block.load_patches(patches, task, p)
            total += jnp.dot(rows.T, here, precision=precision)
        return total

    size = _padded(patches.shape[3]), _padded(columns)
    total = jax.lax.fori_loop(0, blocks, add, jnp.zeros(size, jnp.float32))
    inner, column = jnp.arange(size[0]), jnp.arange(size[1])
    exists = (inner < patches.shape[3])[:, None] & (column < columns)[None]
    triton.store(out.at[part, task, inner[:, None], column[None]], total, mask=exists)


def kernel_gradient(
    patches: Array, gradient: Array, place: Array, *, precision: str, interpret: bool = False
) -> Array:
    """The gradient of the kernels [t, k, o], given that of the output [windows, t, o].

    Each program adds several blocks of windows up; XLA adds the results of the programs.
    """
    tasks, _, windows, k = patches.shape
    columns = gradient.shape[-1]
    blocks = pl.cdiv(pl.cdiv(windows, _ROWS), max(1, _PROGRAMS // tasks))
    parts = pl.cdiv(windows, _ROWS * blocks)
    found = pl.pallas_call(
        partial(_kernel_gradient, blocks=blocks, precision=_at_precision(precision)),
        grid=(parts, tasks),
        out_shape=jax.ShapeDtypeStruct((parts, tasks, k, columns), jnp.float32),
        compiler_params=triton.CompilerParams(),
        interpret=interpret,
        name="patch_pool_kernel_gradient",
    )(patches, gradient, place)
    return jnp.sum(found, 0).astype(patches.dtype)
