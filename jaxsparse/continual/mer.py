"""Meta-experience replay (MER): Reptile on the newest example and replayed ones."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsparse._tree import cut_leaf
from jaxsparse.checks import (
    check_bound,
    check_floating,
    check_like_rows,
    check_rows,
    check_weights,
    scalar_loss,
)
from jaxsparse.clipping import clip_by_norm, clip_scale, global_norm, sum_dtype
from jaxsparse.continual.er import OnlineState
from jaxsparse.continual.task_gradients import joined, usable_split
from jaxsparse.losses import check_one_batch
from jaxsparse.nn.products import exact_product
from jaxsparse.precision import float32_by_default
from jaxsparse.updates import cast

Tree = Any


@functools.partial(jax.jit, static_argnames=("loss_fn", "clip_norm"))
@float32_by_default
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
    """One step of MER on one example: SGD row by row, Reptile within each batch and across batches.

    There are s batches. Each consists of the example, row 0, and its own r replayed rows. From
    theta_0 = theta, for i = 1 .. s:
    ``w <- w - alpha * weight_j * grad L(w; row_j),   j = 0 .. r,   from w = theta_{i-1}``
    ``theta_i = theta_{i-1} + beta (w - theta_{i-1})``
    Finally, ``theta <- theta + gamma (theta_s - theta)``.

    If the loss has a `split` (such as `cross_entropy` of `nn.mlp`) and there are few rows, the
    kernel of the first layer is not updated after each row. It changes only by linear combinations
    of the rows' inputs, so the steps update their coefficients instead. This is faster.

    Args:
      state: an `OnlineState`, created without an optimiser; its arrays are not donated.
      example: the newest row of the stream, a tree whose leaves have a leading axis of length 1.
      replay: rows drawn from memory, a tree like `example`, [s, r, ...].
      replay_weights: [s, r], floating: the factor of each replayed row's step; the example has
        factor 1. Use 0 for empty memory slots, which must hold finite values. None: all 1.
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`; called with one row.
      learning_rate: alpha, the learning rate of SGD.
      within_batch_rate: beta.
      across_batch_rate: gamma.
      clip_norm: c: each gradient is scaled by ``min(1, c / (norm + 1e-6))``; None does not clip.

    Returns:
      The new state, and metrics: the "loss" of the example and the loss function's metrics at the
      old theta.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> from jaxsparse.continual.er import init_online_state
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
    check_one_batch(loss_fn)
    if check_rows("example", example) != (1,):
        raise ValueError(f"example must be one row, got {check_rows('example', example)[0]}")
    batches = check_like_rows("replay", replay, "example", example, axes=2)
    if replay_weights is None:
        replay_weights = jnp.ones(batches)
    replay_weights = check_weights("replay_weights", replay_weights, batches)
    rows = jax.tree.map(lambda e, x: jnp.concatenate([e, joined(x)]), example, replay)
    count = 1 + batches[0] * batches[1]
    # Each batch is the example (row 0) and the replayed rows of that batch.
    order = jnp.pad(jnp.arange(1, count).reshape(batches), ((0, 0), (1, 0)))
    weights = jnp.pad(replay_weights, ((0, 0), (1, 0)), constant_values=1)
    split = usable_split(loss_fn, state.params, count)
    if split is None:
        form = _whole(loss_fn, state.params, rows, clip_norm)
    else:
        form = _in_factors(split, state.params, rows, clip_norm)

    def sgd(carry, index_and_weight):
        index, weight = index_and_weight
        return form.sgd(carry, index, learning_rate * weight)

    def batch(carry, indices_and_weights):
        end, values = jax.lax.scan(sgd, carry, indices_and_weights)
        return _reptile(carry, end, within_batch_rate), jax.tree.map(lambda x: x[0], values)

    end, values = jax.lax.scan(batch, form.start, (order, weights))
    params = form.params(_reptile(form.start, end, across_batch_rate))
    loss, metrics = jax.tree.map(lambda x: x[0], values)
    return OnlineState(params, state.opt_state, state.step + 1), {"loss": loss} | metrics


class _Form(NamedTuple):
    """A representation of the parameters during the steps; they are an affine function of it.

    Attributes:
      start: the representation of theta.
      sgd: (carry, index of a row, rate) -> (carry after a step on the row, (loss, metrics)).
      params: carry -> parameters.
    """

    start: Tree
    sgd: Callable[[Tree, Array, Array], tuple[Tree, Tree]]
    params: Callable[[Tree], Tree]


def _whole(loss_fn, params, rows, clip_norm) -> _Form:
    """The parameters in float32 or wider: half precision would lose small steps."""
    value_and_grad = jax.value_and_grad(scalar_loss(loss_fn), has_aux=True)

    def sgd(carry, index, rate):
        value, gradient = value_and_grad(cast(carry, params), _row(rows, index))
        gradient, _ = clip_by_norm(gradient, clip_norm)
        return _step(carry, gradient, -rate), value

    return _Form(_widened(params), sgd, lambda carry: cast(carry, params))


def _in_factors(split, params, rows, clip_norm) -> _Form:
    """The first kernel as ``W + X' C``, with X the inputs of all rows; only C changes.

    The gradient of the kernel on row j is ``x_j d'``, with d the derivative by the row's products
    ``x_j W + (X X')_j C``. So a step changes one row of C and does not read the large matrix W.
    """
    kernel, rest, join = cut_leaf(params, split.kernel)
    inputs, others = split.split(rows)
    inputs = inputs.astype(kernel.dtype)
    products, gram = exact_product(inputs, kernel), exact_product(inputs, inputs.T)

    def loss(rest, products, others):
        return scalar_loss(split.loss_fn)(join(rest, kernel), (products, others))

    def sgd(carry, index, rate):
        steps, coefficients = carry
        near, start, other = _row((gram, products, others), index)
        at = start + exact_product(near, coefficients)
        value_and_grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
        value, (d_rest, delta) = value_and_grad(cast(steps, rest), at, other)
        if clip_norm is not None:
            length = jnp.sqrt(gram[index, index])  # the norm of the kernel's gradient is |x| |d|
            scale = clip_scale(global_norm((d_rest, length * delta)), clip_norm)
            d_rest, delta = jax.tree.map(lambda x: x * scale.astype(x.dtype), (d_rest, delta))
        own = _row(coefficients, index) - rate.astype(delta.dtype) * delta
        coefficients = jax.lax.dynamic_update_slice_in_dim(coefficients, own, index, 0)
        return (_step(steps, d_rest, -rate), coefficients), value

    def whole(carry):
        steps, coefficients = carry
        return join(cast(steps, rest), kernel + exact_product(inputs.T, coefficients))

    return _Form((_widened(rest), jnp.zeros_like(products)), sgd, whole)


def _row(rows, index):
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1), rows)


def _widened(params):
    return jax.tree.map(lambda x: x.astype(sum_dtype(x.dtype)), params)


def _reptile(start, end, rate):
    return _step(start, jax.tree.map(jnp.subtract, end, start), rate)


def _step(params, direction, rate):
    return jax.tree.map(
        lambda p, d: p + jnp.asarray(rate, p.dtype) * d.astype(p.dtype), params, direction
    )
