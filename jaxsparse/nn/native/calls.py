"""Calls of the compiled blocks: arrays in, arrays out, no derivatives of their own.

Where a kernel has as many outputs as taps (9 c) or more, as a network's first has, the block is
the one of gram.h, else that of block.h.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsparse.nn import ops
from jaxsparse.nn.native.library import Library, NoLibrary, load


def has_few_channels(kernel: Array) -> bool:
    """Whether the block is that of gram.h, which gives no gradient of the images."""
    return ops.has_few_channels(kernel.shape)


def forward(
    images: Array, kernel: Array, scale: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, ...]]:
    """The block's output, and what `backward` needs of the way to it.

    Args:
      images: [n, h, w, c], float32; h, w >= 2.
      kernel: [3, 3, c, o], float32.
      scale: [o], float32.
      bias: [o], float32.
      eps: added to the variance.

    Returns:
      out [n, h // 2, w // 2, o], and the residuals, which only `backward` can read.
    """
    n, h, w, c = images.shape
    o = kernel.shape[3]
    wide = whole_vectors(o)
    tiles, windows = ((h + 1) // 2) * ((w + 1) // 2), (h // 2) * (w // 2)
    out, place = floats(n, h // 2, w // 2, o), jax.ShapeDtypeStruct((n, windows, wide), jnp.uint8)
    if has_few_channels(kernel):
        target, residuals = "GramForward", [floats(9 * c + 1, 9 * c), floats(c), place, floats(o)]
    else:
        y, unit = floats(n, tiles, 4, wide), floats(n, windows, wide)
        target, residuals = "BlockForward", [y, unit, place, floats(o), floats(o)]
    first, *saved = call(target, [out, *residuals], images, kernel, scale, bias, np.float32(eps))
    return first, tuple(saved)


def backward(
    images: Array, kernel: Array, scale: Array, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array | None, Array, Array, Array]:
    """The gradients of images, kernel, scale and bias, from that of the output.

    Args:
      images: [n, h, w, c], float32.
      kernel: [3, 3, c, o], float32.
      scale: [o], float32.
      saved: the residuals of `forward`.
      gradient: [n, h // 2, w // 2, o], float32.

    Returns:
      Four arrays, of the shapes of images, kernel, scale and of bias; None for the first where
      `has_few_channels`.
    """
    shapes = [floats(*x.shape) for x in (images, kernel, scale, scale)]
    args = (images, kernel, scale, *saved, gradient)
    if has_few_channels(kernel):
        d_kernel, d_scale, d_bias = call("GramBackward", shapes[1:], *args)
        return None, d_kernel, d_scale, d_bias
    d_images, d_kernel, d_scale, d_bias = call("BlockBackward", shapes, *args)
    return d_images, d_kernel, d_scale, d_bias


def call(
    handler: str, results: Sequence[jax.ShapeDtypeStruct], *args: Array | np.float32
) -> Sequence[Array]:
    """Call a handler of the library on float32 arrays."""
    target = loaded().targets[handler]
    # Under vmap one after the other: side by side they would only share the core's cache.
    return jax.ffi.ffi_call(target, results, vmap_method="sequential")(*args)


def whole_vectors(channels: int) -> int:
    """The number of channels in the residuals of so many: a multiple of a vector's length."""
    lanes = loaded().lanes
    return -(-channels // lanes) * lanes


def loaded() -> Library:
    """The library; ValueError where it cannot be had."""
    try:
        return load()
    except NoLibrary as reason:
        raise ValueError(f"form: 'native' needs a C++ compiler that works: {reason}") from reason


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """A result of this shape."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)
