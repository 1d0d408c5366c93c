"""A faster `meta_gradient` for La-MAML, without the kernel of an MLP's first layer in the loop.

The inputs of the first layer do not change in the inner loop. So the gradients of its kernel W are
products of inputs and derivatives by the outputs of the layer: ``g_k = x_k delta_kᵀ`` and
``h_k = Qᵀ E_k``, with Q the inputs of the outer loss (the meta-rows). The loop updates only the
outputs ``Z_k = Q W_k``, by ``Q (a * g_k) = (Q * x_k) a * delta_k``, and stores delta_k and E_k.
Afterwards
``sum_k h_k = Qᵀ sum_k E_k`` and
``sum_k h_k * G_k = sum_k (Q * x_k)ᵀ (delta_k * (E_k + ... + E_K))``.
Instead of five arrays of W's size per step, this reads and writes two large products per glance.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse._classifier import CrossEntropy, dot
from jaxsparse._tree import cut_leaf
from jaxsparse.checks import scalar_loss
from jaxsparse.clipping import sum_dtype
from jaxsparse.inner import (
    add_gradient,
    add_meta_terms,
    gated_step,
    meta_metrics,
    summed_like,
    zeros_to_sum,
)
from jaxsparse.losses import SplitLoss, weighted_loss

Tree = Any


def float32_split(loss_fn: Callable, params: Tree) -> SplitLoss | None:
    """The loss's `split`, if it has one and the kernel is float32 or wider."""
    split = getattr(loss_fn, "split", None)
    if split is None:
        return None
    kernel, _, _ = cut_leaf(params, split.kernel)
    return split if kernel.dtype == sum_dtype(kernel.dtype) else None


def meta_gradient(
    split: SplitLoss,
    params: Tree,
    step_sizes: Tree,
    batch: Any,
    meta_rows: Any,
    weights: jax.Array | None,
) -> tuple[Tree, Tree, dict[str, jax.Array]]:
    """`inner.meta_gradient` to first order, with one row per step and the mean over all iterates.

    `meta_rows` [r + n, ...] are the rows of the outer loss, ending with those of `batch` [n, ...];
    `weights` are theirs.
    """
    # The whole is a branch, not its loop alone: under vmap the results of a branch are transposed,
    # and products of transposed arrays are rounded differently.
    in_turn, at_once = (functools.partial(_meta_gradient, x, split) for x in (_in_turn, _at_once))
    args = params, step_sizes, batch, meta_rows, weights
    if isinstance(split.loss_fn, CrossEntropy) and split.loss_fn.rowwise:
        return jax.lax.platform_dependent(*args, cpu=in_turn, default=at_once)
    return in_turn(*args)


def _meta_gradient(loop, split, params, step_sizes, batch, meta_rows, weights):
    kernel, rest, join = cut_leaf(params, split.kernel)
    size, rest_sizes, _ = cut_leaf(step_sizes, split.kernel)
    inputs, others = split.split(meta_rows)
    inputs = inputs.astype(kernel.dtype)
    count = len(jax.tree.leaves(batch)[0])
    replayed, share = len(inputs) - count, 1.0 / count
    pairs = (inputs[replayed:, None] * inputs[None]).reshape(-1, inputs.shape[1])
    output_deltas = (pairs @ jnp.broadcast_to(size, kernel.shape)).reshape(count, len(inputs), -1)

    def loss_fn(phi, rows):
        return scalar_loss(split.loss_fn)(join(phi, kernel), rows)

    def weighted_fn(phi, rows, weights):
        return weighted_loss(split.loss_fn, rows, weights)(join(phi, kernel))

    sums, inner_losses, outer, deltas, backs = loop(
        *(loss_fn, weighted_fn),
        *(inputs @ kernel, rest, rest_sizes, others, output_deltas, weights),
    )
    d_rest, d_rest_sizes = sums
    later = share * jax.lax.cumsum(backs, reverse=True)
    d_kernel = inputs.T @ later[0]
    # Without the barrier XLA would compute the transposed product, which is slower.
    moved = (later * deltas).reshape(len(pairs), -1)
    d_size = -jax.lax.optimization_barrier(moved.T @ pairs).T
    d_sizes = summed_like(step_sizes, join(d_rest_sizes, d_size))
    return join(d_rest, d_kernel), d_sizes, meta_metrics(inner_losses, outer)


def _in_turn(loss_fn, weighted_fn, products, rest, rest_sizes, others, output_deltas, weights):
    """The loop with two gradients per step: that of a row, then that of all.

    Args:
      loss_fn: (phi, (products, others)) -> (loss, metrics), with phi the list of all other leaves.
      weighted_fn: (phi, (products, others), weights) -> the same, weighted.
      products: Q W_0, [r + n, out].
      rest: phi_0.
      rest_sizes: its step sizes.
      others: of the meta-rows.
      output_deltas: (Q * x_k) a, [n, r + n, out].
      weights: of the meta-rows, or None.

    Returns:
      The sums (d theta, d a) of `rest`, the inner losses, the outer losses and metrics, delta_k
      [n, 1, out] and E_k [n, r + n, out].
    """
    count = len(output_deltas)
    replayed, share = len(products) - count, 1.0 / count
    batch_others = jax.tree.map(lambda x: x[replayed:, None], others)

    def inner_loss(phi, products, others):
        return loss_fn(phi, (products, others))

    def outer_loss(phi, products):
        return weighted_fn(phi, (products, others), weights)

    loss_and_grads = jax.value_and_grad(inner_loss, (0, 1), has_aux=True)
    outer_and_grads = jax.value_and_grad(outer_loss, (0, 1), has_aux=True)

    def step(carry, row):
        products, phi, total, sums = carry
        place, own_others, output_delta = row
        own = jax.lax.dynamic_slice_in_dim(products, place, 1)
        (loss, _), (gradient, delta) = loss_and_grads(phi, own, own_others)
        products = products - output_delta * delta
        total = add_gradient(total, gradient)
        phi = gated_step(rest, rest_sizes, total)
        outer, (h, back) = outer_and_grads(phi, products)
        sums = add_meta_terms(sums, share, h, total)
        return (products, phi, total, sums), (loss, outer, delta, back)

    places, zeros = replayed + jnp.arange(count), zeros_to_sum(rest)
    start = products, rest, zeros, (zeros, zeros)
    end, out = jax.lax.scan(step, start, (places, batch_others, output_deltas))
    return end[-1], *out


def _at_once(loss_fn, _, products, rest, rest_sizes, others, output_deltas, weights):
    """The same with the gradients of all rows at once, in fewer kernels, for GPUs.

    The batch is among the meta-rows. So the gradients of the rows at phi_k give both h_k, their
    weighted mean, and g_{k+1}, that of a single row. The loss must be a mean over independent rows.
    """
    count = len(output_deltas)
    replayed, share = len(products) - count, 1.0 / count
    weights = jnp.ones(len(products), products.dtype) if weights is None else weights
    shares = weights / weights.sum()
    single = jax.tree.map(lambda x: x[:, None], others)

    def row_loss(phi, products, others):
        return loss_fn(phi, (products[None], others))

    of_rows = jax.vmap(jax.value_and_grad(row_loss, (0, 1), has_aux=True), (None, 0, 0))

    def mean(gradients):
        # Not a matrix product: XLA does not fuse that, and all gradients would go to memory.
        wide = gradients.astype(sum_dtype(gradients.dtype))
        return jnp.sum(wide * shares.astype(wide.dtype).reshape(-1, *[1] * (wide.ndim - 1)), 0)

    def step(carry, row):
        products, phi, total, sums = carry
        place, output_delta = row
        losses, (gradients, backs) = of_rows(phi, products, single)
        sums = add_meta_terms(sums, share, jax.tree.map(mean, gradients), total)
        products = products - output_delta * backs[place][None]
        total = add_gradient(total, [g[place] for g in gradients])
        phi = gated_step(rest, rest_sizes, total)
        return (products, phi, total, sums), (losses, backs)

    places, zeros = replayed + jnp.arange(count), zeros_to_sum(rest)
    first = places[0], output_deltas[0]
    moved, at_start = step((products, rest, zeros, (zeros, zeros)), first)
    # The last step moves phi in vain.
    following = jax.tree.map(lambda x: jnp.roll(x, -1, 0), (places, output_deltas))
    end, (losses, backs) = jax.lax.scan(step, (*moved[:-1], (zeros, zeros)), following)

    def own(start, x):
        """Of the row of each inner step, before the step."""
        before = jnp.concatenate([start[None], x[:-1]])
        return jax.vmap(lambda x, place: x[place])(before, places)

    inner_losses = own(at_start[0][0], losses[0])
    deltas = own(at_start[1], backs)[:, None]
    outer = jax.tree.map(lambda x: dot(x, shares).astype(x.dtype), losses)
    backs *= shares.astype(backs.dtype)[None, :, None]
    return end[-1], inner_losses, outer, deltas, backs
