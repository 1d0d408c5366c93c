"""The layers of a residual block for GPUs: cuDNN's convolutions, and few passes over the arrays."""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jaxsparse.nn import ops
from jaxsparse.nn.direct import spread, sums
from jaxsparse.nn.grouped import alongside, convolve
from jaxsparse.precision import custom_vjp

_NEGATIVE = 4  # added to the place of a maximum that is negative or NaN


def conv_norm(
    images: Array, kernel: Array, scale: Array, bias: Array, *, slope: float, eps: float
) -> Array:
    """The layer of `residual.conv_norm`."""
    wide = [x.astype(jnp.float32) for x in (images, kernel, scale, bias)]
    y = convolve(wide[0], wide[1], kernel.shape[0] // 2)
    return _norm(eps, slope, y, *wide[2:]).astype(images.dtype)


@partial(custom_vjp, nondiff_argnums=(0, 1))
def _norm(eps: float, slope: float, y: Array, scale: Array, bias: Array) -> Array:
    """Batch norm and leaky ReLU."""
    return _norm_forward(eps, slope, y, scale, bias)[0]


def _norm_forward(
    eps: float, slope: float, y: Array, scale: Array, bias: Array
) -> tuple[Array, tuple]:
    # Relative to one value of the channel, as the mean of squares alone would cancel. Only one of
    # the sums is relative: XLA would write the difference to memory if both were.
    first, count = y[0, 0, 0], y.size // y.shape[3]
    total, squares = sums(y, jnp.square(y - alongside(first, y)))
    mean = total / count
    variance = jnp.maximum(squares / count - jnp.square(mean - first), 0)
    inverse = ops.inverse_deviation(variance, eps)
    z = _unit(y, mean, inverse) * alongside(scale, y) + alongside(bias, y)
    return _leaky(z, z, slope), (y, scale, bias, mean, inverse)


def _norm_backward(
    eps: float, slope: float, saved: tuple, gradient: Array
) -> tuple[Array, Array, Array]:
    """dy = gain * (dz - mean(dz) - ŷ mean(dz ŷ)); one pass for the means, one for dy."""
    y, scale, bias, mean, inverse = saved
    unit, count = _unit(y, mean, inverse), y.size // y.shape[3]
    dz = _leaky(gradient, unit * alongside(scale, y) + alongside(bias, y), slope)
    d_bias, d_scale = sums(dz, dz * unit)
    level, tilt = d_bias / count, d_scale / count
    centred = dz - alongside(level, y) - unit * alongside(tilt, y)
    return centred * alongside(scale * inverse, y), d_scale, d_bias


def _unit(y: Array, mean: Array, inverse: Array) -> Array:
    return (y - alongside(mean, y)) * alongside(inverse, y)


def _leaky(x: Array, z: Array, slope: float) -> Array:
    """x times the slope of leaky ReLU at z."""
    return x if slope == 1 else jnp.where(z >= 0, x, slope * x)


_norm.defvjp(_norm_forward, _norm_backward)


def join(a: Array, b: Array, *, slope: float, padding: int) -> Array:
    """The layer of `residual.join`."""
    return _join(slope, padding, a, b)


@partial(custom_vjp, nondiff_argnums=(0, 1))
def _join(slope: float, padding: int, a: Array, b: Array) -> Array:
    return _join_forward(slope, padding, a, b)[0]


def _join_forward(slope: float, padding: int, a: Array, b: Array) -> tuple[Array, tuple]:
    total = a + b
    if padding:
        pads = [(0, 0, 0), (padding, padding, 0), (padding, padding, 0), (0, 0, 0)]
        total = lax.pad(total, jnp.full((), -jnp.inf, total.dtype), pads)
    h, w = total.shape[1] // 2 * 2, total.shape[2] // 2 * 2
    windows = [total[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]
    chosen, place = windows[3], alongside(3, windows[3])
    for i in (2, 1, 0):
        # NaN counts as the largest, and the first of equals is chosen.
        z = _leaky(windows[i], windows[i], slope)
        ahead = (z >= _leaky(chosen, chosen, slope)) | jnp.isnan(z)
        chosen = jnp.where(ahead, windows[i], chosen)
        place = jnp.where(ahead, alongside(i, chosen), place)
    place = jnp.where(chosen >= 0, place, place + _NEGATIVE).astype(jnp.uint8)
    out = _leaky(chosen, chosen, slope)
    out, place = lax.optimization_barrier((out, place))
    return out, (a, place)


def _join_backward(
    slope: float, padding: int, saved: tuple, gradient: Array
) -> tuple[Array, Array]:
    a, place = saved
    gradient = jnp.where(place >= _NEGATIVE, slope * gradient, gradient)
    d = spread(gradient, place % _NEGATIVE, a.shape[1:3], padding)
    return d, d


_join.defvjp(_join_forward, _join_backward)
