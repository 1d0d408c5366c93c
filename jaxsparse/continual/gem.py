"""Gradient episodic memory: GEM and A-GEM.

Their steps, to first order, do not increase the loss on the stored rows of earlier tasks.
"""

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
    with_metrics,
)
from jaxsparse.clipping import clip_by_norm, clip_scale, common_dtype, sum_dtype
from jaxsparse.continual.er import OnlineState, apply_gradient
from jaxsparse.continual.quadratic import solve_bounded_qp
from jaxsparse.continual.task_gradients import (
    alignments,
    combination,
    gram_matrix,
    task_gradients,
)
from jaxsparse.losses import check_one_batch, check_weighable, weighted_loss
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
    """One step of GEM: project the gradient so that it does not conflict with earlier tasks.

    g is the gradient of the batch. Row t of M is the gradient of the loss on the memory of task t.
    If any entry of ``M g`` is negative (a violation):
    ``v = argmin 1/2 v' (M M' + ridge I) v + (M g)' v   such that v >= margin``
    ``g <- g + M' v``
    Then theta is updated by its optimiser with g.

    Most time goes into M and M M'. Only the observed tasks are computed, and M M' only if there is
    a violation. Two cases are faster:
    - The loss has a `split` (such as `cross_entropy` of `nn.mlp`) and the memory has few rows per
      task. The gradients of the first layer are then stored as two factors (3-5 times faster).
    - On the CPU, `loss_fn.rowwise` is True (such as `cross_entropy` of a network without batch
      norm). The rows of a task are then processed in pieces that fit the cache.

    Under `vmap` over states, M M' is computed in every step. `jax.lax.map` over seeds is faster.

    Args:
      state: an `OnlineState`; its arrays are not donated.
      batch: the newest rows of the stream, a tree whose leaves have a leading row axis [n, ...].
      memory: the stored rows of each task, a tree like `batch`, [T, k, ...].
      observed: int32 scalar in [0, T], the number of earlier tasks, without the current one. The
        memory of tasks from index `observed` on is not used.
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`: the mean loss of any
        number of rows.
      optimizer: the optax transformation for theta, `optax.sgd(eta)` in the paper.
      margin: gamma, the memory strength, 0 or more.
      clip_norm: c: first of all, g and each row of M are scaled by ``min(1, c / (norm + 1e-6))``.
        None does not clip.
      ridge: the value added to the diagonal of M M'.

    Returns:
      The new state, and metrics: the "loss" of the batch and the loss function's metrics, the
      "gradient_norm" of g before clipping, and "violations", int32, the number of tasks with one.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
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
    check_one_batch(loss_fn)
    check_rows("batch", batch)
    tasks, _ = check_like_rows("memory", memory, "batch", batch, axes=2)
    if jnp.shape(observed) != () or not jnp.issubdtype(jnp.result_type(observed), jnp.integer):
        kind = f"{jnp.result_type(observed)} {jnp.shape(observed)}"
        raise TypeError(f"observed must be one integer, the number of tasks, got {kind}")
    loss, metrics, gradient, norm = _gradient(state.params, loss_fn, batch, None, clip_norm)

    rows = task_gradients(loss_fn, state.params, memory, observed)
    along = alignments(rows, gradient, observed)[:tasks]
    # Not `along < 0`, so that a task whose gradient is NaN counts as a violation.
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
    """One step of A-GEM: like GEM, but with a single gradient for all earlier tasks.

    g is the gradient of the batch, h that of rows drawn from the memory of earlier tasks.
    ``g <- g - (g' h / h' h) h   if g' h < 0``
    Then theta is updated by its optimiser with g.

    Args:
      state: an `OnlineState`; its arrays are not donated.
      batch: the newest rows of the stream, a tree whose leaves have a leading row axis [n, ...].
      memory_rows: rows drawn from the memory of earlier tasks, a tree like `batch`, [m, ...].
      memory_weights: [m], floating, not negative: the weights of `memory_rows`. If all are 0, as
        during the first task, g is not projected; the rows must still be finite. The loss must not
        use statistics over its rows, as batch norm does (see `weighted_loss`). None: all rows have
        the same weight.
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`: the mean loss of any
        number of rows.
      optimizer: the optax transformation for theta, `optax.sgd(eta)` in the paper.
      clip_norm: c: first of all, g is scaled by ``min(1, c / (norm + 1e-6))``. None does not clip.
        The norm of h has no influence.

    Returns:
      The new state, and metrics: the "loss" of the batch and the loss function's metrics, the
      "gradient_norm" of g before clipping, and "violations", int32, 1 if g was projected, else 0.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> from jaxsparse.continual.er import init_online_state
      >>> sgd = optax.sgd(0.5)
      >>> state = init_online_state(jnp.zeros(2), sgd)
      >>> state, metrics = agem_step(
      ...     state, jnp.array([[1.0, 0.0]]), jnp.array([[-1.0, 1.0]]), jnp.ones(1), optimizer=sgd,
      ...     loss_fn=lambda w, rows: jnp.sum((rows - w) ** 2))
      >>> state.params.tolist()  # orthogonal to (-1, 1)
      [0.5, 0.5]

    Source: Chaudhry et al. 2019, A-GEM, Eq. 11.
    """
    check_floating("state.params", state.params)
    check_bound("clip_norm", clip_norm)
    check_one_batch(loss_fn)
    check_rows("batch", batch)
    drawn = check_like_rows("memory_rows", memory_rows, "batch", batch)
    weights: jax.Array | None = None
    remembers: jax.Array | bool = True
    if memory_weights is not None:
        memory_weights = check_weights("memory_weights", memory_weights, drawn)
        check_weighable("memory_weights", loss_fn)
        remembers = jnp.any(memory_weights > 0)
        weights = jnp.where(remembers, memory_weights, 1)  # avoids a division by zero
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
