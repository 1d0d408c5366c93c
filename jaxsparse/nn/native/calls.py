"""JAX functions that call the compiled blocks. They have no derivatives.

If a kernel has at least as many outputs as taps (9 c), like the first of a network, the block of
gram.h is used, else that of block.h.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsparse.nn import ops
from jaxsparse.nn.native.library import Library, NoLibrary, load


def has_few_channels(kernel: Array) -> bool:
    """True if the block of gram.h is used, which does not compute the gradient of the images."""
    return ops.has_few_channels(kernel.shape)


def forward(
    images: Array, kernel: Array, scale: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, ...]]:
    """The output [n, h // 2, w // 2, o] of the block, and the residuals for `backward`.

    All arguments are float32: images [n, h, w, c], kernel [3, 3, c, o], scale and bias [o].
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
    """The gradients of images (None if `has_few_channels`), kernel, scale and bias.

    `saved` are the residuals of `forward`; `gradient` is that of its output.
    """
    shapes = [floats(*x.shape) for x in (images, kernel, scale, scale)]
    args = (images, kernel, scale, *saved, gradient)
    if has_few_channels(kernel):
        d_kernel, d_scale, d_bias = call("GramBackward", shapes[1:], *args)
        return None, d_kernel, d_scale, d_bias
    d_images, d_kernel, d_scale, d_bias = call("BlockBackward", shapes, *args)
    return d_images, d_kernel, d_scale, d_bias


def conv_forward(images: Array, kernel: Array) -> Array:
    """The convolution of images [n, h, w, c] with a kernel [3, 3, c, o], in 2x2 tiles.

    Returns [n, ceil(h / 2) ceil(w / 2), 4, o], with the tiles and their entries in row order. It is
    zero outside the images. All arrays are float32.
    """
    n, h, w, _ = images.shape
    o = kernel.shape[3]
    tiles = ((h + 1) // 2) * ((w + 1) // 2)
    (y,) = call("ConvForward", [floats(n, tiles, 4, whole_vectors(o))], images, kernel)
    return y[..., :o]


def conv_backward(images: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    """The gradients of images and kernel, from that of the output of `conv_forward`."""
    shapes = [floats(*x.shape) for x in (images, kernel)]
    d_images, d_kernel = call("ConvBackward", shapes, images, kernel, gradient)
    return d_images, d_kernel


def call(
    handler: str, results: Sequence[jax.ShapeDtypeStruct], *args: Array | np.float32
) -> Sequence[Array]:
    """Call a handler of the library with float32 arrays."""
    target = loaded().targets[handler]
    # Under vmap, one call after the other: parallel calls would compete for the core's cache.
    return jax.ffi.ffi_call(target, results, vmap_method="sequential")(*args)


def whole_vectors(channels: int) -> int:
    """`channels`, rounded up to a multiple of a vector, as in the residuals."""
    lanes = loaded().lanes
    return -(-channels // lanes) * lanes


def loaded() -> Library:
    """The library; ValueError if it is not available."""
    try:
        return load()
    except NoLibrary as reason:
        raise ValueError(f"form: 'native' needs a C++ compiler that works: {reason}") from reason


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a float32 result."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)
