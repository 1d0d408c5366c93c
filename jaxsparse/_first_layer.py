"""The first layer of an MLP outside the inner loop: `meta_gradient` of a glance, faster.

The first layer's inputs are the same at every step, so a gradient by its kernel W is a product of
inputs with derivatives by the layer's outputs: ``g_k = x_k delta_kᵀ,  h_k = Qᵀ E_k``. The loop
carries the outputs ``Z_k = Q W_k`` of the meta-rows Q alone, which a step changes by
``Q (a * g_k) = (Q * x_k) a * delta_k``, and keeps the derivatives; with those,
``sum_k h_k = Qᵀ sum_k E_k`` and
``sum_k h_k * G_k = sum_k (Q * x_k)ᵀ (delta_k * (E_k + ... + E_K))``.
What is a pass over five arrays of W's size in every step becomes two large products per glance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

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
    """The loss's first layer, if it tells one and its kernel is float32 or wider."""
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
    """`inner.meta_gradient` of the mean over all iterates, to first order, a row at each step.

    Args:
      split: the loss, cut behind its first layer.
      params: theta.
      step_sizes: a.
      batch: the rows of the inner steps, in their order, [n, ...].
      meta_rows: the rows of the outer loss, those of the batch last, [r + n, ...].
      weights: of the meta-rows, [r + n]; None: all alike.

    Returns:
      As `inner.meta_gradient`.

    Example:
      >>> d_params, d_sizes, metrics = meta_gradient(
      ...     loss_fn.split, params, sizes, batch, meta_rows, None)

    Source: von Oswald, Zhao et al. 2021, Eqs. 9-10, with the sums reordered.
    """
    kernel, rest, join = cut_leaf(params, split.kernel)
    size, rest_sizes, _ = cut_leaf(step_sizes, split.kernel)
    inputs, others = split.split(meta_rows)
    inputs = inputs.astype(kernel.dtype)
    count = len(jax.tree.leaves(batch)[0])
    replayed, share = len(inputs) - count, 1.0 / count
    batch_others = jax.tree.map(lambda x: x[replayed:, None], others)
    pairs = (inputs[replayed:, None] * inputs[None]).reshape(-1, inputs.shape[1])
    output_deltas = (pairs @ jnp.broadcast_to(size, kernel.shape)).reshape(count, len(inputs), -1)

    def inner_loss(phi, products, others):
        return scalar_loss(split.loss_fn)(join(phi, kernel), (products, others))

    def outer_loss(phi, products):
        loss = weighted_loss(split.loss_fn, (products, others), weights)
        return loss(join(phi, kernel))

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
    end, (inner_losses, outer, deltas, backs) = jax.lax.scan(
        step,
        (inputs @ kernel, rest, zeros, (zeros, zeros)),
        (places, batch_others, output_deltas),
    )
    *_, (d_rest, d_rest_sizes) = end
    later = share * jax.lax.cumsum(backs, reverse=True)
    d_kernel = inputs.T @ later[0]
    # The barrier keeps XLA from turning the product round, to one that it is slower at.
    moved = (later * deltas).reshape(len(pairs), -1)
    d_size = -jax.lax.optimization_barrier(moved.T @ pairs).T
    d_sizes = summed_like(step_sizes, join(d_rest_sizes, d_size))
    return join(d_rest, d_kernel), d_sizes, meta_metrics(inner_losses, outer)
