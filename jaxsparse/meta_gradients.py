"""The meta-gradient of a glance: to first order as sums over its inner steps, or differentiated."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.checks import scalar_loss
from jaxsparse.clipping import sum_dtype
from jaxsparse.inner import descend
from jaxsparse.losses import SplitLoss, weighted_loss
from jaxsparse.partition import cut_leaf
from jaxsparse.updates import cast

Tree = Any
MetaIterates = Literal["all", "last"]
GradientSum = Literal["before", "after"]


class Glance(NamedTuple):
    """What the meta-gradient is a function of; `lamaml_step` says what each is.

    Attributes:
      loss_fn: the loss of the inner steps, as the caller gave it.
      meta_loss_fn: that of the meta-rows.
      params: theta.
      sizes: the step sizes of the inner loop, a tree like theta.
      batch: the batch in the order its rows are taken, [n, ...].
      meta_rows: the replayed rows, then the batch, [r + n, ...].
      weights: of the meta-rows, [r + n]; None: all alike.
      batch_size: rows per inner step.
      bound: of the inner gradients' entries, or None.
      iterates: those that the meta-loss is the mean over.
      gradient_sum: where the gradients summed up for d step sizes are taken, to first order.
    """

    loss_fn: Callable
    meta_loss_fn: Callable
    params: Tree
    sizes: Tree
    batch: Any
    meta_rows: Any
    weights: jax.Array | None
    batch_size: int = 1
    bound: float | None = None
    iterates: MetaIterates = "all"
    gradient_sum: GradientSum = "before"


def meta_gradient(glance: Glance, second_order: bool) -> tuple[Tree, Tree, dict[str, jax.Array]]:
    """The derivatives of a glance's meta-loss by theta and by the step sizes.

    Args:
      glance: the glance.
      second_order: differentiate through the inner gradients.

    Returns:
      d theta, d step sizes, and the metrics: means over the iterates, and "inner_loss" [K].

    Example:
      >>> d_params, d_sizes, metrics = meta_gradient(glance, second_order=False)

    Source: von Oswald, Zhao et al. 2021, Eqs. 9-10.
    """
    if second_order:
        return _second_order(glance)
    split = _usable_split(glance)
    return _first_order(glance) if split is None else _split_first_order(glance, split)


def _first_order(glance):
    """With constant inner gradients: sums that the loop carries."""
    params, sizes, iterates = glance.params, glance.sizes, glance.iterates
    chunks = _chunks(glance)
    loss_and_grad = jax.value_and_grad(scalar_loss(glance.loss_fn), has_aux=True)
    meta_loss = weighted_loss(glance.meta_loss_fn, glance.meta_rows, glance.weights)
    meta_and_grad = jax.value_and_grad(meta_loss, has_aux=True)
    share = 1.0 / _length(chunks) if iterates == "all" else 1.0

    def meta_step(phi, gradient_sum, d_params, d_sizes):
        loss_and_metrics, h = meta_and_grad(cast(phi, params))
        return *_add_terms(d_params, d_sizes, share, h, gradient_sum), loss_and_metrics

    def step(carry, chunk):
        phi, gradient_sum, d_params, d_sizes = carry
        (loss, _), gradient = loss_and_grad(cast(phi, params), chunk)
        before = gradient_sum
        phi, gradient_sum = _inner_step(phi, before, sizes, gradient, glance.bound)
        if glance.gradient_sum == "after":
            _, gradient = loss_and_grad(cast(phi, params), chunk)
            gradient_sum = _added(before, _clamped(gradient, phi, glance.bound))
        outer = None
        if iterates == "all":
            d_params, d_sizes, outer = meta_step(phi, gradient_sum, d_params, d_sizes)
        return (phi, gradient_sum, d_params, d_sizes), (loss, outer)

    sums, (inner_loss, outer) = jax.lax.scan(step, _start(params), chunks)
    _, _, d_params, d_sizes = sums
    if iterates == "last":
        d_params, d_sizes, outer = meta_step(*sums)
    return d_params, _as_sizes(d_sizes, sizes), _metrics(inner_loss, *outer)


def _usable_split(glance):
    """The loss's first layer, where `_split_first_order` is exact and pays."""
    split = getattr(glance.loss_fn, "split", None)
    if split is None or glance.meta_loss_fn is not glance.loss_fn or glance.bound is not None:
        return None
    if glance.iterates != "all" or glance.batch_size != 1 or glance.gradient_sum != "before":
        return None  # The products before the loop would cost more than those they replace.
    dtype = cut_leaf(glance.params, split.kernel)[0].dtype
    return split if dtype == sum_dtype(dtype) else None


def _split_first_order(glance: Glance, split: SplitLoss):
    """As `_first_order`, with the first layer's kernel W outside the loop.

    Its inputs are the same at every step, so that a gradient by W is a product of inputs with
    derivatives by the layer's outputs: ``g_k = x_k delta_kᵀ, h_k = Qᵀ E_k``. The loop carries the
    outputs ``Z_k = Q phi_k`` of the meta-rows Q alone, which a step moves by
    ``Q (a * g_k) = (Q * x_k) a * delta_k``, and keeps the derivatives; with those,
    ``sum_k h_k = Qᵀ sum_k E_k`` and
    ``sum_k h_k * G_k = sum_k (Q * x_k)ᵀ (delta_k * (E_k + ... + E_K))``.
    What was a pass over five arrays of W's size in every step is two large products per glance.
    """
    kernel, rest, join = cut_leaf(glance.params, split.kernel)
    size, rest_sizes, _ = cut_leaf(glance.sizes, split.kernel)
    inputs, others = split.split(glance.meta_rows)
    inputs = inputs.astype(kernel.dtype)
    count, replayed = _length(glance.batch), len(inputs) - _length(glance.batch)
    batch_others = jax.tree.map(lambda x: x[replayed:, None], others)
    pairs = (inputs[replayed:, None] * inputs[None]).reshape(-1, inputs.shape[1])
    falls = (pairs @ jnp.broadcast_to(size, kernel.shape)).reshape(count, len(inputs), -1)
    share = 1.0 / count

    def inner_loss(phi, products, others):
        return scalar_loss(split.loss_fn)(join(cast(phi, rest), kernel), (products, others))

    def meta_loss(phi, products):
        loss = weighted_loss(split.loss_fn, (products, others), glance.weights)
        return loss(join(cast(phi, rest), kernel))

    loss_and_grads = jax.value_and_grad(inner_loss, (0, 1), has_aux=True)
    meta_and_grads = jax.value_and_grad(meta_loss, (0, 1), has_aux=True)

    def step(carry, row):
        products, phi, gradient_sum, d_params, d_sizes = carry
        place, own_others, fall = row
        own = jax.lax.dynamic_slice_in_dim(products, place, 1)
        (loss, _), (gradient, delta) = loss_and_grads(phi, own, own_others)
        products = products - fall * delta
        phi, gradient_sum = _inner_step(phi, gradient_sum, rest_sizes, gradient)
        outer, (h, back) = meta_and_grads(phi, products)
        d_params, d_sizes = _add_terms(d_params, d_sizes, share, h, gradient_sum)
        return (products, phi, gradient_sum, d_params, d_sizes), (loss, outer, delta, back)

    places = replayed + jnp.arange(count)
    end, (inner_loss, outer, deltas, backs) = jax.lax.scan(
        step, (inputs @ kernel, *_start(rest)), (places, batch_others, falls)
    )
    *_, d_rest, d_rest_sizes = end
    later = share * jax.lax.cumsum(backs, reverse=True)
    d_kernel = inputs.T @ later[0]
    # The barrier keeps XLA from turning the product round, to one that it is slower at.
    moved = (later * deltas).reshape(len(pairs), -1)
    d_size = -jax.lax.optimization_barrier(moved.T @ pairs).T
    d_sizes = _as_sizes(join(d_rest_sizes, d_size), glance.sizes)
    return join(d_rest, d_kernel), d_sizes, _metrics(inner_loss, *outer)


def _second_order(glance):
    """The derivatives of the whole glance, its steps retraced from the last to the first.

    ``c_k = [h_k] + c_{k+1} d phi_{k+1} / d phi_k,  d theta = c_0,  d a = sum_k c_k d phi_k / d a``
    with h_k the gradient of what phi_k adds to the meta-loss. Each meta-loss is evaluated once, on
    the way back, and of the inner steps only phi is kept.
    """
    loss_and_grad = jax.value_and_grad(scalar_loss(glance.loss_fn), has_aux=True)
    meta_loss = weighted_loss(glance.meta_loss_fn, glance.meta_rows, glance.weights)
    meta_and_grad = jax.value_and_grad(meta_loss, has_aux=True)
    params, sizes, chunks = glance.params, glance.sizes, _chunks(glance)
    every = glance.iterates == "all"
    share = 1.0 / _length(chunks)

    def move(phi, sizes, chunk):
        (loss, _), gradient = loss_and_grad(phi, chunk)
        return descend(phi, sizes, jax.tree.map(lambda g: _clamp(g, glance.bound), gradient)), loss

    def step(phi, chunk):
        end, loss = move(phi, sizes, chunk)
        return end, (phi, loss)

    def step_back(carry, passed):
        cotangent, d_sizes = carry
        start, chunk = passed
        end, pull, _ = jax.vjp(lambda p, a: move(p, a, chunk), start, sizes, has_aux=True)
        outer = None
        if every:
            outer, h = meta_and_grad(end)
            cotangent = jax.tree.map(lambda c, x: c + share * x, cotangent, h)
        cotangent, d_step = pull(cotangent)
        return (cotangent, jax.tree.map(jnp.add, d_sizes, d_step)), outer

    end, (starts, inner_loss) = jax.lax.scan(step, params, chunks)
    if every:
        cotangent = jax.tree.map(jnp.zeros_like, params)
    else:
        outer, cotangent = meta_and_grad(end)
    carry = (cotangent, jax.tree.map(jnp.zeros_like, sizes))
    (d_params, d_sizes), outers = jax.lax.scan(step_back, carry, (starts, chunks), reverse=True)
    return d_params, d_sizes, _metrics(inner_loss, *(outers if every else outer))


def _start(params):
    """phi, and zero for the sum of its gradients, for d theta and for d step sizes."""
    phi = jax.tree.map(lambda x: x.astype(sum_dtype(x.dtype)), params)
    zeros = jax.tree.map(jnp.zeros_like, phi)
    return phi, zeros, zeros, zeros


def _inner_step(phi, gradient_sum, sizes, gradient, bound=None):
    gradient = _clamped(gradient, phi, bound)
    return descend(phi, sizes, gradient), _added(gradient_sum, gradient)


def _clamped(gradient, like, bound):
    return jax.tree.map(lambda g, p: _clamp(g, bound).astype(p.dtype), gradient, like)


def _added(x, y):
    return jax.tree.map(jnp.add, x, y)


def _add_terms(d_params, d_sizes, share, h, gradient_sum):
    # Each term is weighted here, not their sum after the loop: a constant factor keeps XLA
    # from its tiled code for the CPU, which runs such sums several times slower.
    d_params = jax.tree.map(lambda d, x: d + share * x.astype(d.dtype), d_params, h)
    d_sizes = jax.tree.map(
        lambda d, x, g: d - share * x.astype(d.dtype) * g, d_sizes, h, gradient_sum
    )
    return d_params, d_sizes


def _as_sizes(d_sizes, sizes):
    """A step size shared by a whole tensor collects what its entries receive."""
    return jax.tree.map(
        lambda d, a: (d if a.shape == d.shape else d.sum()).astype(a.dtype), d_sizes, sizes
    )


def _metrics(inner_loss, loss, metrics):
    """Means over the iterates that the meta-loss is taken at (or the one iterate's own values)."""
    return jax.tree.map(jnp.mean, {"loss": loss, **metrics}) | {"inner_loss": inner_loss}


def _chunks(glance):
    size = glance.batch_size
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), glance.batch)


def _clamp(x, bound):
    return x if bound is None else jnp.clip(x, -bound, bound)


def _length(tree):
    return len(jax.tree.leaves(tree)[0])
