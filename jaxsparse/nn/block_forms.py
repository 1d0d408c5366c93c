"""Three implementations of a Conv4 block with XLA operations. They compute the same values.

They pass over the output of the convolution less often than the plain implementation. None uses
XLA's gradient of a convolution, which is slow in a loop on the CPU (jax-ml/jax issue 12868).
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jaxsparse.nn import ops, winograd
from jaxsparse.nn.winograd import Grid
from jaxsparse.precision import custom_vjp


def gram(images: Array, kernel: Array, scale: Array, bias: Array, eps: float) -> Array:
    """For few input channels: batch-norm statistics from the patches P of the images.

    The output y = P k is linear in P, so mean(y) = mean(P) k and var(y) = diag(kᵀ cov(P) k). The
    norm is folded into the kernel before the product, and only the pooling reads the product.
    P and cov(P) depend only on the images. In an inner loop on the same images, XLA computes them
    once.
    """
    n, h, w, _ = images.shape
    weights = kernel.reshape(-1, kernel.shape[-1])
    patches = ops.patches(images, 3, 1, 1)
    mean = jnp.mean(patches, (0, 1, 2))
    rows = (patches - ops.of_rank(4, mean)).reshape(-1, len(weights))
    covariance = rows.T @ rows / len(rows)
    # This order fixes the order in which the parts of the gradient are summed.
    scaled = weights * ops.of_rank(2, scale)
    variance = jnp.sum(weights * (covariance @ weights), 0)
    weights = scaled * ops.of_rank(2, ops.inverse_deviation(variance, eps))
    # If a weight is not finite, only some outputs may be NaN, and the pooling could pick another.
    # The NaN in the shift makes the whole channel NaN.
    shift = bias + jnp.where(jnp.isfinite(jnp.sum(weights, 0)), 0, jnp.nan)
    quads = winograd.split(patches[:, : h // 2 * 2, : w // 2 * 2])
    pieces = _pieces(n, (h // 2) * (w // 2), weights.shape[1])
    # Centred after slicing: XLA moves a subtraction out of an inner loop, but not a mere slice.
    cut = [
        (q - ops.of_rank(4, mean)).reshape(pieces, -1, len(weights)) for row in quads for q in row
    ]
    return _product_relu_max(cut, weights, shift).reshape(n, h // 2, w // 2, -1)


def _pieces(images: int, windows: int, channels: int) -> int:
    """The number of equal pieces to split a batch into.

    The products of a piece then fit into a core's cache, and XLA does not divide operations on them
    among the cores.
    """
    rows = winograd.undivided_rows(channels)
    fits = [p for p in range(1, images + 1) if images % p == 0 and images // p * windows <= rows]
    return min(fits, default=images)


@custom_vjp
def _product_relu_max(quads: list[Array], weights: Array, shift: Array) -> Array:
    """max over the four quads of relu(quad @ weights + shift).

    quads: four arrays [pieces, rows, k], one per position in the pooling window.
    The products are four times as large as the result, so they are computed and pooled piece by
    piece. For the gradient, only the position of each maximum is stored, in one byte.
    """
    return _product_relu_max_forward(quads, weights, shift)[0]


def _product_relu_max_forward(
    quads: list[Array], weights: Array, shift: Array
) -> tuple[Array, tuple]:
    def piece(parts: list[Array]) -> tuple[Array, Array]:
        a, b, c, d = (part @ weights for part in parts)
        top = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
        place = jnp.where(a == top, 0, jnp.where(b == top, 1, jnp.where(c == top, 2, 3)))
        # Selecting, rather than taking `top`, keeps the tie rule in the second derivative.
        chosen = jnp.where(place == 0, a, jnp.where(place == 1, b, jnp.where(place == 2, c, d)))
        out = jnp.maximum(chosen + ops.of_rank(2, shift), 0)
        return out, jnp.where(out <= 0, 4, place).astype(jnp.uint8)

    out, place = lax.map(piece, quads)
    return out, (quads, weights, place)


def _product_relu_max_backward(saved: tuple, gradient: Array) -> tuple[list[Array], Array, Array]:
    quads, weights, place = saved

    def piece(total: Array, parts: tuple) -> tuple[Array, list[Array]]:
        seen, place, gradient = parts
        hits = [jnp.where(place == i, gradient, 0) for i in range(4)]
        total = total + sum(q.T @ hit for q, hit in zip(seen, hits, strict=True))
        return total, [hit @ weights.T for hit in hits]

    d_weights, d_quads = lax.scan(piece, jnp.zeros_like(weights), (quads, place, gradient))
    d_shift = jnp.sum(jnp.where(place < 4, gradient, 0), (0, 1))
    return d_quads, d_weights, d_shift


_product_relu_max.defvjp(_product_relu_max_forward, _product_relu_max_backward)


def by_winograd(images: Array, kernel: Array, scale: Array, bias: Array, eps: float) -> Array:
    quads = winograd.conv_quads(images, kernel)
    return norm_pool(images.shape[1:3], eps, quads, scale, bias)


def by_patches(images: Array, kernel: Array, scale: Array, bias: Array, eps: float) -> Array:
    quads = winograd.split(ops.conv(images, kernel, form="patches"))
    return norm_pool(images.shape[1:3], eps, quads, scale, bias)


def _first_hits(quads: list[Array], top: Array, free: Array) -> list[Array]:
    """For each quadrant, where it is the first that equals `top`, among the positions in `free`."""
    hits = []
    for q in quads:
        hits.append(free & (q == top))
        free = free & ~hits[-1]
    return hits


def _inside(quads: Grid, size: tuple[int, int]) -> list[Array]:
    """The four quadrants in row order, without the rows and columns outside the image."""
    h, w = size
    return [quads[i][j][:, : (h - i + 1) // 2, : (w - j + 1) // 2] for i in (0, 1) for j in (0, 1)]


def _sum(x: Array) -> Array:
    return jnp.sum(x, (0, 1, 2))


def _statistics(quads: list[Array], count: int) -> tuple[Array, Array]:
    """Mean and biased variance of each channel in one pass.

    mean(y²) - mean(y)² loses accuracy if the mean is much larger than the deviation. So one value
    of the channel is subtracted first.
    """
    origin = quads[0][:1, :1, :1]
    mean = sum(_sum(q - origin) for q in quads) / count
    square = sum(_sum(jnp.square(q - origin)) for q in quads) / count
    return origin.ravel() + mean, jnp.maximum(square - jnp.square(mean), 0)


def _chosen(quads: list[Array], scale: Array) -> Array:
    """The entry of each pooling window with the largest value after the norm."""
    a, b, c, d = quads
    high = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    low = jnp.minimum(jnp.minimum(a, b), jnp.minimum(c, d))
    top = jnp.where(ops.of_rank(4, scale >= 0), high, low)
    # Selecting, rather than returning `top`, keeps the tie rule in the second derivative.
    return jnp.where(a == top, a, jnp.where(b == top, b, jnp.where(c == top, c, d)))


@partial(custom_vjp, nondiff_argnums=(0, 1))
def norm_pool(size: tuple[int, int], eps: float, quads: Grid, scale: Array, bias: Array) -> Array:
    """Batch norm, ReLU and max-pool of the output of a convolution [n, *size, o], in quadrants."""
    return _norm_pool_forward(size, eps, quads, scale, bias)[0]


def _norm_pool_forward(
    size: tuple[int, int], eps: float, quads: Grid, scale: Array, bias: Array
) -> tuple[Array, tuple]:
    h, w = size
    count = quads[0][0].shape[0] * h * w
    mean, variance = _statistics(_inside(quads, size), count)
    inverse = ops.inverse_deviation(variance, eps)
    chosen = _chosen([q[:, : h // 2, : w // 2] for row in quads for q in row], scale)
    unit = (chosen - ops.of_rank(4, mean)) * ops.of_rank(4, inverse)
    out = jnp.maximum(unit * ops.of_rank(4, scale) + ops.of_rank(4, bias), 0)
    return out, (quads, scale, mean, inverse, chosen, unit, out)


def _norm_pool_backward(
    size: tuple[int, int], eps: float, saved: tuple, gradient: Array
) -> tuple[Grid, Array, Array]:
    """dy = gain * (dz - mean(dz) - ŷ mean(dz ŷ)).

    dz is zero except at the maxima, so both means are sums over the pooled array, which is a
    quarter of the size.
    """
    quads, scale, mean, inverse, chosen, unit, out = saved
    _, h, w, _ = out.shape
    count = out.shape[0] * size[0] * size[1]
    cut = out <= 0
    gradient = jnp.where(cut, 0, gradient)
    d_bias, d_scale = _sum(gradient), _sum(gradient * unit)
    gain = scale * inverse
    level, slope = gain * d_bias / count, gain * inverse * d_scale / count
    hits = _first_hits([q[:, :h, :w] for row in quads for q in row], chosen, ~cut)
    mean, gain, level, slope = (ops.of_rank(4, x) for x in (mean, gain, level, slope))

    def quad(y: Array, hit: Array, whole: Array) -> Array:
        dz = jnp.where(hit, gradient * gain, 0)
        dz = jnp.pad(dz, [(0, big - small) for big, small in zip(y.shape, dz.shape, strict=True)])
        dy = dz - level - (y - mean) * slope
        return jnp.pad(dy, [(0, a - b) for a, b in zip(whole.shape, y.shape, strict=True)])

    wholes = [q for row in quads for q in row]
    d = [quad(*args) for args in zip(_inside(quads, size), hits, wholes, strict=True)]
    return [d[:2], d[2:]], d_scale, d_bias


norm_pool.defvjp(_norm_pool_forward, _norm_pool_backward)
