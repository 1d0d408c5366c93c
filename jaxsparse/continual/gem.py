"""Gradient episodic memory: steps that, to first order, do not raise the loss of earlier tasks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsparse.checks import (
    check_bound,
    check_floating,
    check_like_rows,
    check_rows,
    check_weights,
)
from jaxsparse.clipping import clip_by_norm, clip_scale, common_dtype, sum_dtype
from jaxsparse.continual.er import OnlineState, apply_gradient, with_metrics
from jaxsparse.continual.quadratic import solve_bounded_qp
from jaxsparse.continual.task_gradients import (
    alignments,
    combination,
    gram_matrix,
    task_gradients,
)
from jaxsparse.losses import check_weighable, weighted_loss
from jaxsparse.precision import float32_by_default


@functools.partial(jax.jit, static_argnames=("loss_fn", "optimizer", "clip_norm"))
@float32_by_default
def gem_step(
    state: OnlineState,
    batch: Any,
    memory: Any,
    observed: jax.Array | int,
    *,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    margin: jax.Array | float = 0.5,
    clip_norm: float | None = None,
    ridge: jax.Array | float = 1e-3,
) -> tuple[OnlineState, dict[str, jax.Array]]:
    """One step of GEM: along the gradient nearest to the batch's that no earlier task opposes.

    With g the gradient of the batch and M that of each earlier task's memory, a task a row: if any
    entry of ``M g`` is negative,
    ``v = argmin 1/2 v' (M M' + ridge I) v + (M g)' v   such that v >= margin``
    ``g <- g + M' v``
    and theta follows its optimiser along g.

    What costs are M and M M', of the observed tasks only, and M M' only where a task opposes. Where
    the loss tells its first layer (as `cross_entropy` of `nn.mlp` does) and few rows of each task
    are kept, that layer's gradients stay factors, its inputs and derivatives by its outputs: three
    to five times faster. A CPU takes the rows of a task in pieces that its cache holds where the
    loss is known to be a mean over rows, each of which counts alone: where `loss_fn.rowwise` is
    True, as of `cross_entropy` of a network without batch norm.

    Under `vmap` over states M M' is made at every step; `jax.lax.map` over seeds is faster.

    Args:
      state: an `OnlineState`; its arrays are not donated.
      batch: the newest rows of the stream, a tree whose leaves lead with a row axis [n, ...].
      memory: the rows kept of each task, a tree like `batch`, [T, k, ...].
      observed: int32 scalar in [0, T]: the earlier tasks, 0 .. observed - 1; the present one is not
        among them. What `memory` holds of the others is not looked at.
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`: the mean loss of the
        rows, any number of them.
      optimizer: the optax transformation for theta, `optax.sgd(eta)` in the paper.
      margin: gamma, the memory strength, 0 or more.
      clip_norm: c: g and each row of M are scaled by ``min(1, c / (norm + 1e-6))`` before all else;
        None does not clip.
      ridge: what is added to the diagonal of M M'.

    Returns:
      The new state, and metrics: the batch's "loss" (and the loss function's metrics), the
      "gradient_norm" of g before clipping, and "violations", int32, the number of tasks opposing.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Example:
      >>> from jaxsparse.continual.er import init_online_state
      >>> sgd = optax.sgd(0.1)
      >>> state = init_online_state(jnp.zeros(2), sgd)
      >>> state, metrics = gem_step(
      ...     state, jnp.array([[1.0, 0.0]]), jnp.array([[[-1.0, 1.0]]]), 1, optimizer=sgd,
      ...     loss_fn=lambda w, rows: jnp.mean((rows - w) ** 2))
      >>> int(metrics["violations"])
      1

    Source: Lopez-Paz & Ranzato 2017, GEM, Eq. 11 and Algorithm 1; the ridge from the authors' code.
    """
    check_floating("state.params", state.params)
    check_bound("clip_norm", clip_norm)
    check_rows("batch", batch)
    tasks, _ = check_like_rows("memory", memory, "batch", batch, axes=2)
    if jnp.shape(observed) != () or not jnp.issubdtype(jnp.result_type(observed), jnp.integer):
        kind = f"{jnp.result_type(observed)} {jnp.shape(observed)}"
        raise TypeError(f"observed must be one integer, a count of tasks, got {kind}")
    loss, metrics, gradient, norm = _gradient(state.params, loss_fn, batch, None, clip_norm)

    rows = task_gradients(loss_fn, state.params, memory, observed)
    along = alignments(rows, gradient, observed)[:tasks]
    # Not `along < 0`: a task whose gradient is NaN would then count as one that agrees.
    violations = jnp.sum(~(along >= 0), dtype=jnp.int32)

    def project(gradient):
        gram = gram_matrix(rows, observed)[:tasks, :tasks]
        norms = jnp.sqrt(jnp.diagonal(gram))
        scale = 1.0 if clip_norm is None else clip_scale(norms, clip_norm)
        scale = jnp.broadcast_to(scale, norms.shape).astype(gram.dtype)
        gram = gram * scale[:, None] * scale[None, :] + ridge * jnp.eye(tasks, dtype=gram.dtype)
        seen = jnp.arange(tasks) < observed
        v = scale * solve_bounded_qp(gram, scale * along, margin, seen)
        shift = combination(rows, v, gradient)
        return jax.tree.map(lambda g, x: g + x.astype(g.dtype), gradient, shift)

    gradient = jax.lax.cond(violations > 0, project, lambda g: g, gradient)
    own = {"loss": loss, "gradient_norm": norm, "violations": violations}
    return apply_gradient(state, gradient, optimizer), with_metrics(own, metrics)


@functools.partial(jax.jit, static_argnames=("loss_fn", "optimizer", "clip_norm"))
@float32_by_default
def agem_step(
    state: OnlineState,
    batch: Any,
    memory_rows: Any,
    memory_weights: jax.Array | None = None,
    *,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    clip_norm: float | None = None,
) -> tuple[OnlineState, dict[str, jax.Array]]:
    """One step of A-GEM: as GEM's, with one gradient for all earlier tasks.

    With g the gradient of the batch and h that of rows drawn from the memory of earlier tasks,
    ``g <- g - (g' h / h' h) h   if g' h < 0``
    and theta follows its optimiser along g.

    Args:
      state: an `OnlineState`; its arrays are not donated.
      batch: the newest rows of the stream, a tree whose leaves lead with a row axis [n, ...].
      memory_rows: rows drawn from the memory of earlier tasks, a tree like `batch`, [m, ...].
      memory_weights: [m], floating, not negative: their weights; all 0 where there is no earlier
        task, and g is then kept (what lies there must be finite). Not for a loss with statistics
        over its rows, as of a network with batch norm (see `weighted_loss`). None: all rows alike.
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`: the mean loss of the
        rows, any number of them.
      optimizer: the optax transformation for theta, `optax.sgd(eta)` in the paper.
      clip_norm: c: g is scaled by ``min(1, c / (norm + 1e-6))`` before all else; None does not
        clip. The length of h does not matter.

    Returns:
      The new state, and metrics: the batch's "loss" (and the loss function's metrics), the
      "gradient_norm" of g before clipping, and "violations", int32, 1 where g opposed h, else 0.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Example:
      >>> from jaxsparse.continual.er import init_online_state
      >>> sgd = optax.sgd(0.5)
      >>> state = init_online_state(jnp.zeros(2), sgd)
      >>> state, metrics = agem_step(
      ...     state, jnp.array([[1.0, 0.0]]), jnp.array([[-1.0, 1.0]]), jnp.ones(1), optimizer=sgd,
      ...     loss_fn=lambda w, rows: jnp.sum((rows - w) ** 2))
      >>> state.params.tolist()  # at a right angle to (-1, 1)
      [0.5, 0.5]

    Source: Chaudhry et al. 2019, A-GEM, Eq. 11.
    """
    check_floating("state.params", state.params)
    check_bound("clip_norm", clip_norm)
    check_rows("batch", batch)
    drawn = check_like_rows("memory_rows", memory_rows, "batch", batch)
    weights: jax.Array | None = None
    remembers: jax.Array | bool = True
    if memory_weights is not None:
        check_weights("memory_weights", memory_weights, drawn)
        check_weighable("memory_weights", loss_fn)
        remembers = jnp.any(memory_weights > 0)
        weights = jnp.where(remembers, memory_weights, 1)  # a mean needs some weight
    loss, metrics, gradient, norm = _gradient(state.params, loss_fn, batch, None, clip_norm)
    _, _, reference, _ = _gradient(state.params, loss_fn, memory_rows, weights, None)
    alignment = _tree_dot(gradient, reference)
    violated = remembers & (alignment < 0)
    share = jnp.where(violated, alignment / _tree_dot(reference, reference), 0)
    gradient = jax.tree.map(lambda g, h: g - share.astype(g.dtype) * h, gradient, reference)
    own = {"loss": loss, "gradient_norm": norm, "violations": violated.astype(jnp.int32)}
    return apply_gradient(state, gradient, optimizer), with_metrics(own, metrics)


def _gradient(params, loss_fn, rows, weights, clip_norm):
    loss = weighted_loss(loss_fn, rows, weights)
    (loss, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    gradient, norm = clip_by_norm(gradient, clip_norm)
    return loss, metrics, gradient, norm


def _tree_dot(x, y):
    dtype = _sum_dtype(x)
    products = jax.tree.map(lambda a, b: jnp.sum(a.astype(dtype) * b.astype(dtype)), x, y)
    return sum(jax.tree.leaves(products))


def _sum_dtype(params):
    return sum_dtype(common_dtype(*jax.tree.leaves(params)))
