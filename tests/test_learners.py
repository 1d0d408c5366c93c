"""Every learner: it calls its step function, and works under JAX's transformations."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    Classifier,
    assert_trees_close,
    classification_loss,
    classification_tasks,
    quick_jit,
    rows,
    split_loss,
)

import jaxsparse
from jaxsparse import StreamBatch, gates
from jaxsparse.cmaml import init_cmaml_state

pytestmark = pytest.mark.usefixtures("quick_programs")
SGD, MASK_SGD, ADAM = optax.sgd(0.1), optax.sgd(0.5), optax.adam(1e-2)
GATE, RECTIFIED = gates.binary(0.3, slope=0.5, init=(-0.1, 0.4)), gates.rectified((-0.1, 0.4))
BOTH = {"theta_optimizer": ADAM, "mask_optimizer": MASK_SGD}
WEIGHTS = jnp.array([1.0, 0.0, 2.0, 1.0])
CMAML = {"inner_steps": 2, "capacity": 2, "detection_threshold": 0.05, "modulation": 1.0}


def adapts(name):
    return not name.endswith("b")


def tasks(i):
    return classification_tasks(i)


def plain(i):
    return StreamBatch(rows(i, 6))


def replayed(i):
    return StreamBatch(rows(i, 6), rows(10 + i, 4), WEIGHTS)


# name -> (loss_fn -> learner, i -> the i-th batch)
LEARNERS = {
    "maml": (lambda loss: jaxsparse.maml(loss, GATE, inner_steps=2, **BOTH), tasks),
    "maml, second order": (
        lambda loss: jaxsparse.maml(loss, RECTIFIED, inner_steps=2, second_order=True, **BOTH),
        tasks,
    ),
    "lamaml": (lambda loss: jaxsparse.lamaml(loss, GATE, mask_optimizer=MASK_SGD), replayed),
    "lamaml, second order": (
        lambda loss: jaxsparse.lamaml(
            loss, RECTIFIED, second_order=True, inner_batch_size=2, inner_clip=0.1, **BOTH
        ),
        replayed,
    ),
    "cmaml": (
        lambda loss: jaxsparse.cmaml(
            loss, GATE, batch=rows(0, 6), inner_params=adapts, **CMAML, **BOTH
        ),
        plain,
    ),
    "er": (lambda loss: jaxsparse.er(loss, SGD, clip_norm=1.0), replayed),
    "mer": (
        lambda loss: jaxsparse.mer(
            loss, learning_rate=0.1, within_batch_rate=0.5, across_batch_rate=0.7
        ),
        lambda i: StreamBatch(rows(i, 1), rows(10 + i, 2, 4), jnp.ones((2, 4))),
    ),
    "gem": (
        lambda loss: jaxsparse.gem(loss, SGD),
        lambda i: StreamBatch(rows(i, 6), rows(10 + i, 3, 4), observed=jnp.int32(2)),
    ),
    "agem": (lambda loss: jaxsparse.agem(loss, SGD), replayed),
    "bgd": (lambda loss: jaxsparse.bgd(loss, learning_rate=1.0, initial_std=0.05), plain),
    "metabgd": (
        lambda loss: jaxsparse.metabgd(
            loss, learning_rate=1.0, inner_lr=0.3, inner_steps=2, initial_std=0.05
        ),
        plain,
    ),
    "frozen_maml": (
        lambda loss: jaxsparse.frozen_maml(
            loss, inner_lr=0.3, inner_steps=2, inner_params=lambda name: name.startswith("head")
        ),
        plain,
    ),
}
EVERY = pytest.mark.parametrize("name", LEARNERS)


def made(name, loss_fn=classification_loss):
    make, draw = LEARNERS[name]
    return make(loss_fn), draw


def stacked(trees):
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def numbers(tree):
    """A tree with typed keys replaced by their data, which NumPy can compare."""

    def plain(x):
        typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if typed else x

    return jax.tree.map(plain, tree)


def test_every_method_is_in_the_table():
    public = {
        name
        for name in jaxsparse.__all__
        if inspect.isfunction(made := getattr(jaxsparse, name))
        and inspect.signature(made).return_annotation in ("Learner", jaxsparse.Learner)
    }
    assert public == {name.split(",")[0] for name in LEARNERS}


@pytest.mark.parametrize(
    ("learner", "functions"),
    [
        (jaxsparse.maml, [jaxsparse.sparse_maml_step]),
        (jaxsparse.lamaml, [jaxsparse.lamaml_step]),
        (jaxsparse.cmaml, [jaxsparse.cmaml_step, init_cmaml_state]),
    ],
)
def test_options_have_the_defaults_of_the_step(learner, functions):
    def defaults(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    of_steps = {name: x for function in functions for name, x in defaults(function).items()}
    ours = defaults(learner)
    assert ours == {name: of_steps[name] for name in ours}
    # All options but the arguments of a single step.
    assert of_steps.keys() - ours.keys() <= {"replay_weights", "key"}


@EVERY
def test_scan_of_vmapped_seeds_is_the_loop(name):
    learner, draw = made(name)
    batches = [draw(i) for i in range(3)]
    starts = [learner.init(Classifier.init(seed), jax.random.key(seed)) for seed in range(2)]
    keys = jax.random.split(jax.random.key(9), (2, 3))

    def run(state, keys):
        return jax.lax.scan(lambda s, xs: learner.step(s, *xs), state, (stacked(batches), keys))

    end, together = quick_jit(jax.vmap(run))(stacked(starts), keys)
    one_step = quick_jit(learner.step)
    for seed, state in enumerate(starts):
        losses = []
        for i, batch in enumerate(batches):
            state, metrics = one_step(state, batch, keys[seed, i])
            losses.append(metrics["loss"])
        own = jax.tree.map(lambda x, seed=seed: x[seed], numbers(end))
        assert_trees_close(own, numbers(state), 1e-3, 1e-4)
        np.testing.assert_allclose(together["loss"][seed], losses, rtol=1e-3, atol=1e-5)


@EVERY
def test_a_second_batch_compiles_nothing(name):
    """New batches and the returned state reuse the first call's program, also with weak types."""
    traced = []

    def loss_fn(params, batch):
        traced.append(1)
        return classification_loss(params, batch)

    learner, draw = made(name, loss_fn)
    params = Classifier.init(0)
    params["head"]["b"] = jnp.full(3, 0.5)
    assert params["head"]["b"].weak_type
    state = learner.init(params, jax.random.key(0))
    state, _ = learner.step(state, draw(0), jax.random.key(1))
    first = len(traced)
    for i in (1, 2):
        state, _ = learner.step(state, draw(i), jax.random.key(1 + i))
    assert len(traced) == first > 0


@EVERY
def test_states_may_be_donated(name):
    learner, draw = made(name)
    params = Classifier.init(0)
    state = learner.init(params, jax.random.key(0))
    step = quick_jit(learner.step, donate_argnums=0)
    for i in range(2):
        state, metrics = step(state, draw(i), jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, params, Classifier.init(0))


@EVERY
def test_half_precision_states_keep_their_dtype(name):
    """bfloat16 parameters: the state keeps its dtypes, and agrees with float32."""
    learner, draw = made(name)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), Classifier.init(0))
    single = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    losses = []
    for params in (half, single):
        state = learner.init(params, jax.random.key(0))
        new, metrics = quick_jit(learner.step)(state, draw(0), jax.random.key(1))
        kinds = [[x.dtype for x in jax.tree.leaves(s)] for s in (state, new)]
        assert kinds[0] == kinds[1]
        assert any(x.dtype == params["head"]["w"].dtype for x in jax.tree.leaves(new))
        losses.append(metrics["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


@EVERY
def test_integer_parameters_are_refused(name):
    learner, _ = made(name)
    params = {"head": {"w": jnp.ones(3, int)}}
    with pytest.raises(TypeError, match=r"^(params|distribution).* must be floating, got int32"):
        learner.init(params, jax.random.key(0))


def test_the_first_layer_outside_the_loop_under_transformations():
    """A glance gives the same with the first products outside and inside the loop."""
    ends = []
    for loss_fn in (classification_loss, split_loss()):
        learner = jaxsparse.lamaml(loss_fn, RECTIFIED, mask_optimizer=MASK_SGD)
        init = functools.partial(learner.init, Classifier.init(0))
        states = jax.vmap(init)(jax.random.split(jax.random.key(0), 2))
        keys = jax.random.split(jax.random.key(1), 2)
        ends.append(quick_jit(jax.vmap(learner.step, (0, None, 0)))(states, replayed(0), keys))
    assert_trees_close(*ends, 1e-4)


def test_a_stochastic_gate_draws_from_the_key_or_from_the_state():
    noisy = gates.Gate(
        lambda key, params: params,
        lambda m, key: jax.tree.map(lambda x: 0 * x + jax.random.uniform(key), m),
        stochastic=True,
    )
    learner = jaxsparse.maml(classification_loss, noisy, inner_steps=1, **BOTH)
    state = learner.init(Classifier.init(0), jax.random.key(0))
    losses = [
        float(learner.step(state, tasks(0), key)[1]["loss"])
        for key in (None, state.key, jax.random.key(5))
    ]
    assert losses[0] == losses[1] != losses[2]
