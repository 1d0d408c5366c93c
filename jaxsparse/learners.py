"""Every method as a learner: how it starts, and what one batch changes.

As an optax optimiser is ``(init, update)``, a learner is ``(init, step)``, a pair of pure functions
made once with everything that does not change inside. All learners are called alike.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from jaxsparse._tree import partition
from jaxsparse.cmaml import Pairs, cmaml_step, init_cmaml_state
from jaxsparse.continual import bgd as bayes
from jaxsparse.continual.er import er_step, init_online_state
from jaxsparse.continual.gem import agem_step, gem_step
from jaxsparse.continual.mer import mer_step
from jaxsparse.continual.online import (
    FrozenState,
    fixed_rates,
    frozen_maml_step,
    init_metabgd_state,
    metabgd_step,
)
from jaxsparse.gates import Gate
from jaxsparse.lamaml import init_lamaml_state, lamaml_step
from jaxsparse.maml import init_state, sparse_maml_step

Tree = Any
Metrics = dict[str, jax.Array]


class Learner(NamedTuple):
    """A method as a pair of pure functions.

    Attributes:
      init: `(params, key) -> state`, the state before the first batch; `params` are copied.
      step: `(state, batch, key) -> (state, metrics)`; jitted. The batch is a `StreamBatch`, for
        `maml` a pair (support, query) of tasks.

    Example:
      >>> adam = optax.adam(1e-3)
      >>> learner = jaxsparse.maml(
      ...     lambda w, x: jnp.sum((w - x) ** 2), gates.binary(0.1), inner_steps=5,
      ...     theta_optimizer=adam, mask_optimizer=adam)
      >>> state = learner.init(jnp.zeros(2), jax.random.key(0))
      >>> tasks = jnp.ones((3, 2)), jnp.ones((3, 2))  # support and query of three tasks
      >>> state, metrics = learner.step(state, tasks, jax.random.key(1))
    """

    init: Callable[[Tree, jax.Array], Any]
    step: Callable[[Any, Any, jax.Array | None], tuple[Any, Metrics]]


class StreamBatch(NamedTuple):
    """A batch of a stream, with what was drawn from memory. A learner reads what it needs.

    Attributes:
      rows: the newest rows, a tree whose leaves lead with a row axis [n, ...]; for MER n is 1.
      replay: rows from memory, a tree like `rows`, [r, ...]; for MER [s, r, ...], for GEM
        [T, k, ...]; None for none.
      replay_weights: the weights of the replayed rows, [r] or [s, r]; None: all alike.
      observed: int32, for GEM: how many earlier tasks there are.

    Example:
      >>> StreamBatch(jnp.ones((10, 2)), replay=jnp.zeros((20, 2))).replay.shape
      (20, 2)
    """

    rows: Any
    replay: Any = None
    replay_weights: jax.Array | None = None
    observed: Any = None


def maml(
    loss_fn: Callable,
    gate: Gate,
    *,
    inner_steps: int,
    theta_optimizer: optax.GradientTransformation,
    mask_optimizer: optax.GradientTransformation,
    **options: Any,
) -> Learner:
    """MAML and its sparse variants over batches of tasks: `sparse_maml_step` as a learner.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      gate: what tells the methods apart, of `jaxsparse.gates`.
      inner_steps: K, the inner steps taken on the support batch.
      theta_optimizer: an optax transformation for theta.
      mask_optimizer: an optax transformation for m.
      **options: `second_order`, `task_loop` and `mesh`, as in `sparse_maml_step`.

    Returns:
      A `Learner`. Its `step` takes a pair (support, query) of tasks; without a key, a stochastic
      gate draws from the one in the state.

    Example:
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
            **options,
        )

    return Learner(init, step)


def lamaml(
    loss_fn: Callable,
    gate: Gate,
    *,
    mask_optimizer: optax.GradientTransformation | None,
    theta_optimizer: optax.GradientTransformation | None = None,
    **options: Any,
) -> Learner:
    """La-MAML and its sparse variants on a stream: `lamaml_step` as a learner.

    Args:
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`.
      gate: what tells the methods apart; the table is in `lamaml_step`.
      mask_optimizer: an optax transformation for m; None keeps m as it is.
      theta_optimizer: one for theta; None is the asynchronous rule.
      **options: `meta_loss_fn`, `inner_gate`, `inner_batch_size`, `inner_clip`, `clip_norm`,
        `meta_iterates`, `gradient_sum` and `second_order`, as in `lamaml_step`.

    Returns:
      A `Learner`, which reads the rows, the replay and its weights.

    Example:
      >>> learner = lamaml(
      ...     lambda w, rows: jnp.mean((rows - w) ** 2), gates.rectified(0.15),
      ...     mask_optimizer=optax.sgd(0.3))
      >>> state = learner.init(jnp.zeros(2), jax.random.key(0))
      >>> state, metrics = learner.step(state, StreamBatch(jnp.ones((10, 2))), jax.random.key(1))

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
            **optimizers,
            **options,
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
      gate: what tells the methods apart; the table is in `cmaml_step`.
      batch: rows of the stream, or the `jax.ShapeDtypeStruct` of each of their leaves.
      inner_steps: K.
      theta_optimizer: an optax transformation for theta.
      mask_optimizer: one for m; None keeps m as it is.
      detection_threshold: the fall of the loss from which on a batch is of a new task, or None.
      capacity: the stored batches at which theta is updated without a detection.
      inner_params: whether the inner loop adapts the leaf of this path; None: all of them.
      modulation: as in `cmaml_step`, and so are `pairs`, `mask_theta` and `restart_now`.

    Returns:
      A `Learner`, which reads the rows of a batch.

    Example:
      >>> adam, rows = optax.adam(1e-3), jnp.ones((50, 2))
      >>> learner = cmaml(
      ...     lambda w, x: jnp.mean((w - x) ** 2), gates.binary(0.3), batch=rows, inner_steps=4,
      ...     theta_optimizer=adam, mask_optimizer=adam, detection_threshold=1.5)
      >>> state = learner.init(jnp.zeros(2), jax.random.key(0))
      >>> state, metrics = learner.step(state, StreamBatch(rows), jax.random.key(1))

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


def er(
    loss_fn: Callable, optimizer: optax.GradientTransformation, *, clip_norm: float | None = None
) -> Learner:
    """Experience replay, or without replay online SGD: `er_step` as a learner.

    Args:
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`.
      optimizer: the optax transformation for theta.
      clip_norm: as in `er_step`.

    Returns:
      A `Learner`, which reads the rows, the replay and its weights.

    Example:
      >>> learner = er(lambda w, rows: jnp.mean((rows - w) ** 2), optax.sgd(0.1))

    Source: Chaudhry et al. 2019, On tiny episodic memories, Algorithm 1.
    """

    def step(state, batch, key=None):
        return er_step(
            state,
            batch.rows,
            batch.replay,
            loss_fn=loss_fn,
            optimizer=optimizer,
            replay_weights=batch.replay_weights,
            clip_norm=clip_norm,
        )

    return Learner(lambda params, key: init_online_state(params, optimizer), step)


def mer(
    loss_fn: Callable,
    *,
    learning_rate: Any,
    within_batch_rate: Any,
    across_batch_rate: Any,
    clip_norm: float | None = None,
) -> Learner:
    """Meta-experience replay: `mer_step` as a learner.

    Args:
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`.
      learning_rate: alpha, as in `mer_step`, and so are the other rates and `clip_norm`.
      within_batch_rate: beta.
      across_batch_rate: gamma.
      clip_norm: bound of each gradient's norm, or None.

    Returns:
      A `Learner`, which reads one row, the replay [s, r, ...] and its weights.

    Example:
      >>> learner = mer(
      ...     lambda w, rows: jnp.mean((rows - w) ** 2), learning_rate=0.1, within_batch_rate=0.01,
      ...     across_batch_rate=1.0)

    Source: Riemer et al. 2019, MER, Algorithm 1.
    """
    rates = {
        "learning_rate": learning_rate,
        "within_batch_rate": within_batch_rate,
        "across_batch_rate": across_batch_rate,
    }

    def step(state, batch, key=None):
        return mer_step(
            state,
            batch.rows,
            batch.replay,
            batch.replay_weights,
            loss_fn=loss_fn,
            clip_norm=clip_norm,
            **rates,
        )

    return Learner(lambda params, key: init_online_state(params), step)


def gem(
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    *,
    margin: Any = 0.5,
    clip_norm: float | None = None,
    ridge: Any = 1e-3,
) -> Learner:
    """Gradient episodic memory: `gem_step` as a learner.

    Args:
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`.
      optimizer: the optax transformation for theta.
      margin: as in `gem_step`, and so are `clip_norm` and `ridge`.
      clip_norm: bound of each gradient's norm, or None.
      ridge: what is added to the diagonal of M M'.

    Returns:
      A `Learner`, which reads the rows, as replay the memory [T, k, ...], and `observed`.

    Example:
      >>> learner = gem(lambda w, rows: jnp.mean((rows - w) ** 2), optax.sgd(0.1))

    Source: Lopez-Paz & Ranzato 2017, GEM, Algorithm 1.
    """

    def step(state, batch, key=None):
        return gem_step(
            state,
            batch.rows,
            batch.replay,
            batch.observed,
            loss_fn=loss_fn,
            optimizer=optimizer,
            margin=margin,
            clip_norm=clip_norm,
            ridge=ridge,
        )

    return Learner(lambda params, key: init_online_state(params, optimizer), step)


def agem(
    loss_fn: Callable, optimizer: optax.GradientTransformation, *, clip_norm: float | None = None
) -> Learner:
    """A-GEM: `agem_step` as a learner.

    Args:
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`.
      optimizer: the optax transformation for theta.
      clip_norm: as in `agem_step`.

    Returns:
      A `Learner`, which reads the rows, as replay rows of earlier tasks, and their weights.

    Example:
      >>> learner = agem(lambda w, rows: jnp.mean((rows - w) ** 2), optax.sgd(0.1))

    Source: Chaudhry et al. 2019, A-GEM, Eq. 11.
    """

    def step(state, batch, key=None):
        return agem_step(
            state,
            batch.rows,
            batch.replay,
            batch.replay_weights,
            loss_fn=loss_fn,
            optimizer=optimizer,
            clip_norm=clip_norm,
        )

    return Learner(lambda params, key: init_online_state(params, optimizer), step)


def bgd(
    loss_fn: Callable, *, learning_rate: float = 1.0, initial_std: float = 0.01, samples: int = 5
) -> Learner:
    """Bayesian gradient descent from Gaussians about `params`: `bgd_step` as a learner.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      learning_rate: eta, of the means.
      initial_std: sigma at the start.
      samples: the networks drawn for a step.

    Returns:
      A `Learner`, which reads the rows of a batch and needs a key.

    Example:
      >>> learner = bgd(lambda w, x: jnp.mean((w - x) ** 2), learning_rate=10.0)

    Source: Zeno et al. 2018, Algorithm 1.
    """
    optimizer = bayes.bgd(learning_rate)

    def step(state, batch, key):
        return bayes.bgd_step(
            state, batch.rows, key, loss_fn=loss_fn, optimizer=optimizer, samples=samples
        )

    return Learner(
        lambda params, key: init_online_state(bayes.gaussian(params, initial_std), optimizer), step
    )


def metabgd(
    loss_fn: Callable,
    *,
    learning_rate: float,
    inner_lr: float,
    inner_steps: int,
    initial_std: float = 0.01,
    samples: int = 5,
    inner_params: Callable[[str], bool] | None = None,
) -> Learner:
    """MAML whose outer optimiser is Bayesian gradient descent: `metabgd_step` as a learner.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      learning_rate: eta, of the means.
      inner_lr: the step size of every parameter that the inner loop adapts.
      inner_steps: K.
      initial_std: sigma at the start.
      samples: the networks drawn for a step.
      inner_params: whether the inner loop adapts the leaf of this path; None: all of them.

    Returns:
      A `Learner`, which reads the rows of a batch and needs a key.

    Example:
      >>> learner = metabgd(
      ...     lambda w, x: jnp.mean((w - x) ** 2), learning_rate=10.0, inner_lr=0.1, inner_steps=4)

    Source: He et al. 2019, Task agnostic continual learning via meta learning.
    """
    optimizer = bayes.bgd(learning_rate)

    def init(params, key):
        return init_metabgd_state(bayes.gaussian(params, initial_std), optimizer, inner_params)

    def step(state, batch, key):
        return metabgd_step(
            state,
            batch.rows,
            key,
            loss_fn=loss_fn,
            step_sizes=fixed_rates(state.fast_params, inner_lr),
            inner_steps=inner_steps,
            optimizer=optimizer,
            samples=samples,
        )

    return Learner(init, step)


def frozen_maml(
    loss_fn: Callable,
    *,
    inner_lr: float,
    inner_steps: int,
    inner_params: Callable[[str], bool] | None = None,
) -> Learner:
    """MAML or ANIL without retraining: `frozen_maml_step` as a learner.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      inner_lr: the step size of every parameter that the inner loop adapts.
      inner_steps: K.
      inner_params: whether the inner loop adapts the leaf of this path, for ANIL the head's; None:
        all of them.

    Returns:
      A `Learner`, which reads the rows of a batch; theta stays as `init` was given it.

    Example:
      >>> learner = frozen_maml(
      ...     lambda w, x: jnp.mean((w - x) ** 2), inner_lr=0.1, inner_steps=16)

    Source: Caccia et al. 2020, OSAKA, the baselines MAML and ANIL of its public code.
    """

    def step(state, batch, key=None):
        return frozen_maml_step(
            state,
            batch.rows,
            loss_fn=loss_fn,
            step_sizes=fixed_rates(state.fast_params, inner_lr),
            inner_steps=inner_steps,
        )

    return Learner(
        lambda params, key: FrozenState(params, partition(params, inner_params)[0]), step
    )
