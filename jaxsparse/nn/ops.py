"""Convolution, norm and pooling with gradients that are fast inside a compiled loop.

On the CPU, XLA computes the gradient of a convolution in a loop by a naive algorithm (jax-ml/jax
issue 12868). `vmap` over tasks makes a convolution with one kernel per task, which is slow on every
platform. Here convolutions and all their derivatives consist of matrix products and sums of slices.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxsparse.nn import winograd
from jaxsparse.nn.grouped import convolve
from jaxsparse.nn.products import matmul, transposed_product
from jaxsparse.precision import custom_vjp, float32_by_default

# With fewer output positions, the sixteen small products are slower than a single one over patches.
_WINOGRAD_POSITIONS = 2000


def has_few_channels(kernel: tuple[int, ...]) -> bool:
    """True if a kernel [k, k, c, o] has at least as many outputs o as taps k² c."""
    return math.prod(kernel[:3]) <= kernel[3]


def fastest_on_cpu(images: tuple[int, ...], kernel: tuple[int, ...]) -> str:
    """The name of the fastest XLA form of a block with a 3x3 convolution, for these shapes."""
    if has_few_channels(kernel):
        return "gram"
    return "winograd" if math.prod(images[:3]) >= _WINOGRAD_POSITIONS else "patches"


def patches(images: Array, size: int, stride: int, padding: int) -> Array:
    """[n, h, w, c] -> [n, h', w', size² c]: the input patch of each output position (im2col)."""
    pad = (padding, padding)
    images = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    h, w = images.shape[1] - size + 1, images.shape[2] - size + 1
    cuts = [
        images[:, i : i + h : stride, j : j + w : stride] for i in range(size) for j in range(size)
    ]
    return cuts[0] if size == 1 else jnp.concatenate(cuts, axis=-1)


def of_rank(rank: int, x: Array) -> Array:
    """`x` with leading axes of length 1, as `jax_numpy_rank_promotion` may forbid broadcasting."""
    return jnp.expand_dims(x, tuple(range(rank - x.ndim)))


def _by_patches(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    size, _, inputs, outputs = kernel.shape
    seen = patches(images, size, stride, padding)
    flat = matmul(seen.reshape(-1, size * size * inputs), kernel.reshape(-1, outputs))
    return flat.reshape(*seen.shape[:3], outputs)


@custom_vjp
def _by_patches_same(images: Array, kernel: Array) -> Array:
    """Stride 1, odd size, same padding: the gradient of the images is such a convolution, too."""
    return _by_patches(images, kernel, 1, kernel.shape[0] // 2)


def _same_forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    size, _, inputs, outputs = kernel.shape
    seen = patches(images, size, 1, size // 2)
    flat = seen.reshape(-1, size * size * inputs) @ kernel.reshape(-1, outputs)
    return flat.reshape(*images.shape[:3], outputs), (seen, kernel)


def _same_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    seen, kernel = saved
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    rows = seen.reshape(-1, seen.shape[-1])
    flat = transposed_product(rows, gradient.reshape(-1, kernel.shape[-1]))
    return _by_patches_same(gradient, flipped), flat.reshape(kernel.shape)


_by_patches_same.defvjp(_same_forward, _same_backward)


@float32_by_default
def conv(
    images: Array,
    kernel: Array,
    *,
    stride: int = 1,
    padding: int | None = None,
    form: str | None = None,
) -> Array:
    """Convolve images with a square kernel, which is not flipped.

    out[n, y, x, o] = Σ_ijc images[n, stride y + i - padding, stride x + j - padding, c]
                           kernel[i, j, c, o],  zero outside the image.

    images is [n, h, w, c]; kernel is [k, k, c, o], of the same dtype; padding is k // 2 by default.
    Returns [n, h', w', o] with h' = (h + 2 padding - k) // stride + 1.

    form is "patches" or, for 3x3 kernels with stride 1 and padding 1, "winograd". They compute the
    same values, but with "winograd" a NaN or infinity in an image affects a few more pixels. By
    default, it is the fastest for the shape on the CPU. Elsewhere, it is XLA's convolution for odd
    kernels with stride 1 and padding k // 2, and otherwise "patches".

    Source: Dumoulin & Visin, A guide to convolution arithmetic for deep learning, 2016.
    """
    if images.ndim != 4:
        raise ValueError(f"images: got shape {images.shape}, want [n, h, w, c]")
    size = kernel.shape[0] if kernel.ndim else 0
    if kernel.ndim != 4 or kernel.shape[:3] != (size, size, images.shape[3]):
        raise ValueError(f"kernel: got shape {kernel.shape}, want [k, k, {images.shape[3]}, o]")
    padding = size // 2 if padding is None else padding
    plain = (size, stride, padding) == (3, 1, 1)
    if form not in (None, "patches", "winograd") or (form == "winograd" and not plain):
        raise ValueError(f"form: got {form!r}, want 'patches', or 'winograd' for 3x3 at stride 1")
    if form == "winograd":
        return _by_winograd(images, kernel)
    if stride > 1 or size % 2 == 0 or padding != size // 2:
        return _by_patches(images, kernel, stride, padding)
    if form == "patches":
        return _by_patches_same(images, kernel)
    fast = plain and fastest_on_cpu(images.shape, kernel.shape) == "winograd"
    return jax.lax.platform_dependent(
        images,
        kernel,
        cpu=_by_winograd if fast else _by_patches_same,
        default=partial(convolve, padding=padding),
    )


def _by_winograd(images: Array, kernel: Array) -> Array:
    quads = winograd.conv_quads(images.astype(jnp.float32), kernel.astype(jnp.float32))
    return winograd.join(quads, *images.shape[1:3]).astype(images.dtype)


def batch_norm(x: Array, scale: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """Normalise each channel of x [..., c] by the statistics of this batch.

    out = scale (x - mean(x)) / sqrt(var(x) + eps) + bias, with the biased variance, in float32.

    Source: Ioffe & Szegedy, Batch Normalization, 2015, Algorithm 1.
    """
    check_per_channel(x.shape[-1], scale=scale, bias=bias)
    return normalise(x, *moments(x), scale, bias, eps=eps)


def check_per_channel(channels: int, **arrays: Array) -> None:
    """Raise ValueError unless every array has one entry per channel."""
    for name, x in arrays.items():
        if x.shape != (channels,):
            raise ValueError(f"{name}: got shape {x.shape}, want {(channels,)}")


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of x [..., c], float32 [c]."""
    axes, wide = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
    mean = jnp.mean(wide, axes)
    return mean, jnp.mean(jnp.square(wide - of_rank(x.ndim, mean)), axes)


def normalise(
    x: Array, mean: Array, variance: Array, scale: Array, bias: Array, *, eps: float = 1e-5
) -> Array:
    """`batch_norm` with the given mean and variance of each channel, [c]."""
    wide, scale, bias = (a.astype(jnp.float32) for a in (x, scale, bias))
    gain = scale * inverse_deviation(variance, eps)
    shift = bias - mean * gain
    return (wide * of_rank(x.ndim, gain) + of_rank(x.ndim, shift)).astype(x.dtype)


def inverse_deviation(variance: Array, eps: float) -> Array:
    """1 / sqrt(variance + eps); NaN if the variance is infinite, as zero would hide that."""
    return jax.lax.rsqrt(jnp.where(jnp.isinf(variance), jnp.nan, variance) + eps)


def max_pool(x: Array, *, padding: int = 0) -> Array:
    """2x2 max-pooling of x [n, h, w, c] with stride 2; an odd last row or column is dropped.

    Among equal entries, the first in row order receives the gradient, as in PyTorch. NaN counts as
    the largest. The padding is -inf.
    """
    if x.ndim != 4 or min(x.shape[1:3]) + 2 * padding < 2:
        raise ValueError(f"x: got shape {x.shape}, want [n, h, w, c] of at least one 2x2 window")
    pad = (padding, padding)
    if padding:
        x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=-jnp.inf)
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    a, b, c, d = (x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1))
    top = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    # `where` sends the gradient to the first maximum; `jnp.maximum` would divide it among equals.
    a_top, b_top, c_top = ((q == top) | jnp.isnan(q) for q in (a, b, c))
    return jnp.where(a_top, a, jnp.where(b_top, b, jnp.where(c_top, c, d)))
