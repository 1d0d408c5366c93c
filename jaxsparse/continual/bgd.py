"""Bayesian gradient descent (BGD): online learning of a Gaussian over the weights."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse.checks import check_floating, check_rows, check_steps, scalar_loss, with_metrics
from jaxsparse.clipping import sum_dtype
from jaxsparse.continual.er import OnlineState, apply_gradient
from jaxsparse.draws import draw_each
from jaxsparse.losses import check_one_batch
from jaxsparse.precision import float32_by_default

Tree = Any


class Gaussian(NamedTuple):
    """Independent Gaussians, one per weight; also the gradient of a function of them.

    Attributes:
      mean: mu, a pytree of floating arrays.
      std: sigma, a tree like `mean`, positive.

    Examples:
      >>> Gaussian(mean=jnp.zeros(3), std=jnp.full(3, 0.01)).std.shape
      (3,)
    """

    mean: Tree
    std: Tree


def gaussian(params: Tree, std: float = 0.01) -> Gaussian:
    """Gaussians around the weights of a network, all with the same deviation.

    ``mu = params,  sigma = std``

    Args:
      params: any pytree of floating arrays.
      std: sigma, above 0.

    Returns:
      A `Gaussian`, for `init_online_state`.

    Raises:
      TypeError: `params` has a leaf that is not floating.
      ValueError: `std` is not above 0.

    Examples:
      >>> from jaxsparse.continual.er import init_online_state
      >>> state = init_online_state(gaussian({"w": jnp.ones(3)}), bgd(learning_rate=10.0))
      >>> state.params.std["w"].shape
      (3,)

    Source: Zeno et al. 2018, Task agnostic continual learning using online variational Bayes.
    """
    check_floating("params", params)
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    params = jax.tree.map(jnp.asarray, params)
    return Gaussian(params, jax.tree.map(lambda x: jnp.full(x.shape, std, x.dtype), params))


def sample_params(distribution: Gaussian, key: jax.Array) -> tuple[Tree, Tree]:
    """Draw the weights of a network.

    ``theta = mu + sigma * epsilon,  epsilon ~ N(0, I)``

    Args:
      distribution: a `Gaussian`.
      key: a PRNG key.

    Returns:
      theta and epsilon, two trees like the mean.

    Examples:
      >>> params, noise = sample_params(gaussian({"w": jnp.ones(3)}, std=0.1), jax.random.key(0))
      >>> params["w"].shape
      (3,)

    Source: Zeno et al. 2018, Algorithm 1.
    """
    leaves, tree = jax.tree.flatten(distribution.mean)
    keys = jax.random.split(key, len(leaves))
    specs = [(leaf.shape, leaf.dtype) for leaf in leaves]
    drawn = draw_each(lambda key, spec: jax.random.normal(key, *spec), keys, specs)
    noise = jax.tree.unflatten(tree, drawn)
    return jax.tree.map(lambda m, s, e: m + s * e, *distribution, noise), noise


def bgd(learning_rate: float = 1.0) -> optax.GradientTransformation:
    """The optimiser of Bayesian gradient descent, for parameters that are a `Gaussian`.

    With ``E1 = dL/d mu`` and ``E2 = dL/d sigma``, the gradient of the expected loss:
    ``mu <- mu - learning_rate sigma^2 E1``
    ``sigma <- sigma sqrt(1 + (sigma E2 / 2)^2) - sigma^2 E2 / 2``
    Both use the old sigma. The rule depends on the scale of the loss, which must be the SUM over
    the rows.

    Args:
      learning_rate: eta, for the means only; 1 is the exact rule.

    Returns:
      An optax transformation without state. Its `update` needs the gradient and the parameters,
      both as a `Gaussian`.

    Raises:
      ValueError: `update` was called without parameters.

    Examples:
      >>> optimizer, weights = bgd(learning_rate=10.0), gaussian(jnp.zeros(3))
      >>> updates, _ = optimizer.update(
      ...     Gaussian(jnp.ones(3), jnp.zeros(3)), optimizer.init(weights), weights)
      >>> round(float(updates.mean[0]), 6)
      -0.001

    Source: Zeno et al. 2018, Eqs. for mu and sigma of Algorithm 1.
    """

    def mean_update(std, gradient):
        return -learning_rate * std**2 * gradient

    def std_update(std, gradient):
        half = std * gradient / 2
        # std * (sqrt(1 + half²) - 1 - half), written without cancellation.
        root = jnp.sqrt(1 + half**2)
        return std * (half**2 / (root + 1) - half)

    def update(gradient, state, params=None):
        if params is None:
            raise ValueError("params is None, want a Gaussian: the steps of bgd depend on sigma")
        return Gaussian(
            jax.tree.map(mean_update, params.std, gradient.mean),
            jax.tree.map(std_update, params.std, gradient.std),
        ), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@float32_by_default
def expected_gradient(
    loss_fn: Callable,
    distribution: Gaussian,
    batch: Any,
    key: jax.Array,
    samples: int,
    at: Callable[[Tree], Tree] = lambda params: params,
) -> tuple[Gaussian, dict[str, jax.Array], Tree]:
    """The Monte-Carlo gradient of the expected loss of a `Gaussian`.

    With ``theta_j = mu + sigma * epsilon_j``, ``g_j = n grad L(theta_j; B)`` and n rows in B:
    ``dL/d mu = mean_j g_j,  dL/d sigma = mean_j g_j * epsilon_j``

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`: the mean loss of the
        rows.
      distribution: the `Gaussian`.
      batch: a tree whose leaves have a leading row axis [n, ...].
      key: a PRNG key; sample j uses the j-th of `jax.random.split(key, samples)`.
      samples: the number of networks to draw, one after the other.
      at: `theta_j -> weights` at which the gradient is computed; default: the sample itself.

    Returns:
      The gradient, a `Gaussian`; the mean "loss" (and `loss_fn`'s metrics) over the samples; and
      the last sample.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> gradient, metrics, _ = expected_gradient(
      ...     lambda w, x: jnp.mean((w - x) ** 2), gaussian(jnp.zeros(2)), jnp.ones((50, 2)),
      ...     jax.random.key(0), samples=5)
      >>> gradient.mean.shape
      (2,)

    Source: Zeno et al. 2018, Algorithm 1.
    """
    check_steps("samples", samples, least=1)
    check_one_batch(loss_fn)
    (count,) = check_rows("batch", batch)
    loss_and_grad = jax.value_and_grad(scalar_loss(loss_fn), has_aux=True)

    def add_sample(sums, key):
        params, noise = sample_params(distribution, key)
        (loss, metrics), gradient = loss_and_grad(at(params), batch)
        gradient = jax.tree.map(lambda g, s: g.astype(s.dtype) * count, gradient, sums.mean)
        products = jax.tree.map(lambda g, e: g * e.astype(g.dtype), gradient, noise)
        sums = jax.tree.map(jnp.add, sums, Gaussian(gradient, products))
        return sums, with_metrics({"loss": loss}, metrics)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, sum_dtype(x.dtype)), distribution)
    keys = jax.random.split(key, samples)
    sums, metrics = jax.lax.scan(add_sample, zeros, keys)
    gradient = jax.tree.map(lambda s, x: (s / samples).astype(x.dtype), sums, distribution)
    return gradient, jax.tree.map(jnp.mean, metrics), sample_params(distribution, keys[-1])[0]


@functools.partial(jax.jit, static_argnames=("loss_fn", "optimizer", "samples"))
@float32_by_default
def bgd_step(
    state: OnlineState,
    batch: Any,
    key: jax.Array,
    *,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    samples: int = 5,
) -> tuple[OnlineState, dict[str, jax.Array]]:
    """One step of Bayesian gradient descent on a batch of the stream.

    It computes `expected_gradient` and applies the update rule of `bgd`.

    Args:
      state: an `OnlineState` whose `params` are a `Gaussian`; its arrays are not donated.
      batch: a tree whose leaves have a leading row axis [n, ...].
      key: a PRNG key.
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`: the mean loss of the
        rows.
      optimizer: `bgd(eta)`.
      samples: the number of networks to draw; 5 in the code of Caccia et al. 2020.

    Returns:
      The new state, and the mean "loss" (and `loss_fn`'s metrics) over the samples, before the
      step.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> from jaxsparse.continual.er import init_online_state
      >>> optimizer = bgd(learning_rate=10.0)
      >>> state = init_online_state(gaussian(jnp.zeros(2)), optimizer)
      >>> state, metrics = bgd_step(
      ...     state, jnp.ones((50, 2)), jax.random.key(0), optimizer=optimizer,
      ...     loss_fn=lambda w, x: jnp.mean((w - x) ** 2))
      >>> int(state.step)
      1

    Source: Zeno et al. 2018, Algorithm 1.
    """
    check_floating("state.params", state.params)
    gradient, metrics, _ = expected_gradient(loss_fn, state.params, batch, key, samples)
    return apply_gradient(state, gradient, optimizer), metrics
