"""Experience replay (ER), and the state that the baselines of continual learning share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse.checks import check_bound, check_floating, check_rows, copy_arrays, with_metrics
from jaxsparse.clipping import clip_by_norm
from jaxsparse.losses import check_one_batch, weighted_loss, with_replay
from jaxsparse.precision import float32_by_default
from jaxsparse.updates import init_optimizer, update

Tree = Any


class OnlineState(NamedTuple):
    """Everything a step changes.

    Attributes:
      params: theta, which is also used for predictions.
      opt_state: the optax state for theta; () without an optimiser.
      step: int32, the number of steps so far.

    Examples:
      >>> state = OnlineState(jnp.zeros(2), (), jnp.zeros((), jnp.int32))
    """

    params: Tree
    opt_state: optax.OptState
    step: jax.Array


def init_online_state(
    params: Tree, optimizer: optax.GradientTransformation | None = None
) -> OnlineState:
    """The state before the first step.

    Args:
      params: theta, any pytree of floating arrays; copied.
      optimizer: the optax transformation for theta, as in the step; None for `mer_step`.

    Returns:
      An `OnlineState`.

    Raises:
      TypeError: `params` has a leaf that is not floating.

    Examples:
      >>> state = init_online_state({"w": jnp.ones(3)}, optax.sgd(0.1))
      >>> int(state.step)
      0

    Source: as `er_step`.
    """
    params = copy_arrays("params", params)
    opt_state = () if optimizer is None else init_optimizer("optimizer", optimizer, params)
    return OnlineState(params, opt_state, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames=("loss_fn", "optimizer", "clip_norm"))
@float32_by_default
def er_step(
    state: OnlineState,
    batch: Any,
    replay: Any,
    *,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    replay_weights: jax.Array | None = None,
    clip_norm: float | None = None,
) -> tuple[OnlineState, dict[str, jax.Array]]:
    """One step of experience replay, on the newest rows together with replayed rows.

    ``theta <- theta - eta * grad_theta sum_i w_i L(theta; row_i) / sum_i w_i``

    The sum is over the replayed rows and the batch. Without replay, this is online SGD, or joint
    training if the batches are drawn from all tasks.

    Args:
      state: an `OnlineState`; its arrays are not donated.
      batch: the newest rows of the stream, a tree whose leaves have a leading row axis [n, ...].
      replay: rows drawn from memory, a tree like `batch`, [r, ...]; None without replay.
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`: the mean loss of any
        number of rows.
      optimizer: the optax transformation for theta, `optax.sgd(eta)` in the paper.
      replay_weights: [r], floating, not negative: the weight of each replayed row. Rows of the
        batch have weight 1. Use 0 for empty memory slots, which must hold finite values. The loss
        must not use statistics over its rows, as batch norm does (see `weighted_loss`). None: all
        rows have the same weight.
      clip_norm: c: the gradient is scaled by ``min(1, c / (norm + 1e-6))``; None does not clip.

    Returns:
      The new state, and metrics: the "loss" and the loss function's metrics before the step, and
      the "gradient_norm" before clipping.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> sgd = optax.sgd(0.1)
      >>> state = init_online_state(jnp.zeros(2), sgd)
      >>> state, metrics = er_step(
      ...     state, jnp.ones((1, 2)), jnp.zeros((10, 2)), optimizer=sgd,
      ...     loss_fn=lambda w, rows: jnp.mean((rows - w) ** 2))
      >>> int(state.step)
      1

    Source: Chaudhry et al. 2019, On tiny episodic memories, Algorithm 1; Riemer et al. 2019, MER,
    Algorithm 4.
    """
    check_floating("state.params", state.params)
    check_bound("clip_norm", clip_norm)
    check_one_batch(loss_fn)
    check_rows("batch", batch)
    rows, weights = with_replay(batch, replay, replay_weights, loss_fn)
    loss = weighted_loss(loss_fn, rows, weights)
    (loss, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    gradient, norm = clip_by_norm(gradient, clip_norm)
    own = {"loss": loss, "gradient_norm": norm}
    return apply_gradient(state, gradient, optimizer), with_metrics(own, metrics)


def apply_gradient(
    state: OnlineState, gradient: Tree, optimizer: optax.GradientTransformation
) -> OnlineState:
    """The state after an optimiser step with `gradient`."""
    params, opt_state = update("optimizer", optimizer, gradient, state.opt_state, state.params)
    return OnlineState(params, opt_state, state.step + 1)
