"""The matrix M of GEM: row t is the gradient of the loss on the memory of task t.

The gradient of a kernel is a product of two factors: the inputs of the layer and the derivatives by
its outputs. If the loss has a `split` and there are few rows per task, M holds these two factors
for the first kernel, instead of its large gradients. So these are neither written nor read again
for M M'.
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

# Tasks are processed in at most PARTS blocks of at least BLOCK tasks. Only blocks with observed
# tasks are computed: halfway through the stream, little more than a quarter of M M'.
BLOCK, PARTS = 10, 5
# The most bytes of residuals of a gradient: those of 25 images of Split-CIFAR-10. For 200 images,
# such pieces take 0.7 of the time, on two cores that share 32 MB of cache (benchmarks/NOTES.md).
CACHE_BYTES = 20 * 2**20


class Factors(NamedTuple):
    """The gradients of a kernel as products; that of task t is ``inputs[t]' deltas[t]``.

    Attributes:
      inputs: [T, k, in], the inputs of the layer for the k stored rows of each task.
      deltas: [T, k, out], the derivatives of the task's loss by the outputs of the layer.
    """

    inputs: Array
    deltas: Array


def task_gradients(
    loss_fn: Callable, params: Tree, memory: Any, observed: Array | int
) -> list[Array | Factors]:
    """M, whose row t is the gradient of ``L_t(params) = L(params; memory of task t)``.

    M is a list with one part per leaf of params: [T', size of the leaf] or `Factors`, with T' >= T.
    Rows from `observed` on are 0.

    Examples:
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
    """M g [T']: an entry is negative if a step along -g would increase the loss of that task.

    Entries from `observed` on are 0.

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
    """M M' [T', T'], computed in blocks of the lower triangle; 0 for tasks not observed.

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
    """M' v, the weighted sum of the tasks' gradients, as a tree with the shapes of `params`.

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
    """The loss's `split`, if it has one and factors are faster than the gradients of the kernel.

    Factors replace a product with the gradient, ``in out`` operations, by products with the inputs
    and deltas of `rows` rows. They are faster if ``rows (in + out) <= 2 in out``.

    Examples:
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
    # The factor 2: products with the whole gradient read more memory per operation.
    if rows * (inputs + outputs) > 2 * inputs * outputs:
        return None
    return split


def _in_factors(split, params, memory, observed):
    """M with the gradients of the first kernel as `Factors`, one block of tasks at a time."""
    kernel, rest, join = cut_leaf(params, split.kernel)
    tasks, kept = _shape(memory)
    padded, size = _padded(tasks), _block(tasks)
    seen = jnp.arange(padded) < observed
    # The memory of other tasks may hold NaN, which a weight 0 would not remove.
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
    """M, one task at a time, and one piece of a task's rows at a time."""
    leaves = jax.tree.leaves(params)
    tasks, kept = _shape(memory)
    size, dtype = _piece(loss_fn, params, memory, kept), sum_dtype(common_dtype(*leaves))
    own_loss = scalar_loss(loss_fn)

    def gradient(rows):  # the contribution of these rows to the gradient of the mean loss
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
    """The number of rows per piece, so that the residuals of a gradient fit into the CPU's cache.

    All rows on other devices, and for a loss whose rows may depend on each other (batch norm).
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

    row = max(saved(2) - saved(1), 1)  # only what grows with the number of rows
    pieces = -(-kept // max(CACHE_BYTES // row, 1))
    return -(-kept // pieces)


def _along(part, direction):
    """The contribution of one leaf to M g."""
    if _is_factors(part):
        kernel = direction.reshape(part.inputs.shape[-1], -1)
        return jnp.sum(_times(part.inputs, kernel) * part.deltas, (1, 2))
    return exact_product(part, direction.ravel())


def _block_product(part, i, j, size):
    """The contribution of one leaf to a block of M M': rows from i on, columns from j on."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=size)
    if not _is_factors(part):
        return exact_product(cut(part, i), cut(part, j).T)
    products = [exact_product(joined(cut(x, i)), joined(cut(x, j)).T) for x in part]
    return (products[0] * products[1]).reshape(size, -1, size, part.inputs.shape[1]).sum((1, 3))


def _is_factors(part):
    return isinstance(part, Factors)


def joined(x):
    """Merge the first two axes: tasks (or batches) and rows."""
    return x.reshape(-1, *x.shape[2:])


def _times(x, kernel):
    return exact_product(joined(x), kernel).reshape(*x.shape[:2], -1)


def _lengthened(x, length):
    return jnp.pad(x, [(0, length - len(x)), *[(0, 0)] * (x.ndim - 1)])


def _masked(x, seen):
    return jnp.where(seen.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def _shape(memory):
    """The number of tasks, and of rows per task."""
    return jax.tree.leaves(memory)[0].shape[:2]


def _tasks(rows):
    return len(jax.tree.leaves(rows)[0])


def _block(tasks):
    """The number of tasks in a block; the same for the padded number of tasks."""
    return min(max(BLOCK, -(-tasks // PARTS)), tasks)


def _blocks(observed, size):
    return (observed + size - 1) // size


def _padded(tasks):
    return -(-tasks // _block(tasks)) * _block(tasks)
