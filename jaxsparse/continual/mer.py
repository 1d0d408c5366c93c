"""Meta-experience replay: Reptile over the newest example and replayed ones."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.checks import (
    check_bound,
    check_floating,
    check_like_rows,
    check_rows,
    check_weights,
    scalar_loss,
)
from jaxsparse.clipping import clip_by_norm, sum_dtype
from jaxsparse.continual.er import (
    OnlineState,
)
from jaxsparse.updates import cast


@functools.partial(jax.jit, static_argnames=("loss_fn", "clip_norm"))
def mer_step(
    state: OnlineState,
    example: Any,
    replay: Any,
    replay_weights: jax.Array | None = None,
    *,
    loss_fn: Callable,
    learning_rate: jax.Array | float,
    within_batch_rate: jax.Array | float,
    across_batch_rate: jax.Array | float,
    clip_norm: float | None = None,
) -> tuple[OnlineState, dict[str, jax.Array]]:
    """One example's turn in MER: SGD row by row, Reptile within each batch and across batches.

    For the batches i = 1 .. s, each the example and then its r replayed rows, from theta_0 = theta,
    ``w <- w - alpha * weight_j * grad L(w; row_j),   j = 0 .. r,   from w = theta_{i-1}``
    ``theta_i = theta_{i-1} + beta (w - theta_{i-1})``
    and at last ``theta <- theta + gamma (theta_s - theta)``.

    Args:
      state: an `OnlineState`, made without an optimiser; its arrays are not donated.
      example: the newest row of the stream, a tree whose leaves lead with an axis of length 1.
      replay: rows drawn from memory, a tree like `example`, [s, r, ...].
      replay_weights: [s, r], floating: what each replayed row's step is multiplied by, the
        example's by 1; 0 leaves the weights exactly as they are (what lies there must be finite).
        None: all 1.
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`; called with one row.
      learning_rate: alpha, of the SGD steps.
      within_batch_rate: beta.
      across_batch_rate: gamma.
      clip_norm: c: each gradient is scaled by ``min(1, c / (norm + 1e-6))``; None does not clip.

    Returns:
      The new state, and metrics: the example's "loss" (and the loss function's metrics) at theta,
      before all steps.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes that do not fit; the message names them.

    Example:
      >>> state = init_online_state(jnp.zeros(2))
      >>> state, metrics = mer_step(
      ...     state, jnp.ones((1, 2)), jnp.zeros((5, 10, 2)), learning_rate=0.1,
      ...     within_batch_rate=0.01, across_batch_rate=1.0,
      ...     loss_fn=lambda w, rows: jnp.mean((rows - w) ** 2))
      >>> int(state.step)
      1

    Source: Riemer et al. 2019, MER, Algorithm 1; the example first, as in the authors' code.
    """
    check_floating("state.params", state.params)
    check_bound("clip_norm", clip_norm)
    if check_rows("example", example) != (1,):
        raise ValueError(f"example must be one row, got {check_rows('example', example)[0]}")
    batches = check_like_rows("replay", replay, "example", example, axes=2)
    if replay_weights is None:
        replay_weights = jnp.ones(batches)
    check_weights("replay_weights", replay_weights, batches)
    value_and_grad = jax.value_and_grad(scalar_loss(loss_fn), has_aux=True)

    def sgd(params, row_and_weight):
        row, weight = row_and_weight
        row = jax.tree.map(lambda x: x[None], row)
        value, gradient = value_and_grad(cast(params, state.params), row)
        gradient, _ = clip_by_norm(gradient, clip_norm)
        return _step(params, gradient, -learning_rate * weight), value

    def batch(params, rows_and_weights):
        rows, weights = rows_and_weights
        rows = jax.tree.map(lambda e, r: jnp.concatenate([e, r]), example, rows)
        weights = jnp.concatenate([jnp.ones(1, weights.dtype), weights])
        end, values = jax.lax.scan(sgd, params, (rows, weights))
        return _reptile(params, end, within_batch_rate), jax.tree.map(lambda x: x[0], values)

    # Carried in float32 where theta is kept in halves, which would lose steps as small as these.
    start = jax.tree.map(lambda x: x.astype(sum_dtype(x.dtype)), state.params)
    end, values = jax.lax.scan(batch, start, (replay, replay_weights))
    params = cast(_reptile(start, end, across_batch_rate), state.params)
    loss, metrics = jax.tree.map(lambda x: x[0], values)
    return OnlineState(params, state.opt_state, state.step + 1), {"loss": loss} | metrics


def _reptile(start, end, rate):
    return _step(start, jax.tree.map(jnp.subtract, end, start), rate)


def _step(params, direction, rate):
    return jax.tree.map(
        lambda p, d: p + jnp.asarray(rate, p.dtype) * d.astype(p.dtype), params, direction
    )
