"""3x3 convolution by Winograd's F(2x2, 3x3), with 2.25 times fewer multiplications.

The output is split into 2x2 tiles, Y = Aᵀ [(G k Gᵀ) ∘ (Bᵀ x B)] A per tile. It is stored as four
*quadrants*, one per position in the tile: `quads[i][j]` holds output rows i, i+2, ... and columns
j, j+2, .... The 2x2 pooling that follows uses the quadrants directly. In this layout every
transform is a sum of whole arrays with contiguous channels, which XLA vectorises.

Source: Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, Sec. 4.1.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsparse.nn.products import transposed_product
from jaxsparse.precision import custom_vjp

Grid = list[list[Array]]


def _data(x: Sequence[Array]) -> list[Array]:  # Bᵀ
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def _data_transposed(v: Sequence[Array]) -> list[Array]:  # B
    return [v[0], v[1] - v[2] + v[3], v[1] + v[2] - v[0], -v[3]]


def _output(m: Sequence[Array]) -> list[Array]:  # Aᵀ
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _output_transposed(y: Sequence[Array]) -> list[Array]:  # A
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _both_ways(transform: Callable[[Sequence[Array]], list[Array]], grid: Grid) -> Grid:
    """Apply a one-dimensional transform along the rows of the grid, then along its columns."""
    columns = [transform(column) for column in zip(*grid, strict=True)]
    return [transform(row) for row in zip(*columns, strict=True)]


def _kernel(k: Sequence[Array]) -> list[Array]:  # G
    ends, middle = k[0] + k[2], k[1]
    return [k[0], 0.5 * (ends + middle), 0.5 * (ends - middle), k[2]]


def _kernel_transposed(u: Sequence[Array]) -> list[Array]:  # Gᵀ
    half, difference = 0.5 * (u[1] + u[2]), 0.5 * (u[1] - u[2])
    return [u[0] + half, difference, half + u[3]]


def _kernel_to_tile(kernel: Array) -> Grid:
    """G k Gᵀ: a 4x4 grid of [c, o]. Written as sums, as products with small matrices are slow."""
    return _both_ways(_kernel, [[kernel[i, j] for j in range(3)] for i in range(3)])


def _tile_to_kernel(tile: Grid) -> Array:
    """Gᵀ u G: [3, 3, c, o]."""
    rows = _both_ways(_kernel_transposed, tile)
    return jnp.stack([jnp.stack(row) for row in rows])


def _tiles(x: Array) -> Grid:
    """Bᵀ x B: a 4x4 grid of arrays [n, ceil(h/2), ceil(w/2), c]."""
    _, h, w, _ = x.shape
    rows, columns = h + h % 2, w + w % 2
    x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
    # Without the barrier, each of the sixteen sums would compute the padding again.
    x = lax.optimization_barrier(x)
    cuts = [
        [x[:, i : i + rows - 1 : 2, j : j + columns - 1 : 2] for j in range(4)] for i in range(4)
    ]
    return lax.optimization_barrier(_both_ways(_data, cuts))


def _moved(x: Array, axis: int, by: int) -> Array:
    """y[k] = x[k - by] along one axis, zero outside the array; by is 1 or -1."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (by, -by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _overlap(t: Sequence[Array], axis: int) -> list[Array]:
    """Add the tiles where they overlap: tile k covers rows 2k-1 ... 2k+2 of the image."""
    return [t[1] + _moved(t[3], axis, 1), t[2] + _moved(t[0], axis, -1)]


def _images_gradient(tiles: Grid) -> Grid:
    """The gradient of the images, in quadrants."""
    grid = _both_ways(_data_transposed, tiles)
    rows = zip(*[_overlap(column, 1) for column in zip(*grid, strict=True)], strict=True)
    return [_overlap(row, 2) for row in rows]


def split(x: Array) -> Grid:
    """Split images [n, h, w, c] into quadrants: rows i::2 and columns j::2 for i, j in {0, 1}."""
    return [[x[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)]


def join(quads: Grid, h: int, w: int) -> Array:
    """Interleave four quadrants of equal shape and crop to [n, h, w, c]."""
    n, a, b, c = quads[0][0].shape
    rows = [jnp.stack(row, 3).reshape(n, a, 2 * b, c) for row in quads]
    return jnp.stack(rows, 2).reshape(n, 2 * a, 2 * b, c)[:, :h, :w]


@custom_vjp
def conv_quads(images: Array, kernel: Array) -> Grid:
    """Convolve images [n, h, w, c] with a 3x3 kernel [3, 3, c, o], stride 1 and padding 1.

    Returns four quadrants [n, ceil(h/2), ceil(w/2), o]. If h or w is odd, the last row or column of
    some quadrants is outside the image and must not be used.
    """
    return _forward(images, kernel)[0]


# At most so many floats in the sixteen tile arrays of a piece of the batch, to fit into the cache.
_PIECE = 1_000_000
# At least so many tiles per piece; with fewer, splitting the batch costs more than it saves.
_PIECE_TILES = 200
# XLA divides an operation among the cores if it reads and writes at least so many bytes.
_DIVIDED = 512 * 1024


def undivided_rows(channels: int) -> int:
    """The most rows for which XLA does not divide an operation among the cores.

    The operation reads four float32 arrays [rows, channels] and writes one. If every core computes
    its own task or seed, a divided operation would wait for busy cores.
    """
    return (_DIVIDED - 1) // (5 * 4 * channels)


def _pieces(images: Array) -> int:
    """The number of equal pieces to split a batch into, so that the tiles of one fit the cache.

    Two or more, if the pieces are large enough: the result of a loop is stored, so XLA cannot
    recompute it inside the operations that read it. If possible, pieces are so small that XLA does
    not divide their sums among the cores.
    """
    n, h, w, c = images.shape
    tiles = ((h + 1) // 2) * ((w + 1) // 2)
    counts = [p for p in range(1, n + 1) if n % p == 0]
    several = [p for p in counts[1:] if n // p * tiles >= _PIECE_TILES]
    undivided = [p for p in several if n // p * tiles <= undivided_rows(c)]
    choice = (*undivided, *several, *counts)
    return next((p for p in choice if n // p * tiles * 16 * c <= _PIECE), n)


def _cut(tree, pieces: int):
    return jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), tree)


def _whole(tree):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _forward(images: Array, kernel: Array) -> tuple[Grid, tuple]:
    weights = _kernel_to_tile(kernel)
    pieces = _pieces(images)
    if pieces == 1:
        tiles = _tiles(images)
        return _forward_piece(tiles, weights), (tiles, images[:0], weights)
    quads = lax.map(lambda x: _forward_piece(_tiles(x), weights), _cut(images, pieces))
    return _whole(quads), (None, images, weights)


def _forward_piece(tiles: Grid, weights: Grid) -> Grid:
    products = [[tiles[u][v] @ weights[u][v] for v in range(4)] for u in range(4)]
    return lax.optimization_barrier(_both_ways(_output, products))


def _backward(saved: tuple, gradients: Grid) -> tuple[Array, Array]:
    tiles, images, weights = saved
    size = images.shape[1:3]
    if tiles is not None:
        d_images, d_weights = _backward_piece(tiles, weights, gradients)
        return join(d_images, *size), _tile_to_kernel(d_weights)
    pieces = _pieces(images)

    def piece(total: Grid, parts: tuple[Array, Grid]) -> tuple[Grid, Grid]:
        d_images, d_weights = _backward_piece(_tiles(parts[0]), weights, parts[1])
        return jax.tree.map(jnp.add, total, d_weights), d_images

    zeros = jax.tree.map(jnp.zeros_like, weights)
    d_weights, d_images = lax.scan(piece, zeros, _cut((images, gradients), pieces))
    # Joined after the loop; inside it, XLA would do this entry by entry.
    return join(_whole(d_images), *size), _tile_to_kernel(d_weights)


def _backward_piece(tiles: Grid, weights: Grid, gradients: Grid) -> tuple[Grid, Grid]:
    gradients = lax.optimization_barrier(gradients)  # computed once, read sixteen times
    products = lax.optimization_barrier(_both_ways(_output_transposed, gradients))
    inputs, outputs = weights[0][0].shape

    def kernel_part(u: int, v: int) -> Array:
        flat = products[u][v].reshape(-1, outputs)
        return transposed_product(tiles[u][v].reshape(-1, inputs), flat)

    kernel = [[kernel_part(u, v) for v in range(4)] for u in range(4)]
    back = [[products[u][v] @ weights[u][v].T for v in range(4)] for u in range(4)]
    return _images_gradient(lax.optimization_barrier(back)), kernel


conv_quads.defvjp(_forward, _backward)
