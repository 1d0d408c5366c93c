"""The baselines as learners."""

from collections.abc import Callable
from typing import Any

import optax

from jaxsparse.continual import bgd as bayes
from jaxsparse.continual.er import er_step, init_online_state
from jaxsparse.continual.gem import agem_step, gem_step
from jaxsparse.continual.mer import mer_step
from jaxsparse.continual.online import (
    fixed_rates,
    frozen_maml_step,
    init_frozen_state,
    init_metabgd_state,
    metabgd_step,
)
from jaxsparse.learner import Learner


def er(
    loss_fn: Callable, optimizer: optax.GradientTransformation, *, clip_norm: float | None = None
) -> Learner:
    """Experience replay (without replay, online SGD): `er_step` as a learner.

    Args:
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`.
      optimizer: the optax transformation for theta.
      clip_norm: as in `er_step`.

    Returns:
      A `Learner`. It uses the rows, the replay and the replay weights of a `StreamBatch`.

    Examples:
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
      learning_rate: alpha, as in `mer_step`.
      within_batch_rate: beta, as in `mer_step`.
      across_batch_rate: gamma, as in `mer_step`.
      clip_norm: as in `mer_step`.

    Returns:
      A `Learner`. It uses the row, the replay [s, r, ...] and the replay weights of a
      `StreamBatch`.

    Examples:
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
      margin: as in `gem_step`.
      clip_norm: as in `gem_step`.
      ridge: as in `gem_step`.

    Returns:
      A `Learner`. It uses the rows and `observed` of a `StreamBatch`, whose `replay` must be the
      memory [T, k, ...].

    Examples:
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
      A `Learner`. It uses the rows of a `StreamBatch`, whose `replay` and `replay_weights` must be
      rows of earlier tasks and their weights.

    Examples:
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
    """Bayesian gradient descent, starting at Gaussians around `params`: `bgd_step` as a learner.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      learning_rate: eta, for the means.
      initial_std: the initial sigma.
      samples: the number of networks to draw per step.

    Returns:
      A `Learner`. It uses the rows of a `StreamBatch`, and its `step` needs a key.

    Examples:
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
      learning_rate: eta, for the means.
      inner_lr: the step size of every parameter that the inner loop adapts.
      inner_steps: K.
      initial_std: the initial sigma.
      samples: the number of networks to draw per step.
      inner_params: `(path of a leaf) -> bool`, True if the inner loop adapts it; None: all leaves.

    Returns:
      A `Learner`. It uses the rows of a `StreamBatch`, and its `step` needs a key.

    Examples:
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
      inner_params: `(path of a leaf) -> bool`, True if the inner loop adapts it (for ANIL, the
        leaves of the head); None: all leaves.

    Returns:
      A `Learner`. It uses the rows of a `StreamBatch`. Its theta never changes.

    Examples:
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

    return Learner(lambda params, key: init_frozen_state(params, inner_params), step)
