"""Baselines of C-MAML on a switching stream: MAML and ANIL without retraining, MetaBGD, MetaCOG.

BGD is `bgd_step`. Online Adam and fine-tuning are `er_step` without replay, starting from random
weights and from meta-learned weights.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse._tree import combine, partition, restrict
from jaxsparse.checks import (
    check_floating,
    check_like,
    copy_arrays,
    leaf_names,
    scalar_loss,
    with_metrics,
)
from jaxsparse.continual.bgd import Gaussian, expected_gradient
from jaxsparse.inner import adapt
from jaxsparse.losses import check_one_batch
from jaxsparse.precision import float32_by_default
from jaxsparse.updates import init_optimizer, update

Tree = Any


class FrozenState(NamedTuple):
    """The state of MAML or ANIL without retraining.

    Attributes:
      params: theta, which does not change.
      fast_params: phi, which is used for predictions: the tree of `params` with None for every leaf
        that the inner loop does not adapt.

    Examples:
      >>> params = {"norm": jnp.ones(3), "head": jnp.ones(2)}
      >>> state = FrozenState(params, partition(params, lambda name: name != "norm")[0])
    """

    params: Tree
    fast_params: Tree


def init_frozen_state(
    params: Tree, inner_params: Callable[[str], bool] | None = None
) -> FrozenState:
    """The state before the first timestep, which predicts with theta.

    ``phi_0 = theta``

    Args:
      params: theta, any pytree of floating arrays; copied.
      inner_params: `(path of a leaf) -> bool`, True if the inner loop adapts it (for ANIL, the
        leaves of the head); None: all leaves.

    Returns:
      A `FrozenState`.

    Raises:
      TypeError: `params` has a leaf that is not floating.

    Examples:
      >>> state = init_frozen_state({"w": jnp.ones(3)})

    Source: as `frozen_maml_step`.
    """
    params, fast_params = (copy_arrays("params", params) for _ in range(2))
    return FrozenState(params, partition(fast_params, inner_params)[0])


@functools.partial(jax.jit, static_argnames=("loss_fn", "inner_steps"))
@float32_by_default
def frozen_maml_step(
    state: FrozenState,
    batch: Any,
    *,
    loss_fn: Callable,
    step_sizes: Tree,
    inner_steps: int,
) -> tuple[FrozenState, dict[str, jax.Array]]:
    """One timestep of MAML or ANIL without retraining: predict, then adapt to the batch.

    ``l = L(phi; B_t),  phi <- theta adapted to B_t with K steps``

    Args:
      state: a `FrozenState`; its arrays are not donated.
      batch: B_t, a batch for `loss_fn`.
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      step_sizes: a tree like `state.fast_params`; a scalar leaf is shared by the whole tensor.
      inner_steps: K.

    Returns:
      The new state, and metrics: "loss" before adapting to the batch (and `loss_fn`'s metrics), and
      "inner_loss" [K] (before each inner step).

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> state, metrics = frozen_maml_step(
      ...     FrozenState(jnp.zeros(2), jnp.zeros(2)), jnp.ones((50, 2)), inner_steps=16,
      ...     loss_fn=lambda w, x: jnp.mean((w - x) ** 2), step_sizes=jnp.array(0.1))
      >>> metrics["inner_loss"].shape
      (16,)

    Source: Caccia et al. 2020, OSAKA, the baselines MAML and ANIL of its public code.
    """
    check_floating("state.params", state.params)
    check_like("step_sizes", step_sizes, "state.fast_params", state.fast_params)
    check_one_batch(loss_fn)
    params = combine(state.fast_params, state.params)
    loss, metrics = scalar_loss(loss_fn)(params, batch)
    phi, inner = adapt(loss_fn, state.params, step_sizes, batch, inner_steps)
    fast_params = restrict(phi, state.fast_params)
    own = {"loss": loss, "inner_loss": inner["loss"]}
    return FrozenState(state.params, fast_params), with_metrics(own, metrics)


def fixed_rates(params: Tree, inner_lr: float) -> Tree:
    """`inner_lr` as the step size of every tensor; None where `params` has None."""
    return jax.tree.map(lambda _: jnp.float32(inner_lr), params)


class MetaBGDState(NamedTuple):
    """Everything a timestep of MetaBGD changes.

    Attributes:
      params: the `Gaussian` over the slow weights theta.
      fast_params: phi, which is used for predictions: the tree of the mean with None for every leaf
        that the inner loop does not adapt.
      opt_state: the optax state for the Gaussian.
      step: int32, the number of timesteps so far.

    Examples:
      >>> from jaxsparse.continual.bgd import bgd, gaussian
      >>> state = init_metabgd_state(gaussian({"w": jnp.ones(3)}), bgd(learning_rate=10.0))
      >>> predict = combine(state.fast_params, state.params.mean)
    """

    params: Gaussian
    fast_params: Tree
    opt_state: optax.OptState
    step: jax.Array


def init_metabgd_state(
    distribution: Gaussian,
    optimizer: optax.GradientTransformation,
    inner_params: Callable[[str], bool] | None = None,
) -> MetaBGDState:
    """The state before the first timestep, which predicts with the mean.

    ``phi_0 = mu``

    Args:
      distribution: the `Gaussian` over theta; copied.
      optimizer: `bgd(eta)`.
      inner_params: `(path of a leaf) -> bool`, True if the inner loop adapts it; None: all leaves.

    Returns:
      A `MetaBGDState`.

    Raises:
      TypeError: `distribution` has a leaf that is not floating.

    Examples:
      >>> from jaxsparse.continual.bgd import bgd, gaussian
      >>> state = init_metabgd_state(gaussian({"w": jnp.ones(3)}), bgd(learning_rate=10.0))
      >>> int(state.step)
      0

    Source: as `metabgd_step`.
    """
    first, second = (copy_arrays("distribution", distribution) for _ in range(2))
    fast_params, _ = partition(second.mean, inner_params)
    opt_state = init_optimizer("optimizer", optimizer, first)
    return MetaBGDState(first, fast_params, opt_state, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames=("loss_fn", "inner_steps", "optimizer", "samples"))
@float32_by_default
def metabgd_step(
    state: MetaBGDState,
    batch: Any,
    key: jax.Array,
    *,
    loss_fn: Callable,
    step_sizes: Tree,
    inner_steps: int,
    optimizer: optax.GradientTransformation,
    samples: int = 5,
) -> tuple[MetaBGDState, dict[str, jax.Array]]:
    """One timestep of MetaBGD: first-order MAML with BGD as the outer optimiser.

    With J samples ``theta_j`` of the Gaussian and phi from the last timestep:
    ``g_j = n grad L(phi, rest of theta_j; B_t)``, where the rest are the leaves that the inner loop
    does not adapt. BGD makes a step with these gradients. Then
    ``phi <- theta_J adapted to B_t with K steps``, from the last sample.

    The first timestep only computes phi.

    Args:
      state: a `MetaBGDState`; its arrays are not donated.
      batch: B_t, a tree whose leaves have a leading row axis [n, ...].
      key: a PRNG key.
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`: the mean loss of the
        rows.
      step_sizes: a tree like `state.fast_params`; a scalar leaf is shared by the whole tensor.
      inner_steps: K.
      optimizer: `bgd(eta)`.
      samples: J, the number of networks to draw.

    Returns:
      The new state, and metrics: the mean "loss" (and `loss_fn`'s metrics) over the samples, before
      adapting to the batch, and "inner_loss" [K] (before each inner step).

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> from jaxsparse.continual.bgd import bgd, gaussian
      >>> optimizer = bgd(learning_rate=10.0)
      >>> state = init_metabgd_state(gaussian(jnp.zeros(2)), optimizer)
      >>> state, metrics = metabgd_step(
      ...     state, jnp.ones((50, 2)), jax.random.key(0), inner_steps=16, optimizer=optimizer,
      ...     loss_fn=lambda w, x: jnp.mean((w - x) ** 2), step_sizes=jnp.array(0.05))
      >>> int(state.step)
      1

    Source: He et al. 2019, Task agnostic continual learning via meta learning, as in the public
    code of Caccia et al. 2020, but to first order.
    """
    check_floating("state.params", state.params)
    check_like("step_sizes", step_sizes, "state.fast_params", state.fast_params)
    gradient, metrics, sample = expected_gradient(
        loss_fn,
        state.params,
        batch,
        key,
        samples,
        at=lambda params: combine(state.fast_params, params),
    )
    moved = update("optimizer", optimizer, gradient, state.opt_state, state.params)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(state.step > 0, new, old), moved, (state.params, state.opt_state)
    )
    phi, inner = adapt(loss_fn, sample, step_sizes, batch, inner_steps)
    fast_params = restrict(phi, state.fast_params)
    own = {"inner_loss": inner["loss"]}
    state = MetaBGDState(params, fast_params, opt_state, state.step + 1)
    return state, with_metrics(own, metrics)


def self_masked_loss(loss_fn: Callable, masked: Callable[[str], bool]) -> Callable:
    """The loss of a network whose weights are also their soft masks. With `bgd_step`: MetaCOG.

    ``L(theta * sigmoid(theta))`` for the masked leaves; other leaves are used as they are.

    The public code of Caccia et al. 2020 adapts masks for MetaCOG, but predicts with masks that it
    computes from the weights. So its results are those of this network trained by BGD.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      masked: `(path of a leaf) -> bool`, True if the leaf is masked. In the public code, these are
        the weights and biases of the convolutions.

    Returns:
      A loss function of the same form.

    Raises:
      ValueError: the loss needs a support set (see `cross_entropy`); from the returned loss:
        `masked` selects no leaf.

    Examples:
      >>> loss_fn = jaxsparse.cross_entropy(jaxsparse.nn.conv4(width=8, blocks="xla"))
      >>> loss_fn = self_masked_loss(loss_fn, lambda name: name.startswith("conv"))

    Source: Caccia et al. 2020, OSAKA, the baseline MetaCOG of its public code; He et al. 2019.
    """

    check_one_batch(loss_fn)

    def loss(params, batch):
        names, (leaves, tree) = leaf_names(params), jax.tree.flatten(params)
        chosen = [masked(name) for name in names]
        if not any(chosen):
            raise ValueError(f"masked selects none of {', '.join(names)}")
        soft = [
            x * jax.nn.sigmoid(x) if mine else x for x, mine in zip(leaves, chosen, strict=True)
        ]
        return loss_fn(jax.tree.unflatten(tree, soft), batch)

    loss.rowwise = getattr(loss_fn, "rowwise", None)  # type: ignore[attr-defined]
    return loss
