"""Online learning on a stream that switches between tasks: (sparse-)C-MAML."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse._stored_batches import drawn_places, pair_places, store
from jaxsparse._tree import combine, partition, restrict
from jaxsparse.checks import (
    check_floating,
    check_like,
    check_like_rows,
    check_steps,
    copy_arrays,
    scalar_loss,
)
from jaxsparse.clipping import sum_dtype
from jaxsparse.gates import Gate, sparsity
from jaxsparse.inner import adapt, meta_gradient, prepared
from jaxsparse.losses import check_one_batch
from jaxsparse.precision import float32_by_default
from jaxsparse.updates import apply_gate, cast, check_gate, init_optimizer, update

Tree = Any
Pairs = Literal["all", "one"]
# Metrics of a timestep; `scalar_loss` reserves a few more names.
_TAKEN = {"adapted_loss", "detected", "updated", "restarted", "outer_loss", "modulation"}


class CMAMLState(NamedTuple):
    """Everything a timestep changes.

    Attributes:
      params: theta, the slow weights.
      fast_params: phi, the fast weights, which are used for predictions: the tree of `params` with
        None for every leaf that the inner loop does not adapt. Those are always read from `params`.
      mask: m, the gate's mask parameters.
      theta_opt: the optax state for theta.
      mask_opt: the optax state for m; () without a mask optimiser.
      buffer: batches of the stream, every leaf [capacity, *shape in a batch].
      stored: int32, the number of batches in the buffer; they are at its start.
      restart: bool, True if the next timestep adapts from theta instead of phi.
      step: int32, the number of timesteps so far.

    Examples:
      >>> sgd = optax.sgd(0.1)
      >>> state = init_cmaml_state(
      ...     {"w": jnp.ones(3), "norm": jnp.ones(3)}, gates.constant(0.1), jax.random.key(0),
      ...     batch=jnp.ones((50, 3)), theta_optimizer=sgd, mask_optimizer=None,
      ...     inner_params=lambda name: name != "norm")
      >>> predict = combine(state.fast_params, state.params)
    """

    params: Tree
    fast_params: Tree
    mask: Tree
    theta_opt: optax.OptState
    mask_opt: optax.OptState
    buffer: Tree
    stored: jax.Array
    restart: jax.Array
    step: jax.Array


def init_cmaml_state(
    params: Tree,
    gate: Gate,
    key: jax.Array,
    *,
    batch: Any,
    theta_optimizer: optax.GradientTransformation,
    mask_optimizer: optax.GradientTransformation | None,
    capacity: int = 101,
    inner_params: Callable[[str], bool] | None = None,
) -> CMAMLState:
    """The state before the first timestep: theta and phi as given, m from the gate.

    ``theta_0 = params,  phi_0 = theta_0,  m_0 = gate.init(key, inner part of params),  R = {}``

    Args:
      params: theta, any pytree of floating arrays.
      gate: creates the mask parameters, for the part of `params` that the inner loop adapts.
      key: a PRNG key.
      batch: a batch of the stream, or the `jax.ShapeDtypeStruct` of each of its leaves.
      theta_optimizer: as in `cmaml_step`.
      mask_optimizer: as in `cmaml_step`.
      capacity: the size of the buffer in batches. When it is full, theta is updated even without
        a detected switch.
      inner_params: `(path of a leaf) -> bool`: True if the inner loop adapts this leaf, as in
        `partition`. Other leaves, such as batch norm's scale and bias, change only with theta.

    Returns:
      A `CMAMLState`.

    Raises:
      TypeError: `params` has a leaf that is not floating.
      ValueError: `capacity` is below 1, or `inner_params` selects nothing.

    Examples:
      >>> gate, adam = gates.binary(inner_lr=0.3), optax.adam(1e-3)
      >>> state = init_cmaml_state(
      ...     jnp.zeros(2), gate, jax.random.key(1), batch=jnp.ones((50, 2)),
      ...     theta_optimizer=adam, mask_optimizer=optax.adam(1e-2))

    Source: von Oswald, Zhao et al. 2021, Algorithm 2.
    """
    check_steps("capacity", capacity, least=1)
    params, fast_params = (copy_arrays("params", params) for _ in range(2))
    fast_params, _ = partition(fast_params, inner_params)
    check_gate(gate)
    mask = gate.init(key, fast_params)
    specs = jax.eval_shape(lambda b: jax.tree.map(jnp.asarray, b), batch)
    return CMAMLState(
        params,
        fast_params,
        mask,
        init_optimizer("theta_optimizer", theta_optimizer, params),
        () if mask_optimizer is None else init_optimizer("mask_optimizer", mask_optimizer, mask),
        jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), specs),
        jnp.zeros((), jnp.int32),
        jnp.ones((), bool),
        jnp.zeros((), jnp.int32),
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "loss_fn",
        "gate",
        "inner_steps",
        "theta_optimizer",
        "mask_optimizer",
        "detection_threshold",
        "modulation",
        "pairs",
        "mask_theta",
        "restart_now",
    ),
)
@float32_by_default
def cmaml_step(
    state: CMAMLState,
    batch: Any,
    key: jax.Array | None = None,
    *,
    loss_fn: Callable,
    gate: Gate,
    inner_steps: int,
    theta_optimizer: optax.GradientTransformation,
    mask_optimizer: optax.GradientTransformation | None,
    detection_threshold: float | None,
    modulation: float | None = None,
    pairs: Pairs = "all",
    mask_theta: bool = False,
    restart_now: bool = False,
) -> tuple[CMAMLState, dict[str, jax.Array]]:
    """One timestep of (sparse-)C-MAML: predict, adapt, detect a switch, update theta and m.

    ``adapt(w, B)`` are K gated steps from w on the batch B. R are the batches in the buffer.

    1. ``l = L(phi; B_t)``, the online loss.
    2. ``phi <- adapt(theta, B_t)`` if the last timestep detected a switch, else
       ``phi <- adapt(phi, B_t)`` (prolonged adaptation).
    3. A switch is detected if ``L(phi; B_t) + detection_threshold <= l``.
    4. On a detection, or if R is full: update theta and m from R, then empty R. Else add B_t to R.

    The update uses the pairs ``(R_i, R_{h+i}), i < n - h, h = ceil(n / 2)`` of the n batches in R
    (a single batch is paired with itself). With ``phi_i = adapt(theta, R_i)``,
    ``J = mean_i L(phi_i; R_{h+i}),  omega = 1 - exp(-modulation J)``.
    The optimisers of theta and m get ``omega dJ/d theta`` and ``omega dJ/dm``, to first order:
    ``dJ/dgate = -mean_i grad L(phi_i; R_{h+i}) * sum_k grad L(phi_{i,k}; R_i)``. Both gradients are
    computed at the old theta and m. Memory use does not grow with the number of pairs.

    Algorithm 2 as printed in the paper has one random pair (`pairs="one"`), restarts phi at once
    (`restart_now=True`), one inner step, and `optax.sgd(eta)`: the update of theta is
    ``-g(J) grad J`` with ``g(J) = eta omega``. The paper prints no update of m. Here it follows
    Eq. 10, with the same omega.

    The methods differ in the gate and the optimisers:

    | method | gate | mask_optimizer |
    |---|---|---|
    | sparse-C-MAML | `binary(alpha)` | `optax.adam(rate)` |
    | sparse-ReLU-C-MAML | `relu((0.005, 0.1))` | `optax.adam(rate)` |
    | C-MAML-fixed | `constant(alpha)` | None |
    | C-MAML | `per_tensor(alpha)` | `theta_optimizer` |

    The first timestep adapts from theta and never detects a switch. The step is jitted. It compiles
    once for the same functions and shapes, so create `loss_fn`, `gate` and the optimisers once,
    outside the training loop. Matrix products are float32, as in `sparse_maml_step`.

    Args:
      state: a `CMAMLState`; its arrays are not donated.
      batch: B_t, a batch for `loss_fn`, with the shapes and dtypes given to `init_cmaml_state`.
      key: a PRNG key for stochastic gates, which draw once per timestep, and for `pairs="one"`.
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      gate: computes the step sizes of the leaves in `state.fast_params` from the mask parameters.
      inner_steps: K.
      theta_optimizer: the optax transformation for theta.
      mask_optimizer: the optax transformation for m; None keeps m as it is.
      detection_threshold: gamma: a switch is detected if adapting lowers the loss by gamma or
        more. None never detects a switch.
      modulation: lambda, the strength of the update's modulation; None: ``omega = 1``.
      pairs: "all" uses all pairs. "one" uses a single pair of two different stored batches, drawn
        at random in random order (a single stored batch is paired with itself).
      mask_theta: multiply the gradient of theta by the step sizes of the old m before the
        optimiser. Gradients of leaves that the inner loop does not adapt are not multiplied.
      restart_now: on a detected switch, adapt phi again to the same batch, from the new theta and
        with the new m. Otherwise phi restarts from theta at the next batch.

    Returns:
      The new state, and metrics: "loss" and `loss_fn`'s metrics before adapting to the batch,
      "inner_loss" [K] (before each inner step), "adapted_loss", the bools "detected" (a switch),
      "updated" (theta and m) and "restarted" (phi), "outer_loss" J and "modulation" omega (0
      without an update), and the "sparsity" of the step sizes used.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> gate, adam = gates.binary(inner_lr=0.3), optax.adam(1e-3)
      >>> batch = jnp.ones((50, 2))
      >>> state = init_cmaml_state(
      ...     jnp.zeros(2), gate, jax.random.key(0), batch=batch, theta_optimizer=adam,
      ...     mask_optimizer=adam)
      >>> state, metrics = cmaml_step(
      ...     state, batch, loss_fn=lambda w, x: jnp.mean((w - x) ** 2), gate=gate, inner_steps=16,
      ...     theta_optimizer=adam, mask_optimizer=adam, detection_threshold=1.5, modulation=1.0)
      >>> int(state.stored)
      1

    Source: von Oswald, Zhao et al. 2021, Algorithm 2 and Eq. 10; Caccia et al. 2020, OSAKA, the
    order of the steps from its public code.
    """
    _check_arguments(state, batch, inner_steps, detection_threshold, modulation)
    key, pair_key = _keys(key, pairs)
    batch = jax.tree.map(jnp.asarray, batch)
    check_one_batch(loss_fn)
    # The checked loss has no method `prepared`: it always gets a batch that is prepared already.
    prepare, loss_fn = functools.partial(prepared, loss_fn), scalar_loss(loss_fn, _TAKEN)
    ready = prepare(batch)
    step_sizes, gate_vjp = jax.vjp(lambda m: apply_gate(gate, m, key), state.mask)
    check_floating("step_sizes", step_sizes)
    check_like("step_sizes", step_sizes, "state.fast_params", state.fast_params)
    gate_sparsity = sparsity(step_sizes, state.fast_params)["total"]

    start = jax.tree.map(
        lambda fast, slow: jnp.where(state.restart, slow, fast),
        state.fast_params,
        restrict(state.params, state.fast_params),
    )
    phi, inner = adapt(loss_fn, combine(start, state.params), step_sizes, ready, inner_steps)
    fast_params = restrict(phi, start)
    loss, metrics = _prediction(loss_fn, state, ready, inner)
    adapted_loss, _ = loss_fn(phi, ready)
    detected = jnp.zeros((), bool)
    if detection_threshold is not None:
        detected = (state.step > 0) & (adapted_loss + detection_threshold <= loss)
    capacity = len(jax.tree.leaves(state.buffer)[0])
    updated = (detected & (state.stored > 0)) | (state.stored >= capacity)

    # Without an update, the loop has no iterations. Under vmap, `cond` would compute both branches.
    count = jnp.maximum(state.stored // 2, 1) if pairs == "all" else 1
    outer_loss, *gradients = _outer_gradient(
        *(loss_fn, prepare, state, step_sizes),
        *(jnp.where(updated, count, 0), pair_key, inner_steps),
    )
    omega = 1.0 if modulation is None else -jnp.expm1(-modulation * outer_loss)
    omega = jnp.where(updated, omega, 0.0)

    def changed(slow):
        return _outer_update(
            jax.tree.map(lambda x: omega.astype(x.dtype) * x, gradients),
            *(slow, step_sizes, gate_vjp, theta_optimizer),
            *(mask_optimizer if gate.trained else None, mask_theta),
        )

    # Without an update, `cond` copies the whole state on a GPU; a loop of no step does not.
    params, mask, theta_opt, mask_opt = jax.lax.platform_dependent(
        (state.params, state.mask, state.theta_opt, state.mask_opt),
        cpu=lambda slow: jax.lax.cond(updated, changed, lambda slow: slow, slow),
        default=lambda x: jax.lax.fori_loop(0, jnp.int32(updated), lambda _, x: changed(x), x),
    )
    restart = detected
    if restart_now:
        step_sizes = apply_gate(gate, mask, key)
        fast_params = jax.lax.cond(
            detected,
            lambda: restrict(adapt(loss_fn, params, step_sizes, ready, inner_steps)[0], start),
            lambda: fast_params,
        )
        restart = jnp.zeros((), bool)
    metrics = metrics | {
        "loss": loss,
        "inner_loss": inner["loss"],
        "adapted_loss": adapted_loss,
        "detected": detected,
        "updated": updated,
        "restarted": state.restart | (detected & restart_now),
        "outer_loss": outer_loss,
        "modulation": omega,
        "sparsity": gate_sparsity,
    }
    buffer = store(state.buffer, batch, state.stored)
    stored = jnp.where(updated, 0, state.stored + 1)
    opts = theta_opt, mask_opt
    step = state.step + 1
    return CMAMLState(params, fast_params, mask, *opts, buffer, stored, restart, step), metrics


def _prediction(loss_fn, state, batch, inner):
    """The loss and metrics of phi before it is adapted to the batch."""

    def predict():
        return loss_fn(combine(state.fast_params, state.params), batch)

    if not len(inner["loss"]):
        return predict()
    metrics = jax.tree.map(lambda x: x[0], inner)
    first = metrics.pop("loss"), metrics
    # Without a restart, the first inner step has already computed them.
    return jax.lax.cond(state.restart, predict, lambda: first)


def _outer_gradient(loss_fn, prepare, state, step_sizes, pairs, pair_key, inner_steps):
    """J, dJ/d theta and dJ/d step sizes: means over the first `pairs` pairs, or 0 without pairs."""
    places = functools.partial(pair_places if pair_key is None else drawn_places, pair_key)

    def add_pair(i, sums):
        support, query = (
            jax.tree.map(lambda x, at=at: x[at], state.buffer) for at in places(i, state.stored)
        )
        *gradients, metrics = meta_gradient(
            loss_fn,
            state.params,
            step_sizes,
            prepare(support),
            lambda phi, _: loss_fn(phi, query),
            steps=inner_steps,
        )
        derived = metrics["loss"], *gradients
        return jax.tree.map(lambda s, x: s + x.astype(s.dtype), sums, derived)

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, sum_dtype(x.dtype)),
        (jnp.zeros(()), state.params, step_sizes),
    )
    sums = jax.lax.fori_loop(0, pairs, add_pair, zeros)
    count = jnp.maximum(pairs, 1)
    return jax.tree.map(lambda x: x / count.astype(x.dtype), sums)


def _keys(key, pairs):
    """The keys of the gate and of the random pair; the latter is None with `pairs="all"`."""
    if pairs not in ("all", "one"):
        raise ValueError(f"pairs must be 'all' or 'one', got {pairs!r}")
    if pairs == "all":
        return key, None
    if key is None:
        raise ValueError("key is None, want a PRNG key: pairs='one' draws stored batches")
    return jax.random.split(key)


def _outer_update(
    gradients, slow, step_sizes, gate_vjp, theta_optimizer, mask_optimizer, mask_theta
):
    """Update `slow`: theta, m and the states of their optimisers."""
    d_params, d_sizes = gradients
    params, mask, theta_opt, mask_opt = slow
    if mask_theta:
        part = restrict(d_params, step_sizes)
        part = jax.tree.map(lambda d, a: d * a.astype(d.dtype), part, step_sizes)
        d_params = combine(part, d_params)
    d_params = cast(d_params, params)
    params, theta_opt = update("theta_optimizer", theta_optimizer, d_params, theta_opt, params)
    if mask_optimizer is not None:
        (d_mask,) = gate_vjp(cast(d_sizes, step_sizes))
        d_mask = cast(d_mask, mask)
        mask, mask_opt = update("mask_optimizer", mask_optimizer, d_mask, mask_opt, mask)
    return params, mask, theta_opt, mask_opt


def _check_arguments(state, batch, inner_steps, detection_threshold, modulation):
    check_steps("inner_steps", inner_steps)
    check_floating("state.params", state.params)
    for name, value in (("detection_threshold", detection_threshold), ("modulation", modulation)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive or None, got {value}")
    check_like_rows("batch", batch, "state.buffer", state.buffer, axes=0)
