"""Convolution, normalisation and pooling whose gradients stay fast inside a compiled loop.

XLA's own convolution gradient falls to a naive form in a loop on the CPU (jax-ml/jax issue 12868),
and a convolution with one kernel per task, which `vmap` makes of it, is slow on every platform.
Here all arithmetic is matrix products and sums of slices, and stays so in every derivative.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from jaxsparse.nn import winograd
from jaxsparse.nn.products import matmul, transposed_product
from jaxsparse.precision import custom_vjp, float32_by_default

# Below this many output positions sixteen small products cost more than one over patches.
_WINOGRAD_POSITIONS = 2000


def has_few_channels(kernel: tuple[int, ...]) -> bool:
    """Whether a kernel [k, k, c, o] has as many outputs as taps, k² c, or more."""
    return math.prod(kernel[:3]) <= kernel[3]


def fastest_on_cpu(images: tuple[int, ...], kernel: tuple[int, ...]) -> str:
    """Name the fastest of XLA's forms of a block with a 3x3 convolution, for these shapes."""
    if has_few_channels(kernel):
        return "gram"
    return "winograd" if math.prod(images[:3]) >= _WINOGRAD_POSITIONS else "patches"


def patches(images: Array, size: int, stride: int, padding: int) -> Array:
    """[n, h, w, c] -> [n, h', w', size² c]: what each output position of a convolution sees."""
    pad = (padding, padding)
    images = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    h, w = images.shape[1] - size + 1, images.shape[2] - size + 1
    cuts = [
        images[:, i : i + h : stride, j : j + w : stride] for i in range(size) for j in range(size)
    ]
    return cuts[0] if size == 1 else jnp.concatenate(cuts, axis=-1)


def of_rank(rank: int, x: Array) -> Array:
    """`x` with leading axes of length 1: JAX can be told to broadcast no array of lower rank."""
    return jnp.expand_dims(x, tuple(range(rank - x.ndim)))


def _by_patches(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    size, _, inputs, outputs = kernel.shape
    seen = patches(images, size, stride, padding)
    flat = matmul(seen.reshape(-1, size * size * inputs), kernel.reshape(-1, outputs))
    return flat.reshape(*seen.shape[:3], outputs)


@custom_vjp
def _by_patches_same(images: Array, kernel: Array) -> Array:
    """Stride 1, odd size, same padding: the input gradient is again such a convolution."""
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
    """Convolve images with a square kernel (as networks do it: without flipping the kernel).

    out[n, y, x, o] = Σ_ijc images[n, stride y + i - padding, stride x + j - padding, c]
                           kernel[i, j, c, o],  zero outside the image.

    Args:
      images: [n, h, w, c], float.
      kernel: [k, k, c, o], of the dtype of images.
      stride: in pixels, both ways.
      padding: in pixels, on all sides; k // 2 by default.
      form: "winograd" (3x3, stride 1, padding 1 only) or "patches": the same values, computed
        differently; NaN and infinity in an image reach some pixels more by "winograd". Default:
        the fastest known for the shape on the CPU, "patches" elsewhere, chosen when the program
        is compiled for a platform.

    Returns:
      [n, h', w', o] with h' = (h + 2 padding - k) // stride + 1, in the dtype of images.

    Raises:
      ValueError: for shapes that do not fit, or a form that cannot do them.

    Example:
      >>> conv(jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 8)), stride=2).shape
      (2, 5, 5, 8)

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
    if form is None and plain and fastest_on_cpu(images.shape, kernel.shape) == "winograd":
        return jax.lax.platform_dependent(
            images, kernel, cpu=_by_winograd, default=_by_patches_same
        )
    if stride == 1 and size % 2 and padding == size // 2:
        return _by_patches_same(images, kernel)
    return _by_patches(images, kernel, stride, padding)


def _by_winograd(images: Array, kernel: Array) -> Array:
    quads = winograd.conv_quads(images.astype(jnp.float32), kernel.astype(jnp.float32))
    return winograd.join(quads, *images.shape[1:3]).astype(images.dtype)


def batch_norm(x: Array, scale: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """Normalise each channel by the statistics of the batch at hand.

    out = scale (x - mean(x)) / sqrt(var(x) + eps) + bias, with the biased variance.

    Args:
      x: [..., c], float; the statistics are over all axes but the last, in float32.
      scale: [c], float.
      bias: [c], float.
      eps: added to the variance.

    Returns:
      [..., c], in the dtype of x.

    Raises:
      ValueError: for shapes that do not fit.

    Example:
      >>> batch_norm(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1)).round(3).tolist()
      [[-1.0], [1.0]]

    Source: Ioffe & Szegedy, Batch Normalization, 2015, Algorithm 1.
    """
    for name, p in (("scale", scale), ("bias", bias)):
        if p.shape != x.shape[-1:]:
            raise ValueError(f"{name}: got shape {p.shape}, want {x.shape[-1:]}")
    axes = tuple(range(x.ndim - 1))
    wide, scale, bias = (a.astype(jnp.float32) for a in (x, scale, bias))
    mean = jnp.mean(wide, axes)
    variance = jnp.mean(jnp.square(wide - of_rank(x.ndim, mean)), axes)
    gain = scale * inverse_deviation(variance, eps)
    shift = bias - mean * gain
    return (wide * of_rank(x.ndim, gain) + of_rank(x.ndim, shift)).astype(x.dtype)


def inverse_deviation(variance: Array, eps: float) -> Array:
    """1 / sqrt(variance + eps); NaN where the variance is infinite, for zero would hide that."""
    return jax.lax.rsqrt(jnp.where(jnp.isinf(variance), jnp.nan, variance) + eps)


def max_pool(x: Array, *, padding: int = 0) -> Array:
    """Take the largest of each 2x2 window, at stride 2; an odd last row or column is dropped.

    Among equal entries the first in row order receives the gradient (PyTorch's rule). NaN counts as
    the largest.

    Args:
      x: [n, h, w, c], float.
      padding: in pixels, on all sides, with what is never the largest.

    Returns:
      [n, (h + 2 padding) // 2, (w + 2 padding) // 2, c], in the dtype of x.

    Raises:
      ValueError: if x is not of rank 4 or smaller than one window.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1)).ravel().tolist()
      [5.0, 7.0, 13.0, 15.0]
    """
    if x.ndim != 4 or min(x.shape[1:3]) + 2 * padding < 2:
        raise ValueError(f"x: got shape {x.shape}, want [n, h, w, c] of at least one 2x2 window")
    pad = (padding, padding)
    if padding:
        x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=-jnp.inf)
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    a, b, c, d = (x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1))
    top = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    # Selecting makes the gradient follow the rule above; that of `maximum` is shared among equals.
    a_top, b_top, c_top = ((q == top) | jnp.isnan(q) for q in (a, b, c))
    return jnp.where(a_top, a, jnp.where(b_top, b, jnp.where(c_top, c, d)))
