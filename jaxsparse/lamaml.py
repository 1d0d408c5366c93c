"""Online continual learning with learned step sizes: (sparse-)La-MAML.

A *glance* is one update on a batch of the stream. The *rows* of a batch are its examples.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse import _first_layer
from jaxsparse.checks import (
    check_bound,
    check_floating,
    check_rows,
    check_steps,
    copy_arrays,
    with_metrics,
)
from jaxsparse.clipping import clip_by_norm
from jaxsparse.gates import Gate
from jaxsparse.inner import (
    GradientSum,
    MetaIterates,
    check_step_sizes,
    gated_step,
    meta_gradient,
)
from jaxsparse.losses import check_one_batch, weighted_loss, with_replay
from jaxsparse.precision import float32_by_default
from jaxsparse.updates import apply_gate, cast, check_gate, init_optimizer, update

Tree = Any


class LaMAMLState(NamedTuple):
    """Everything a glance changes.

    Attributes:
      params: theta, the slow weights, which are also used for predictions.
      mask: m, the gate's mask parameters.
      mask_opt: the optax state for m; () without a mask optimiser.
      theta_opt: the optax state for theta; () with the asynchronous rule.
      step: int32, the number of glances so far.

    Examples:
      >>> state = LaMAMLState(jnp.zeros(2), jnp.zeros(2), (), (), jnp.zeros((), jnp.int32))
      >>> sizes = gates.binary(0.1).apply(state.mask, None)  # the step sizes now
    """

    params: Tree
    mask: Tree
    mask_opt: optax.OptState
    theta_opt: optax.OptState
    step: jax.Array


def init_lamaml_state(
    params: Tree,
    gate: Gate,
    key: jax.Array,
    *,
    mask_optimizer: optax.GradientTransformation | None,
    theta_optimizer: optax.GradientTransformation | None = None,
) -> LaMAMLState:
    """The state before the first glance: theta as given, m from the gate.

    ``theta_0 = params,  m_0 = gate.init(key, params)``

    Args:
      params: theta, any pytree of floating arrays.
      gate: creates the mask parameters.
      key: a PRNG key.
      mask_optimizer: as in `lamaml_step`.
      theta_optimizer: as in `lamaml_step`.

    Returns:
      A `LaMAMLState`.

    Raises:
      TypeError: `params` has a leaf that is not floating.

    Examples:
      >>> gate = gates.binary(inner_lr=0.15, slope=0.5, init=0.15)
      >>> state = init_lamaml_state(
      ...     {"w": jnp.ones(3)}, gate, jax.random.key(0), mask_optimizer=optax.sgd(1.7))

    Source: von Oswald, Zhao et al. 2021, Algorithm 1.
    """
    params = copy_arrays("params", params)
    check_gate(gate)
    mask = gate.init(key, params)
    mask_opt, theta_opt = (
        () if optimizer is None else init_optimizer(name, optimizer, moved)
        for name, optimizer, moved in (
            ("mask_optimizer", mask_optimizer, mask),
            ("theta_optimizer", theta_optimizer, params),
        )
    )
    return LaMAMLState(params, mask, mask_opt, theta_opt, jnp.zeros((), jnp.int32))


@functools.partial(
    jax.jit,
    static_argnames=(
        "loss_fn",
        "gate",
        "mask_optimizer",
        "theta_optimizer",
        "meta_loss_fn",
        "inner_gate",
        "inner_batch_size",
        "inner_clip",
        "clip_norm",
        "meta_iterates",
        "gradient_sum",
        "second_order",
    ),
)
@float32_by_default
def lamaml_step(
    state: LaMAMLState,
    batch: Any,
    replay: Any,
    key: jax.Array | None,
    *,
    loss_fn: Callable,
    gate: Gate,
    mask_optimizer: optax.GradientTransformation | None,
    theta_optimizer: optax.GradientTransformation | None = None,
    replay_weights: jax.Array | None = None,
    meta_loss_fn: Callable | None = None,
    inner_gate: Gate | None = None,
    inner_batch_size: int = 1,
    inner_clip: float | None = None,
    clip_norm: float | None = 2.0,
    meta_iterates: MetaIterates = "all",
    gradient_sum: GradientSum = "before",
    second_order: bool = False,
) -> tuple[LaMAMLState, dict[str, jax.Array]]:
    """One glance of (sparse-)La-MAML at a batch: inner steps row by row, then update m and theta.

    B_1 .. B_K are the rows of the batch in random order. Q is the replayed rows and the batch.
    ``phi_k = phi_{k-1} - gate(m) * g_k,  g_k = grad L(phi_{k-1}; B_k),  phi_0 = theta``
    ``h_k = grad L(phi_k; Q),  d theta = mean_k h_k,  d gate = -mean_k h_k * (g_1 + ... + g_k)``
    Both gradients are clipped by norm. Then the mask optimiser updates m with ``dm``, and
    ``theta <- theta - gate(m) * d theta`` with the new m.

    The methods differ in the gate and the optimisers:

    | method | gate | theta_optimizer |
    |---|---|---|
    | sparse-La-MAML | `binary(alpha, slope=0.5, init=alpha)` | None |
    | La-MAML | `rectified(alpha)` | None |
    | Sync | `rectified(alpha)` | `optax.sgd(rate)` |
    | C-MAML | `constant(alpha)`, `mask_optimizer=None` | `optax.sgd(rate)` |

    The defaults are those of La-MAML's public code for digits. Algorithm 1 as printed in the paper
    has `meta_iterates="last"`, `gradient_sum="after"`, `clip_norm=None` and slope 1. For natural
    images, the public code has `inner_gate=linear(alpha)`, `inner_batch_size=2`, an `inner_clip`
    and `second_order=True`.

    The step is jitted. It compiles once for the same functions and shapes, so create `loss_fn`, the
    gates and the optimisers once, outside the training loop.

    Args:
      state: a `LaMAMLState`; its arrays are not donated.
      batch: the newest rows of the stream, a tree whose leaves have a leading row axis [n, ...].
      replay: rows drawn from memory, a tree like `batch`, [r, ...]; None if there are none yet.
      key: a PRNG key. The inner loop uses the rows in the order `jax.random.permutation(key, n)`;
        with None, in their given order. Stochastic gates draw once per glance, with a key derived
        from this one; `gate` and `inner_gate` get the same key.
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`: the mean loss of any
        number of rows. Everything that the loss of a row needs, such as its task, must be in the
        batch.
      gate: computes step sizes from the mask parameters.
      mask_optimizer: the optax transformation for m, `optax.sgd(rate)` in the paper. None keeps m
        as it is.
      theta_optimizer: the optax transformation that updates theta with d theta; None for the
        asynchronous rule above. A parameter without a step size (`gates.for_part`) then never
        changes.
      replay_weights: [r], floating, not negative: the weight of each replayed row in the meta-loss.
        Rows of the batch have weight 1. Use 0 for empty memory slots, which must hold finite
        values. The meta-loss is the weighted mean of the rows' losses (see `weighted_loss`), so
        the loss must not use statistics over its rows, as batch norm does. None: all rows have the
        same weight.
      meta_loss_fn: the meta-loss, if it is not `loss_fn`. It gets r + n rows, the replayed first.
      inner_gate: the gate of the inner loop, if it is not `gate`. The gradient of m then goes
        through it.
      inner_batch_size: rows per inner step, a divisor of n: K = n / inner_batch_size.
      inner_clip: clamp each entry of the inner gradients to [-inner_clip, inner_clip].
      clip_norm: c: d theta and dm are each scaled by ``min(1, c / (norm + 1e-6))``, with the norm
        over the whole tree. None does not clip.
      meta_iterates: the meta-loss is the mean over "all" phi_1 .. phi_K, or that of the "last".
      gradient_sum: which gradients are summed in d gate: those "before" the inner steps, as above,
        or those "after" them, ``g_k = grad L(phi_k; B_k)``, which need a second gradient per step.
      second_order: differentiate through the inner gradients; only with `gradient_sum="before"`.

    Returns:
      The new state, and metrics: the meta-"loss" (and the loss function's metrics), "inner_loss"
      [K] (before each inner step), "order" int32 [n] of the rows, "theta_norm" and "mask_norm" (of
      the gradients before clipping; the latter only with a mask_optimizer).

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> gate, sgd = gates.rectified(init=0.15), optax.sgd(0.3)
      >>> state = init_lamaml_state(jnp.zeros(2), gate, jax.random.key(0), mask_optimizer=sgd)
      >>> batch, replay = jnp.ones((10, 2)), jnp.zeros((10, 2))
      >>> state, metrics = lamaml_step(
      ...     state, batch, replay, jax.random.key(1), gate=gate, mask_optimizer=sgd,
      ...     loss_fn=lambda w, rows: jnp.mean((rows - w) ** 2))
      >>> int(state.step)
      1

    Source: von Oswald, Zhao et al. 2021, Algorithm 1; Gupta et al. 2020, La-MAML, Algorithm 1.
    """
    count = _check_arguments(state, batch, inner_batch_size)
    for name, value, choices in (
        ("meta_iterates", meta_iterates, MetaIterates),
        ("gradient_sum", gradient_sum, GradientSum),
    ):
        if value not in choices.__args__:  # type: ignore[attr-defined]
            listed = " or ".join(map(repr, choices.__args__))  # type: ignore[attr-defined]
            raise ValueError(f"{name} must be {listed}, got {value!r}")
    if second_order and gradient_sum != "before":
        raise ValueError(f"gradient_sum must be 'before' with second_order, got {gradient_sum!r}")
    for loss in (loss_fn, meta_loss_fn):
        check_one_batch(loss)
    check_bound("inner_clip", inner_clip)
    check_bound("clip_norm", clip_norm)
    batch, order = _shuffled(batch, key, count)
    meta_rows, weights = with_replay(batch, replay, replay_weights, meta_loss_fn or loss_fn)
    # jax.random.permutation splits its key in two, which gives fold_in(key, 0) and fold_in(key, 1).
    # So 2 is free.
    gate_key = None if key is None else jax.random.fold_in(key, 2)
    sizes, gate_vjp = jax.vjp(lambda m: apply_gate(inner_gate or gate, m, gate_key), state.mask)
    check_step_sizes(sizes, state.params)

    options = meta_iterates, gradient_sum, second_order, inner_batch_size, inner_clip
    split = None
    # The split loop adapts all parameters: it needs a step size for each of them.
    whole = len(jax.tree.leaves(sizes)) == len(jax.tree.leaves(state.params))
    if whole and meta_loss_fn is None and options == ("all", "before", False, 1, None):
        split = _first_layer.float32_split(loss_fn, state.params)
    if split is not None:
        d_params, d_sizes, metrics = _first_layer.meta_gradient(
            split, state.params, sizes, batch, meta_rows, weights
        )
    else:
        meta_loss = weighted_loss(meta_loss_fn or loss_fn, meta_rows, weights)
        d_params, d_sizes, metrics = meta_gradient(
            loss_fn,
            state.params,
            sizes,
            jax.tree.map(lambda x: x.reshape(-1, inner_batch_size, *x.shape[1:]), batch),
            lambda phi, _: meta_loss(phi),
            iterates=meta_iterates,
            second_order=second_order,
            inner_clip=inner_clip,
            gradient_sum=gradient_sum,
        )
    own = {"order": order}
    mask, mask_opt = state.mask, state.mask_opt
    if mask_optimizer is not None:
        (d_mask,) = gate_vjp(d_sizes)
        d_mask, own["mask_norm"] = clip_by_norm(d_mask, clip_norm)
        if (inner_gate or gate).trained:
            d_mask = cast(d_mask, mask)
            mask, mask_opt = update("mask_optimizer", mask_optimizer, d_mask, mask_opt, mask)
    d_params, own["theta_norm"] = clip_by_norm(d_params, clip_norm)
    if theta_optimizer is None:
        params, theta_opt = gated_step(state.params, apply_gate(gate, mask, gate_key), d_params), ()
    else:
        d_params = cast(d_params, state.params)
        params, theta_opt = update(
            "theta_optimizer", theta_optimizer, d_params, state.theta_opt, state.params
        )
    state = LaMAMLState(params, mask, mask_opt, theta_opt, state.step + 1)
    return state, with_metrics(own, metrics)


def _shuffled(rows, key, count):
    if key is None:
        return jax.tree.map(jnp.asarray, rows), jnp.arange(count, dtype=jnp.int32)
    order = jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32))
    return jax.tree.map(lambda x: jnp.asarray(x)[order], rows), order


def _check_arguments(state, batch, inner_batch_size):
    """Check that the arguments fit; return the number of rows in `batch`."""
    check_floating("state.params", state.params)
    (count,) = check_rows("batch", batch)
    check_steps("inner_batch_size", inner_batch_size)
    if not inner_batch_size or count % inner_batch_size:
        raise ValueError(
            f"inner_batch_size must divide the {count} rows of batch, got {inner_batch_size}"
        )
    return count
