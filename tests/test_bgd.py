"""Bayesian gradient descent and the other baselines of a switching stream, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import quick_jit

from jaxsparse._tree import partition
from jaxsparse.continual.bgd import Gaussian, bgd, bgd_step, gaussian, sample_params
from jaxsparse.continual.er import OnlineState, init_online_state
from jaxsparse.continual.online import (
    FrozenState,
    frozen_maml_step,
    init_metabgd_state,
    metabgd_step,
    self_masked_loss,
)

ETA, SAMPLES, ROWS, INNER_RATE, INNER_STEPS = 10.0, 5, 4, 0.2, 3
OPTIMIZER = bgd(ETA)


def loss_fn(params, batch):
    """Linear regression whose prediction is scaled by a gain."""
    x, y = batch
    error = params["gain"] * (x @ params["w"]) - y
    return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}


def numpy_loss(params, batch):
    x, y = batch
    error = params["gain"] * (x @ params["w"]) - y
    d = 2 * error / len(y)
    gradient = {"gain": d @ (x @ params["w"]), "w": params["gain"] * x.T @ d}
    return np.mean(error**2), np.mean(np.abs(error)), gradient


def numpy_bgd(mean, std, gradients, noise):
    """The published update of mu and sigma, name by name."""
    new_mean, new_std = {}, {}
    for name in mean:
        g = np.stack([ROWS * x[name] for x in gradients])
        e1, e2 = g.mean(0), (g * np.stack([x[name] for x in noise])).mean(0)
        s = std[name]
        new_mean[name] = mean[name] - ETA * s**2 * e1
        new_std[name] = s * np.sqrt(1 + (s * e2 / 2) ** 2) - s**2 * e2 / 2
    return new_mean, new_std


def problem(steps=3, std=0.05):
    rng = np.random.default_rng(0)
    params = {"gain": np.array(1.5), "w": rng.normal(size=3)}
    batches = rng.normal(size=(steps, ROWS, 3)), rng.normal(size=(steps, ROWS))
    return gaussian(jax.tree.map(jnp.asarray, params), std), batches


def draws(distribution, key):
    """The samples of a step and their noise, as NumPy dicts."""
    pairs = [sample_params(distribution, k) for k in jax.random.split(key, SAMPLES)]
    return [[jax.tree.map(np.asarray, pair[i]) for pair in pairs] for i in range(2)]


def assert_trees_close(got, want, rtol=1e-9, atol=1e-12):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, want)


# Bayesian gradient descent


@pytest.mark.parametrize("gradient", [-30.0, -0.5, 0.0, 0.5, 30.0])
def test_update_matches_the_published_one(gradient):
    std = 0.3
    weights = Gaussian(jnp.array(2.0), jnp.array(std))
    given = Gaussian(jnp.array(0.7), jnp.array(gradient))
    updates, state = OPTIMIZER.update(given, OPTIMIZER.init(weights), weights)
    assert state == optax.EmptyState()
    new = optax.apply_updates(weights, updates)
    np.testing.assert_allclose(new.mean, 2.0 - ETA * std**2 * 0.7, rtol=1e-6)
    wanted = std * np.sqrt(1 + (std * gradient / 2) ** 2) - std**2 * gradient / 2
    np.testing.assert_allclose(new.std, wanted, rtol=1e-5)
    assert new.std > 0


def test_steps_match_numpy():
    step = quick_jit(functools.partial(bgd_step, loss_fn=loss_fn, optimizer=OPTIMIZER))
    with jax.enable_x64(True):
        distribution, batches = problem()
        state = init_online_state(distribution, OPTIMIZER)
        mean, std = (jax.tree.map(np.asarray, x) for x in distribution)
        for t in range(3):
            key, batch = jax.random.key(t), jax.tree.map(lambda x, t=t: x[t], batches)
            thetas, noise = draws(state.params, key)
            for name in mean:
                np.testing.assert_allclose(thetas[0][name], mean[name] + std[name] * noise[0][name])
            losses, errors, gradients = zip(*(numpy_loss(x, batch) for x in thetas), strict=True)
            mean, std = numpy_bgd(mean, std, gradients, noise)
            state, metrics = step(state, batch, key)
            assert_trees_close(tuple(state.params), (mean, std))
            wanted = {"loss": np.mean(losses), "error": np.mean(errors)}
            assert_trees_close(metrics, wanted)
        assert state.step == 3


def test_samples_are_standard_normal():
    distribution = Gaussian(
        {"a": jnp.full((50, 40), 3.0), "b": jnp.full((50, 40), -1.0)},
        {"a": jnp.full((50, 40), 0.1), "b": jnp.full((50, 40), 0.2)},
    )
    keys = jax.random.split(jax.random.key(0), 2)
    (params, noise), (_, other) = (sample_params(distribution, key) for key in keys)
    np.testing.assert_allclose(params["a"], 3 + 0.1 * noise["a"], rtol=1e-5)
    np.testing.assert_allclose(params["b"], -1 + 0.2 * noise["b"], rtol=1e-5, atol=1e-6)
    values = np.stack([np.ravel(x) for x in (noise["a"], noise["b"], other["a"], other["b"])])
    np.testing.assert_allclose(values.mean(1), 0, atol=0.08)
    np.testing.assert_allclose(np.cov(values), np.eye(4), atol=0.11)


def test_certain_weights_stay():
    """sigma -> 0: nothing is learned, and sigma stays."""
    distribution, batches = problem(std=1e-12)
    batch = jax.tree.map(lambda x: x[0], batches)
    state = init_online_state(distribution, OPTIMIZER)
    new, _ = bgd_step(state, batch, jax.random.key(0), loss_fn=loss_fn, optimizer=OPTIMIZER)
    assert_trees_close(tuple(new.params), tuple(distribution), 1e-6)


# MetaBGD, and MAML without retraining


def adapted(params, batch):
    params = dict(params)
    losses = []
    for _ in range(INNER_STEPS):
        loss, _, gradient = numpy_loss(params, batch)
        params["w"] = params["w"] - INNER_RATE * gradient["w"]
        losses.append(loss)
    return params["w"], losses


def inner_params(name):
    return name != "gain"


SIZES = {"gain": None, "w": np.array(INNER_RATE)}


def test_metabgd_timesteps_match_numpy():
    given = {"optimizer": OPTIMIZER, "step_sizes": SIZES, "inner_steps": INNER_STEPS}
    step = quick_jit(functools.partial(metabgd_step, loss_fn=loss_fn, **given))
    with jax.enable_x64(True):
        distribution, batches = problem(4)
        state = init_metabgd_state(distribution, OPTIMIZER, inner_params)
        mean, std = (jax.tree.map(np.asarray, x) for x in distribution)
        phi = mean["w"]
        for t in range(4):
            key, batch = jax.random.key(t), jax.tree.map(lambda x, t=t: x[t], batches)
            thetas, noise = draws(state.params, key)
            losses, errors, gradients = zip(
                *(numpy_loss({"gain": x["gain"], "w": phi}, batch) for x in thetas), strict=True
            )
            if t > 0:
                mean, std = numpy_bgd(mean, std, gradients, noise)
            phi, inner = adapted(thetas[-1], batch)
            state, metrics = step(state, batch, key)
            assert_trees_close(tuple(state.params), (mean, std))
            assert_trees_close(state.fast_params, {"gain": None, "w": phi})
            wanted = {"loss": np.mean(losses), "error": np.mean(errors), "inner_loss": inner}
            np.testing.assert_allclose(metrics.pop("inner_loss"), wanted.pop("inner_loss"))
            assert_trees_close(metrics, wanted)


def test_frozen_maml_adapts_from_theta_each_time():
    with jax.enable_x64(True):
        distribution, batches = problem()
        params = distribution.mean
        theta = jax.tree.map(np.asarray, params)
        state = FrozenState(params, partition(params, inner_params)[0])
        given = {"step_sizes": SIZES, "inner_steps": INNER_STEPS}
        step = quick_jit(functools.partial(frozen_maml_step, loss_fn=loss_fn, **given))
        phi = theta["w"]
        for t in range(3):
            batch = jax.tree.map(lambda x, t=t: x[t], batches)
            loss, error, _ = numpy_loss({"gain": theta["gain"], "w": phi}, batch)
            phi, inner = adapted(theta, batch)
            state, metrics = step(state, batch)
            assert_trees_close(state.fast_params["w"], phi)
            np.testing.assert_allclose(metrics.pop("inner_loss"), inner)
            assert_trees_close(metrics, {"loss": loss, "error": error})
        assert_trees_close(state.params, theta)


def test_self_masked_loss_by_hand():
    loss = self_masked_loss(lambda p, x: p["conv"] * p["head"] + x, lambda name: name == "conv")
    params = {"conv": jnp.log(3.0), "head": jnp.array(2.0)}  # sigmoid(log 3) = 3 / 4
    np.testing.assert_allclose(loss(params, 1.0), 0.75 * np.log(3) * 2 + 1, rtol=1e-6)


# Under JAX's transformations, and errors


def test_errors_name_the_argument():
    distribution, batches = problem()
    batch = jax.tree.map(lambda x: x[0], batches)
    state, key = init_online_state(distribution, OPTIMIZER), jax.random.key(0)
    step = functools.partial(bgd_step, loss_fn=loss_fn, optimizer=OPTIMIZER)
    with pytest.raises(ValueError, match=r"^samples must be 1 or more, got 0"):
        step(state, batch, key, samples=0)
    with pytest.raises(ValueError, match=r"^batch must have the same leading row axis"):
        step(state, (batch[0], batch[1][:2]), key)
    with pytest.raises(TypeError, match=r"^state.params\[mean/n\] must be floating, got int32"):
        integers = Gaussian({"n": jnp.arange(2)}, {"n": jnp.arange(2)})
        step(OnlineState(integers, (), jnp.zeros((), jnp.int32)), batch, key)
    with pytest.raises(ValueError, match=r"^std must be positive, got 0.0"):
        gaussian(distribution.mean, 0.0)
    with pytest.raises(TypeError, match=r"^params\[n\] must be floating, got int32"):
        gaussian({"n": jnp.arange(2)})
    with pytest.raises(
        ValueError, match=r"^params is None, want a Gaussian: the steps of bgd depend on sigma"
    ):
        OPTIMIZER.update(distribution, OPTIMIZER.init(distribution))
    with pytest.raises(ValueError, match=r"^masked selects none of gain, w"):
        self_masked_loss(loss_fn, lambda name: False)(distribution.mean, batch)
    with pytest.raises(ValueError, match=r"^step_sizes must have the tree of state.fast_params"):
        frozen_maml_step(
            FrozenState(distribution.mean, distribution.mean),
            batch,
            loss_fn=loss_fn,
            step_sizes=SIZES,
            inner_steps=1,
        )
