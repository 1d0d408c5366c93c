"""The Conv4 block for GPUs: cuDNN's convolutions, and few passes over their output."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsparse.nn import ops
from jaxsparse.nn.grouped import alongside, convolve, kernel_gradient
from jaxsparse.nn.patch_pool import CUT, patch_pool
from jaxsparse.precision import custom_vjp


def block(
    images: "Array | Prepared",
    kernel: Array,
    scale: Array,
    bias: Array,
    eps: float,
    *,
    pallas: bool = False,
) -> Array:
    """The block of `blocks.conv_norm_pool`; `pallas` as in `patch_pool`."""
    if ops.has_few_channels(kernel.shape):
        prepared = images if isinstance(images, Prepared) else prepare(images)
        return _from_moments(eps, pallas, prepared, kernel, scale, bias)
    return _norm_pool(eps, convolve(plain(images), kernel, 1), scale, bias)


# ---- norm and pooling of a convolution


def _windows(y: Array) -> list[Array]:
    """The four positions in the pooling windows, in row order; an odd edge is padded with zeros."""
    _, h, w, _ = y.shape
    y = lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), (0, h % 2, 0), (0, w % 2, 0), (0, 0, 0)])
    return [y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]


def _choose(windows: list[Array], scale: Array) -> tuple[Array, Array]:
    """The entry with the largest value after the norm, and its place in the window.

    The norm keeps the order of the entries if its gain is positive, else it reverses it.
    """
    a, b, c, d = windows
    high = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    low = jnp.minimum(jnp.minimum(a, b), jnp.minimum(c, d))
    top = jnp.where(alongside(scale, a) >= 0, high, low)
    zero, one, two, three = (alongside(i, a) for i in range(4))
    place = jnp.where(a == top, zero, jnp.where(b == top, one, jnp.where(c == top, two, three)))
    # Selecting, rather than returning `top`, keeps the tie rule in the second derivative.
    chosen = jnp.where(a == top, a, jnp.where(b == top, b, jnp.where(c == top, c, d)))
    return chosen, place.astype(jnp.uint8)


def _normalised(
    chosen: Array, place: Array, mean: Array, inverse: Array, scale: Array, bias: Array
) -> tuple[Array, Array]:
    """The output of the block, and the places from which its gradient comes."""
    unit = (chosen - alongside(mean, chosen)) * alongside(inverse, chosen)
    out = jnp.maximum(unit * alongside(scale, unit) + alongside(bias, unit), 0)
    place = jnp.where(out <= 0, alongside(CUT, place), place)
    # Without the barrier, XLA would compute the places again in the backward pass.
    return lax.optimization_barrier((out, place))


def spread(x: Array, place: Array, size: tuple[int, ...], padding: int = 0) -> Array:
    """Put the entries of x at their places in windows of an array of this size, zero elsewhere.

    The windows are those of a pooling with this padding.
    """
    _, h, w, _ = x.shape

    def part(i: int, j: int) -> Array:
        here = jnp.where(place == 2 * i + j, x, alongside(0, x))
        edges = [(k - padding, n, m) for k, n, m in ((i, size[0], h), (j, size[1], w))]
        pads = [(low, n - 2 * m + 1 - low, 1) for low, n, m in edges]
        return lax.pad(here, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])

    return part(0, 0) + part(0, 1) + part(1, 0) + part(1, 1)


def sums(*arrays: Array) -> Array:
    """The sums of each channel of several arrays [n, h, w, c] of equal shape, [len(arrays), c].

    First of each image, as XLA then needs no kernels of its own to divide the sums.
    """
    return jnp.sum(jnp.stack([jnp.sum(x, (1, 2)) for x in arrays]), 1)


def _statistics(both: Array, count: int, eps: float) -> tuple[Array, Array]:
    """The mean and the inverse deviation, from the sums of the entries and of their squares."""
    total, squares = both
    mean = total / count
    variance = jnp.maximum(squares / count - mean * mean, 0)
    return mean, ops.inverse_deviation(variance, eps)


@partial(custom_vjp, nondiff_argnums=(0,))
def _norm_pool(eps: float, y: Array, scale: Array, bias: Array) -> Array:
    return _norm_pool_forward(eps, y, scale, bias)[0]


def _norm_pool_forward(eps: float, y: Array, scale: Array, bias: Array) -> tuple[Array, tuple]:
    """One pass over y gives its statistics and the entries that pooling takes."""
    n, h, w, _ = y.shape
    # Relative to one value of the channel, as the mean of squares alone would cancel.
    windows = _windows(y - alongside(y[0, 0, 0], y))
    a, b, c, d = windows
    both = sums(a + b + c + d, a * a + b * b + c * c + d * d)
    chosen, place = _choose(windows, scale)
    # Without the barrier, XLA would compute the places in the backward pass, from y.
    both, chosen, place = lax.optimization_barrier((both, chosen, place))
    chosen, place = (x[:, : h // 2, : w // 2] for x in (chosen, place))
    mean, inverse = _statistics(both, n * h * w, eps)
    out, place = _normalised(chosen, place, mean, inverse, scale, bias)
    return out, (y, scale, mean, inverse, place, chosen)


def _norm_pool_backward(eps: float, saved: tuple, gradient: Array) -> tuple[Array, Array, Array]:
    y, scale, mean, inverse, place, chosen = saved
    n, h, w, _ = y.shape
    gradient = jnp.where(place == CUT, alongside(0, gradient), gradient)
    unit = (chosen - alongside(mean, chosen)) * alongside(inverse, chosen)
    d_bias, d_scale = sums(gradient, gradient * unit)
    gain = scale * inverse
    level, slope = gain * d_bias / (n * h * w), gain * inverse * d_scale / (n * h * w)
    dz = spread(gradient * alongside(gain, gradient), place, (h, w))
    centred = y - alongside(y[0, 0, 0], y) - alongside(mean, y)
    dy = dz - alongside(level, y) - centred * alongside(slope, y)
    return dy, d_scale, d_bias


_norm_pool.defvjp(_norm_pool_forward, _norm_pool_backward)


# ---- a first layer with few channels


class Prepared(NamedTuple):
    """Images with what the first block needs of them, whatever its parameters.

    The patches are those of the images less their mean; without it, products would cancel.

    Attributes:
      images: [n, h, w, c].
      patches: those of each place in a pooling window, and a one, [4, n, h // 2, w // 2, 9 c + 1].
      moments: the mean of all patches, and their covariance, [9 c + 1, 9 c].
    """

    images: Array
    patches: Array
    moments: Array


def plain(images: Array | Prepared) -> Array:
    """The images, without what `prepare` has added."""
    return images.images if isinstance(images, Prepared) else images


def prepare(images: Array) -> Prepared:
    """The `Prepared` of images."""
    n, h, w, c = images.shape
    centre = ops.of_rank(4, jnp.mean(images, (0, 1, 2)))
    framed = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))) - centre
    patches = ops.patches(framed, 3, 1, 0)
    means = jnp.mean(patches, (0, 1, 2))
    products = kernel_gradient(framed, patches, 0, 3).reshape(9 * c, 9 * c)
    covariance = products / (n * h * w) - means[:, None] * ops.of_rank(2, means)
    with_one = jnp.pad(patches, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
    kept = with_one[:, : h // 2 * 2, : w // 2 * 2]
    places = jnp.stack([kept[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    return Prepared(images, places, jnp.concatenate([ops.of_rank(2, means), covariance]))


def _from_moments(
    eps: float, pallas: bool, prepared: Prepared, kernel: Array, scale: Array, bias: Array
) -> Array:
    """The block, with batch-norm statistics from the patches P of the images.

    The output y = P k is linear in P, so mean(y) = mean(P) k and var(y) = diag(kᵀ cov(P) k). The
    norm is part of the kernel, and the shift is the kernel's row for the one in the patches.
    """
    flat = kernel.reshape(-1, kernel.shape[-1])
    mean, variance = _mean_and_variance(prepared.moments, flat)
    gain = scale * ops.inverse_deviation(variance, eps)
    rows = flat * ops.of_rank(2, gain)
    # If a weight is not finite, pooling could pick an output that is. So all are made NaN.
    finite = jnp.isfinite(jnp.sum(rows, 0))
    shift = jnp.where(finite, bias - mean * gain, jnp.nan)
    rows = jnp.concatenate([rows, ops.of_rank(2, shift)])
    return patch_pool(prepared.patches, rows, pallas=pallas)


@custom_vjp
def _mean_and_variance(moments: Array, kernel: Array) -> tuple[Array, Array]:
    return _mean_and_variance_forward(moments, kernel)[0]


def _mean_and_variance_forward(moments: Array, kernel: Array) -> tuple:
    products = moments @ kernel
    mean, half_slope = products[0], products[1:]
    return (mean, jnp.sum(kernel * half_slope, 0)), (moments, kernel, half_slope)


def _mean_and_variance_backward(saved: tuple, gradients: tuple[Array, Array]) -> tuple:
    """The covariance is symmetric, so that the product of the forward pass is used again."""
    moments, kernel, half_slope = saved
    d_mean, d_variance = (ops.of_rank(2, g) for g in gradients)
    d_kernel = moments[0][:, None] * d_mean + 2 * half_slope * d_variance
    d_products = jnp.concatenate([d_mean, kernel * d_variance])
    return d_products @ kernel.T, d_kernel


_mean_and_variance.defvjp(_mean_and_variance_forward, _mean_and_variance_backward)
