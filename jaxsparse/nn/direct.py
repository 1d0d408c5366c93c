"""The Conv4 block for GPUs: cuDNN's convolutions, and few passes over their output."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxsparse.nn import ops
from jaxsparse.nn.grouped import alongside, convolve, images_gradient, kernel_gradient
from jaxsparse.precision import custom_vjp

_CUT = 4  # the place of a window without gradient


def block(
    images: "Array | Prepared", kernel: Array, scale: Array, bias: Array, eps: float
) -> Array:
    """The block of `blocks.conv_norm_pool`."""
    if ops.has_few_channels(kernel.shape):
        prepared = images if isinstance(images, Prepared) else prepare(images)
        return _from_moments(eps, prepared, kernel, scale, bias)
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
    place = jnp.where(out <= 0, alongside(_CUT, place), place)
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


def statistics(both: Array, count: int, eps: float) -> tuple[Array, Array]:
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
    mean, inverse = statistics(both, n * h * w, eps)
    out, place = _normalised(chosen, place, mean, inverse, scale, bias)
    return out, (y, scale, mean, inverse, place, chosen)


def _norm_pool_backward(eps: float, saved: tuple, gradient: Array) -> tuple[Array, Array, Array]:
    y, scale, mean, inverse, place, chosen = saved
    n, h, w, _ = y.shape
    gradient = jnp.where(place == _CUT, alongside(0, gradient), gradient)
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

    Attributes:
      images: [n, h, w, c].
      framed: the images less their mean, [n, h + 2, w + 2, c], with the edge of a convolution.
      means: the mean of the patches of `framed`, [9 c].
      covariance: the covariance of the patches, [9 c, 9 c].
    """

    images: Array
    framed: Array
    means: Array
    covariance: Array


def plain(images: Array | Prepared) -> Array:
    """The images, without what `prepare` has added."""
    return images.images if isinstance(images, Prepared) else images


def prepare(images: Array) -> Prepared:
    """The `Prepared` of images. They are centred, as their products would cancel."""
    centre = ops.of_rank(4, jnp.mean(images, (0, 1, 2)))
    framed = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))) - centre
    patches = ops.patches(framed, 3, 1, 0).reshape(-1, 9 * images.shape[-1])
    means = jnp.mean(patches, 0)
    rows = patches - ops.of_rank(2, means)
    return Prepared(images, framed, means, rows.T @ rows / len(rows))


@partial(custom_vjp, nondiff_argnums=(0,))
def _from_moments(
    eps: float, prepared: Prepared, kernel: Array, scale: Array, bias: Array
) -> Array:
    """The block, with batch-norm statistics from the patches P of the images.

    The output y = P k is linear in P, so mean(y) = mean(P) k and var(y) = diag(kᵀ cov(P) k), and
    the only pass over y is the pooling. The constant that centring adds to y is cancelled.
    """
    return _from_moments_forward(eps, prepared, kernel, scale, bias)[0]


def _from_moments_forward(
    eps: float, prepared: Prepared, kernel: Array, scale: Array, bias: Array
) -> tuple[Array, tuple]:
    flat = kernel.reshape(-1, kernel.shape[-1])
    mean, half_slope = prepared.means @ flat, prepared.covariance @ flat
    inverse = ops.inverse_deviation(jnp.sum(flat * half_slope, 0), eps)
    y = convolve(prepared.framed, kernel, 0)
    _, h, w, _ = y.shape
    chosen, place = (x[:, : h // 2, : w // 2] for x in _choose(_windows(y), scale))
    out, place = _normalised(chosen, place, mean, inverse, scale, bias)
    return out, (prepared, kernel, scale, half_slope, inverse, place)


def _from_moments_backward(
    eps: float, saved: tuple, gradient: Array
) -> tuple[Prepared, Array, Array, Array]:
    """y is not read: sum(dz ŷ), for example, follows from kᵀ Pᵀ dz."""
    prepared, kernel, scale, half_slope, inverse, place = saved
    _, h, w, _ = prepared.framed.shape
    flat = kernel.reshape(half_slope.shape)
    gradient = jnp.where(place == _CUT, alongside(0, gradient), gradient)
    (d_bias,) = sums(gradient)
    dz = spread(gradient, place, (h - 2, w - 2))
    product = kernel_gradient(prepared.framed, dz, 0, 3).reshape(flat.shape)
    product = product - prepared.means[:, None] * ops.of_rank(2, d_bias)
    d_scale = inverse * jnp.sum(flat * product, 0)
    gain = scale * inverse
    d_variance = -0.5 * gain * inverse * d_scale
    d_kernel = product * ops.of_rank(2, gain) + 2 * half_slope * ops.of_rank(2, d_variance)
    d_framed = images_gradient(dz * alongside(gain, dz), kernel, 0)
    d_means = flat @ (-gain * d_bias)
    d_covariance = (flat * ops.of_rank(2, d_variance)) @ flat.T
    d_prepared = Prepared(jnp.zeros_like(prepared.images), d_framed, d_means, d_covariance)
    return d_prepared, d_kernel.reshape(kernel.shape), d_scale, d_bias


_from_moments.defvjp(_from_moments_forward, _from_moments_backward)
