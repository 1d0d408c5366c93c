"""The gradients of earlier tasks' memories, a task a row of a matrix M: what GEM asks of them.

A kernel's gradient is a product of the layer's inputs and of derivatives by its outputs. Where few
rows of a task are kept and the loss tells its first layer, M holds these two factors in place of
the first kernel's gradients: neither is that large matrix written, nor read again for M M'.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsparse._first_layer import float32_split
from jaxsparse._tree import cut_leaf
from jaxsparse.checks import scalar_loss
from jaxsparse.clipping import common_dtype, sum_dtype
from jaxsparse.losses import SplitLoss
from jaxsparse.machine import default_platform
from jaxsparse.nn.products import exact_product

Tree = Any

# Tasks that are taken together, at least, and parts of the stream that pay for themselves: one
# that has come half its way pays little more than a quarter of M M'.
BLOCK, PARTS = 10, 5
# What a gradient of rows may save for its way back: 25 images of Split-CIFAR-10's. 200 of them in
# such pieces take 0.7 of the time on two cores that share 32 MB of cache (benchmarks/NOTES.md).
CACHE_BYTES = 20 * 2**20


class Factors(NamedTuple):
    """A kernel's gradients as products: task t's is ``inputs[t]' deltas[t]``.

    Attributes:
      inputs: [T, k, in], of the layer, for the k rows kept of each task.
      deltas: [T, k, out], the derivatives of the task's loss by the layer's outputs.
    """

    inputs: Array
    deltas: Array


def task_gradients(
    loss_fn: Callable, params: Tree, memory: Any, observed: Array | int
) -> list[Array | Factors]:
    """M, whose row t is the gradient of ``L_t(params) = L(params; memory of task t)``.

    Args:
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`.
      params: floating arrays.
      memory: the rows kept of each task, a tree whose leaves are [T, k, ...].
      observed: how many tasks, from the first on, count; what is kept of others is not looked at.

    Returns:
      M in parts, one for each leaf of params: [T', size of the leaf], or `Factors`, where T' is T
      or more. Rows of tasks that do not count are 0.

    Example:
      >>> memory = jnp.array([[[1.0, 0.0]], [[0.0, 2.0]]])
      >>> (rows,) = task_gradients(lambda w, x: jnp.sum(w * x), jnp.zeros(2), memory, 2)
      >>> rows.tolist()
      [[1.0, 0.0], [0.0, 2.0]]

    Source: Lopez-Paz & Ranzato 2017, GEM, Eq. 8.
    """
    _, kept = _shape(memory)
    split = usable_split(loss_fn, params, kept**2)  # for an entry of M M'
    if split is not None:
        return _in_factors(split, params, memory, observed)
    return _whole(loss_fn, params, memory, observed)


def alignments(rows: list[Array | Factors], direction: Tree, observed: Array | int) -> Array:
    """M g: below 0 where a step along -g would raise a task's loss.

    Args:
      rows: M, as `task_gradients` makes it, for T' tasks.
      direction: g, a tree like params.
      observed: how many tasks count.

    Returns:
      [T'], 0 where a task does not count.

    Example:
      >>> alignments([jnp.array([[3.0, 4.0], [0.0, 1.0]])], jnp.array([1.0, -1.0]), 2).tolist()
      [-1.0, -1.0]

    Source: Lopez-Paz & Ranzato 2017, GEM, Eq. 8.
    """
    tasks, dtype = _tasks(rows), jax.tree.leaves(rows)[0].dtype
    size = _block(tasks)
    leaves = [x.astype(dtype) for x in jax.tree.leaves(direction)]

    def block(i, entries):
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=i * size, slice_size=size)
        own = sum(_along(jax.tree.map(cut, m), g) for m, g in zip(rows, leaves, strict=True))
        return jax.lax.dynamic_update_slice_in_dim(entries, own, i * size, 0)

    return jax.lax.fori_loop(0, _blocks(observed, size), block, jnp.zeros(tasks, dtype))


def gram_matrix(rows: list[Array | Factors], observed: Array | int) -> Array:
    """M M', block by block of the lower triangle, as far as tasks were observed.

    Args:
      rows: M, as `task_gradients` makes it, for T' tasks.
      observed: how many tasks count.

    Returns:
      [T', T'], symmetric, 0 where a task does not count.

    Example:
      >>> gram_matrix([jnp.array([[3.0, 4.0], [0.0, 1.0]])], 2).tolist()
      [[25.0, 4.0], [4.0, 1.0]]

    Source: Lopez-Paz & Ranzato 2017, GEM, Eq. 11.
    """
    tasks = _tasks(rows)
    size = _block(tasks)

    def block(i, j, gram):
        product = sum(_block_product(part, i * size, j * size, size) for part in rows)
        return jax.lax.dynamic_update_slice(gram, product, (i * size, j * size))

    def block_row(i, gram):
        return jax.lax.fori_loop(0, i + 1, functools.partial(block, i), gram)

    start = jnp.zeros((tasks, tasks), jax.tree.leaves(rows)[0].dtype)
    lower = jax.lax.fori_loop(0, _blocks(observed, size), block_row, start)
    return jnp.tril(lower) + jnp.tril(lower, -1).T


def combination(rows: list[Array | Factors], weights: Array, params: Tree) -> Tree:
    """M' v: the sum of the tasks' gradients, each by its weight.

    Args:
      rows: M, as `task_gradients` makes it.
      weights: v, [T].
      params: what M was made for.

    Returns:
      A tree with the shapes of `params`.

    Example:
      >>> combination([jnp.array([[3.0, 4.0], [0.0, 1.0]])], jnp.array([1.0, 2.0]), jnp.zeros(2))
      Array([3., 6.], dtype=float32)

    Source: Lopez-Paz & Ranzato 2017, GEM, Eq. 12.
    """
    weights = jnp.pad(weights, (0, _tasks(rows) - len(weights)))

    def whole(part):
        if _is_factors(part):
            weighted = part.deltas * weights[:, None, None]
            return exact_product(joined(part.inputs).T, joined(weighted))
        return exact_product(weights, part)

    leaves, structure = jax.tree.flatten(params)
    summed = [whole(part).reshape(x.shape) for part, x in zip(rows, leaves, strict=True)]
    return jax.tree.unflatten(structure, summed)


def usable_split(loss_fn: Callable, params: Tree, rows: int) -> SplitLoss | None:
    """The loss's first layer, where the factors of its kernel's gradients are exact and pay.

    Args:
      loss_fn: as in `task_gradients`.
      params: floating arrays.
      rows: with how many rows' inputs and outputs each product of the kernel's is replaced; it pays
        where ``rows (in + out) <= 2 in out``.

    Returns:
      The loss's `split`; None where it has none, or the whole kernel is the better choice.

    Example:
      >>> model = jaxsparse.nn.mlp(ways=5)
      >>> loss_fn, params = jaxsparse.cross_entropy(model), model.init(jax.random.key(0))
      >>> usable_split(loss_fn, params, 100).kernel, usable_split(loss_fn, params, 1000)
      ('dense1/kernel', None)
    """
    split = float32_split(loss_fn, params)
    if split is None:
        return None
    kernel, _, _ = cut_leaf(params, split.kernel)
    inputs, outputs = kernel.shape
    # Operations, half of which read from memory would cost as much.
    if rows * (inputs + outputs) > 2 * inputs * outputs:
        return None
    return split


def _in_factors(split, params, memory, observed):
    """M with the first kernel's gradients as factors, a block of tasks at a time."""
    kernel, rest, join = cut_leaf(params, split.kernel)
    tasks, kept = _shape(memory)
    padded, size = _padded(tasks), _block(tasks)
    seen = jnp.arange(padded) < observed
    # Zeros, for what is kept of other tasks may be anything: no weight would take a NaN away.
    memory = jax.tree.map(lambda x: _masked(_lengthened(x, padded), seen), memory)
    inputs, others = split.split(jax.tree.map(joined, memory))
    inputs = inputs.astype(kernel.dtype)
    inputs, others = jax.tree.map(lambda x: x.reshape(padded, kept, *x.shape[1:]), (inputs, others))

    def loss(rest, products, others, weight):
        return weight * scalar_loss(split.loss_fn)(join(rest, kernel), (products, others))[0]

    gradients = jax.vmap(jax.grad(loss, (0, 1)), (None, 0, 0, 0))

    def block(i, made):
        x, *other = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size),
            (inputs, others, seen.astype(kernel.dtype)),
        )
        d_rest, deltas = gradients(rest, _times(x, kernel), *other)
        own = [d.reshape(size, -1).astype(m.dtype) for d, m in zip(d_rest, made[1], strict=True)]
        return jax.tree.map(
            lambda whole, x: jax.lax.dynamic_update_slice_in_dim(whole, x, i * size, 0),
            made,
            (deltas, own),
        )

    zeros = (
        jnp.zeros((padded, kept, kernel.shape[1]), kernel.dtype),
        [jnp.zeros((padded, x.size), kernel.dtype) for x in rest],
    )
    deltas, d_rest = jax.lax.fori_loop(0, _blocks(observed, size), block, zeros)
    return jax.tree.leaves(join(d_rest, Factors(inputs, deltas)), is_leaf=_is_factors)


def _whole(loss_fn, params, memory, observed):
    """M, a task at a time, and of a task's rows a piece at a time."""
    leaves = jax.tree.leaves(params)
    tasks, kept = _shape(memory)
    size, dtype = _piece(loss_fn, params, memory, kept), sum_dtype(common_dtype(*leaves))
    own_loss = scalar_loss(loss_fn)

    def gradient(rows):  # of the mean loss, in proportion to the memory that these rows are
        share = len(jax.tree.leaves(rows)[0]) / kept
        own = jax.grad(lambda p: share * own_loss(p, rows)[0])(params)
        return [g.astype(dtype) for g in jax.tree.leaves(own)]

    def add(total, rows):
        return jax.tree.map(jnp.add, total, gradient(rows)), None

    def in_pieces(rows):
        whole = kept // size * size
        pieces = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), rows)
        total, _ = jax.lax.scan(add, [jnp.zeros(x.shape, dtype) for x in leaves], pieces)
        if whole < kept:
            total, _ = add(total, jax.tree.map(lambda x: x[whole:], rows))
        return total

    def add_task(task, made):
        rows = jax.tree.map(lambda x: x[task], memory)
        own = gradient(rows) if size == kept else in_pieces(rows)
        return [m.at[task].set(g.ravel()) for m, g in zip(made, own, strict=True)]

    made = [jnp.zeros((_padded(tasks), x.size), dtype) for x in leaves]
    return jax.lax.fori_loop(0, observed, add_task, made)


def _piece(loss_fn, params, memory, kept):
    """How many rows at a time: of so many a CPU's cache holds what a gradient saves.

    A device that is not a CPU takes all rows kept; so does a loss whose rows may count in one
    another's, as with batch norm: of a piece it has other statistics.
    """
    if default_platform() != "cpu" or not getattr(loss_fn, "rowwise", None):
        return kept

    own_loss = scalar_loss(loss_fn)

    def saved(rows):
        own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[2:]), x.dtype), memory)
        _, pullback, _ = jax.eval_shape(
            lambda p, r: jax.vjp(lambda p: own_loss(p, r), p, has_aux=True), params, own
        )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))

    row = max(saved(2) - saved(1), 1)  # what does not grow with the rows is no matter
    pieces = -(-kept // max(CACHE_BYTES // row, 1))
    return -(-kept // pieces)


def _along(part, direction):
    """The entries of M g that one leaf gives."""
    if _is_factors(part):
        kernel = direction.reshape(part.inputs.shape[-1], -1)
        return jnp.sum(_times(part.inputs, kernel) * part.deltas, (1, 2))
    return exact_product(part, direction.ravel())


def _block_product(part, i, j, size):
    """A block of M M', rows i, i+1, ... and columns j, j+1, ..., of one leaf."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=size)
    if not _is_factors(part):
        return exact_product(cut(part, i), cut(part, j).T)
    products = [exact_product(joined(cut(x, i)), joined(cut(x, j)).T) for x in part]
    return (products[0] * products[1]).reshape(size, -1, size, part.inputs.shape[1]).sum((1, 3))


def _is_factors(part):
    return isinstance(part, Factors)


def joined(x):
    """The first two axes, of tasks (or batches) and of their rows, as one."""
    return x.reshape(-1, *x.shape[2:])


def _times(x, kernel):
    return exact_product(joined(x), kernel).reshape(*x.shape[:2], -1)


def _lengthened(x, length):
    return jnp.pad(x, [(0, length - len(x)), *[(0, 0)] * (x.ndim - 1)])


def _masked(x, seen):
    return jnp.where(seen.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def _shape(memory):
    """How many tasks, and rows of each."""
    return jax.tree.leaves(memory)[0].shape[:2]


def _tasks(rows):
    return len(jax.tree.leaves(rows)[0])


def _block(tasks):
    """How many tasks are taken together; the same for the number they are padded to."""
    return min(max(BLOCK, -(-tasks // PARTS)), tasks)


def _blocks(observed, size):
    return (observed + size - 1) // size


def _padded(tasks):
    return -(-tasks // _block(tasks)) * _block(tasks)
