"""The methods of the paper as learners. The baselines are in `continual.learners`."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxsparse.cmaml import Pairs, cmaml_step, init_cmaml_state
from jaxsparse.gates import Gate
from jaxsparse.inner import GradientSum, MetaIterates
from jaxsparse.lamaml import init_lamaml_state, lamaml_step
from jaxsparse.learner import Learner
from jaxsparse.maml import TaskLoop, init_state, sparse_maml_step


def maml(
    loss_fn: Callable,
    gate: Gate,
    *,
    inner_steps: int,
    theta_optimizer: optax.GradientTransformation,
    mask_optimizer: optax.GradientTransformation,
    second_order: bool = False,
    task_loop: TaskLoop = "auto",
    mesh: jax.sharding.Mesh | None = None,
) -> Learner:
    """MAML and its sparse variants over batches of tasks: `sparse_maml_step` as a learner.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      gate: a gate of `jaxsparse.gates`; it defines the method.
      inner_steps: K, the number of inner steps on the support batch.
      theta_optimizer: an optax transformation for theta.
      mask_optimizer: an optax transformation for m.
      second_order: as in `sparse_maml_step`.
      task_loop: as in `sparse_maml_step`.
      mesh: as in `sparse_maml_step`.

    Returns:
      A `Learner`. Its `step` takes a pair (support, query) of tasks. If its key is None, a
      stochastic gate uses the key in the state.

    Examples:
      >>> sgd = optax.sgd(0.1)
      >>> learner = maml(
      ...     lambda w, x: jnp.sum((w - x) ** 2), gates.constant(0.1), inner_steps=2,
      ...     theta_optimizer=sgd, mask_optimizer=sgd)

    Source: von Oswald, Zhao et al. 2021, Eqs. 8-10.
    """

    def init(params, key):
        return init_state(params, gate, theta_optimizer, mask_optimizer, key)

    def step(state, batch, key=None):
        return sparse_maml_step(
            state if key is None else state._replace(key=key),
            batch,
            loss_fn=loss_fn,
            gate=gate,
            inner_steps=inner_steps,
            theta_optimizer=theta_optimizer,
            mask_optimizer=mask_optimizer,
            second_order=second_order,
            task_loop=task_loop,
            mesh=mesh,
        )

    return Learner(init, step)


def lamaml(
    loss_fn: Callable,
    gate: Gate,
    *,
    mask_optimizer: optax.GradientTransformation | None,
    theta_optimizer: optax.GradientTransformation | None = None,
    meta_loss_fn: Callable | None = None,
    inner_gate: Gate | None = None,
    inner_batch_size: int = 1,
    inner_clip: float | None = None,
    clip_norm: float | None = 2.0,
    meta_iterates: MetaIterates = "all",
    gradient_sum: GradientSum = "before",
    second_order: bool = False,
) -> Learner:
    """La-MAML and its sparse variants on a stream: `lamaml_step` as a learner.

    Args:
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`.
      gate: a gate of `jaxsparse.gates`; `lamaml_step` has a table of the methods.
      mask_optimizer: an optax transformation for m; None keeps m as it is.
      theta_optimizer: an optax transformation for theta; None for the asynchronous rule.
      meta_loss_fn: as in `lamaml_step`.
      inner_gate: as in `lamaml_step`.
      inner_batch_size: as in `lamaml_step`.
      inner_clip: as in `lamaml_step`.
      clip_norm: as in `lamaml_step`.
      meta_iterates: as in `lamaml_step`.
      gradient_sum: as in `lamaml_step`.
      second_order: as in `lamaml_step`.

    Returns:
      A `Learner`. It uses the rows, the replay and the replay weights of a `StreamBatch`.

    Examples:
      >>> learner = lamaml(
      ...     lambda w, rows: jnp.mean((rows - w) ** 2), gates.rectified(0.15),
      ...     mask_optimizer=optax.sgd(0.3))
      >>> state = learner.init(jnp.zeros(2), jax.random.key(0))
      >>> batch = jaxsparse.StreamBatch(jnp.ones((10, 2)))
      >>> state, metrics = learner.step(state, batch, jax.random.key(1))

    Source: von Oswald, Zhao et al. 2021, Algorithm 1.
    """
    optimizers = {"mask_optimizer": mask_optimizer, "theta_optimizer": theta_optimizer}

    def init(params, key):
        return init_lamaml_state(params, gate, key, **optimizers)

    def step(state, batch, key=None):
        return lamaml_step(
            state,
            batch.rows,
            batch.replay,
            key,
            loss_fn=loss_fn,
            gate=gate,
            replay_weights=batch.replay_weights,
            meta_loss_fn=meta_loss_fn,
            inner_gate=inner_gate,
            inner_batch_size=inner_batch_size,
            inner_clip=inner_clip,
            clip_norm=clip_norm,
            meta_iterates=meta_iterates,
            gradient_sum=gradient_sum,
            second_order=second_order,
            **optimizers,
        )

    return Learner(init, step)


def cmaml(
    loss_fn: Callable,
    gate: Gate,
    *,
    batch: Any,
    inner_steps: int,
    theta_optimizer: optax.GradientTransformation,
    mask_optimizer: optax.GradientTransformation | None,
    detection_threshold: float | None,
    capacity: int = 101,
    inner_params: Callable[[str], bool] | None = None,
    modulation: float | None = None,
    pairs: Pairs = "all",
    mask_theta: bool = False,
    restart_now: bool = False,
) -> Learner:
    """C-MAML and its sparse variants on a switching stream: `cmaml_step` as a learner.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      gate: a gate of `jaxsparse.gates`; `cmaml_step` has a table of the methods.
      batch: rows of the stream, or the `jax.ShapeDtypeStruct` of each of their leaves.
      inner_steps: K.
      theta_optimizer: an optax transformation for theta.
      mask_optimizer: an optax transformation for m; None keeps m as it is.
      detection_threshold: the drop of the loss that counts as a switch; None: no detection.
      capacity: the size of the buffer in batches, as in `init_cmaml_state`.
      inner_params: `(path of a leaf) -> bool`, True if the inner loop adapts it; None: all leaves.
      modulation: as in `cmaml_step`.
      pairs: as in `cmaml_step`.
      mask_theta: as in `cmaml_step`.
      restart_now: as in `cmaml_step`.

    Returns:
      A `Learner`. It uses the rows of a `StreamBatch`.

    Examples:
      >>> adam, rows = optax.adam(1e-3), jnp.ones((50, 2))
      >>> learner = cmaml(
      ...     lambda w, x: jnp.mean((w - x) ** 2), gates.binary(0.3), batch=rows, inner_steps=4,
      ...     theta_optimizer=adam, mask_optimizer=adam, detection_threshold=1.5)
      >>> state = learner.init(jnp.zeros(2), jax.random.key(0))
      >>> state, metrics = learner.step(state, jaxsparse.StreamBatch(rows), jax.random.key(1))

    Source: von Oswald, Zhao et al. 2021, Algorithm 2.
    """
    optimizers = {"theta_optimizer": theta_optimizer, "mask_optimizer": mask_optimizer}

    def init(params, key):
        return init_cmaml_state(
            params,
            gate,
            key,
            batch=batch,
            capacity=capacity,
            inner_params=inner_params,
            **optimizers,
        )

    def step(state, batch, key=None):
        return cmaml_step(
            state,
            batch.rows,
            key,
            loss_fn=loss_fn,
            gate=gate,
            inner_steps=inner_steps,
            detection_threshold=detection_threshold,
            modulation=modulation,
            pairs=pairs,
            mask_theta=mask_theta,
            restart_now=restart_now,
            **optimizers,
        )

    return Learner(init, step)
