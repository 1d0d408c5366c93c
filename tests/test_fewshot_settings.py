"""Settings of few-shot runs: clipped meta-gradients, biases, channels."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import quick_jit
from small_runs import small_model

import jaxsparse
from jaxsparse import nn, training
from jaxsparse.checks import leaves_by_name
from jaxsparse.training import ConfigError, FewShotConfig
from jaxsparse.training.fewshot import config as fewshot_config
from jaxsparse.training.fewshot import evaluation
from jaxsparse.training.fewshot.config import make_network

pytestmark = pytest.mark.usefixtures("quick_programs")
CONFIG = FewShotConfig(ways=2, width=2, inner_steps=1, blocks="xla", theta_lr=0.5, mask_lr=0.5)
SHAPE, CLIP = (16, 16, 1), 1e-3


def moments(state):
    """Adam's first moments, or SGD's trace, of the optimisers of theta and m."""
    found = []
    for opt_state in (state.theta_opt, state.mask_opt):
        (own,) = (
            getattr(part, name)
            for part in jax.tree.leaves(opt_state, is_leaf=is_moments)
            for name in ("mu", "trace")
            if hasattr(part, name)
        )
        found.append(own)
    return found


def is_moments(part):
    return hasattr(part, "mu") or hasattr(part, "trace")


@pytest.mark.parametrize("mask_optimizer", ["adam", "nesterov"])
def test_both_meta_gradients_are_clipped(mask_optimizer, monkeypatch):
    monkeypatch.setattr(nn, "conv4", small_model)
    config = dataclasses.replace(CONFIG, clip=CLIP, mask_optimizer=mask_optimizer)
    model, loss_fn, gate, learner = training.make_learner(config, SHAPE)
    key = jax.random.key(0)
    params = model.init(key)
    images = jax.random.normal(key, (2, 2, 4, *SHAPE))
    labels = jnp.tile(jnp.arange(2), (2, 2))
    tasks = (images[0], labels), (images[1], labels)
    state = learner.init(params, key)
    after, _ = learner.step(state, tasks, None)
    # By SGD of rate 1 the changes are the gradients.
    sgd = optax.sgd(1.0)
    plain = jaxsparse.maml(loss_fn, gate, inner_steps=1, theta_optimizer=sgd, mask_optimizer=sgd)
    start = plain.init(params, key)
    end, _ = plain.step(start, tasks, None)
    want = [
        jax.tree.map(lambda x, y: np.clip(x - y, -CLIP, CLIP), *pair)
        for pair in ((start.params, end.params), (state.mask, end.mask))
    ]
    got = moments(after)
    shares = 0.1, 0.1 if mask_optimizer == "adam" else 1.0
    for tree, wanted, share in zip(got, want, shares, strict=True):
        for name, leaf in leaves_by_name(tree).items():
            gradient = leaves_by_name(wanted)[name]
            np.testing.assert_allclose(leaf / share, gradient, atol=1e-6, err_msg=name)
        clipped = np.concatenate([np.ravel(np.abs(x)) for x in jax.tree.leaves(wanted)])
        assert (clipped == np.float32(CLIP)).any() and (clipped < CLIP / 2).any()


@pytest.mark.parametrize(
    ("method", "flag", "second_order"),
    [
        pytest.param("maml", False, True, marks=pytest.mark.slow),
        ("fomaml", False, False), ("sparse-maml", False, False),
        ("sparse-maml", True, True), ("anil", True, True),
    ],
)  # fmt: skip
def test_the_order_of_a_method(method, flag, second_order, monkeypatch):
    monkeypatch.setattr(nn, "conv4", small_model)
    config = dataclasses.replace(CONFIG, method=method, second_order=flag, inner_lr=0.1)
    model, loss_fn, gate, learner = training.make_learner(config, SHAPE)
    key = jax.random.key(0)
    state = learner.init(model.init(key), key)
    images = jax.random.normal(key, (2, 1, 4, *SHAPE))
    labels = jnp.tile(jnp.arange(2), (1, 2))
    after, _ = learner.step(state, ((images[0], labels), (images[1], labels)), None)

    def meta_loss(theta):
        gradient = jax.grad(lambda p: loss_fn(p, (images[0, 0], labels[0]))[0])(theta)
        if not second_order:
            gradient = jax.lax.stop_gradient(gradient)
        sizes = gate.apply(state.mask, None)
        phi = jax.tree.map(
            lambda p, a, g: p if a is None else p - a * g,
            *(theta, sizes, gradient),
            is_leaf=lambda x: x is None,
        )
        return loss_fn(phi, (images[1, 0], labels[0]))[0]

    first_moment = moments(after)[0]
    for name, leaf in leaves_by_name(quick_jit(jax.grad(meta_loss))(state.params)).items():
        got = leaves_by_name(first_moment)[name] / 0.1
        np.testing.assert_allclose(got, leaf, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("mask_optimizer", ["adam", "nesterov"])
def test_the_state_of_the_optimisers_does_not_depend_on_the_clipping(clip, mask_optimizer):
    config = dataclasses.replace(CONFIG, clip=clip, mask_optimizer=mask_optimizer)
    model, _, _, learner = training.make_learner(config, SHAPE)
    key = jax.random.key(0)
    state = jax.eval_shape(learner.init, jax.eval_shape(model.init, key), key)
    adam, sgd = optax.adam(0.5), optax.sgd(0.5, momentum=0.9, nesterov=True)
    mask = adam if mask_optimizer == "adam" else sgd
    theta = optax.chain(optax.identity(), adam)
    for got, optimizer, tree in (
        (state.theta_opt, theta, state.params),
        (state.mask_opt, mask, state.mask),
    ):
        assert jax.tree.structure(got) == jax.tree.structure(jax.eval_shape(optimizer.init, tree))


def names_of(config):
    init = make_network(config, SHAPE).init
    return set(leaves_by_name(jax.eval_shape(init, jax.random.key(0))))


def test_no_bias_removes_the_biases_of_convolutions_and_of_the_output_layer():
    layers = [f"conv{i}" for i in range(1, 5)]
    norms = {f"norm{i}/{name}" for i in range(1, 5) for name in ("scale", "bias")}
    kernels = {f"{layer}/kernel" for layer in (*layers, "head")}
    biases = {f"{layer}/bias" for layer in (*layers, "head")}
    assert names_of(dataclasses.replace(CONFIG, bias=False)) == norms | kernels
    assert names_of(CONFIG) == norms | kernels | biases


def test_channels_are_the_same_after_json():
    config = FewShotConfig(network="resnet12", channels=(4, 5, 6, 7))
    assert FewShotConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": (4, 4, 4)}, "channels must be four numbers of 1 or more, got 4 4 4"),
        ({"channels": ()}, "channels must be four numbers of 1 or more, got none"),
        ({"channels": [4, 4, 4, 0]}, "channels must be four numbers of 1 or more, got 4 4 4 0"),
        ({"channels": (4, 4, 4, 0.5)}, "channels must be whole numbers or none, got"),
        ({"network": "resnet50"}, "network must be one of"),
        ({"batch_norm": "none"}, "batch_norm must be one of"),
        ({"ensemble": 0}, "ensemble must be 1 or more, got 0"),
        ({"ensemble": 3, "epochs": 2}, "ensemble must be at most epochs, 2, got 3"),
    ],
)
def test_settings_that_cannot_be(given, message):
    with pytest.raises(ConfigError, match=message):
        FewShotConfig(**given)


@pytest.mark.parametrize("task_loop", [0, "map", True])
def test_a_task_loop_that_cannot_be(task_loop):
    with pytest.raises(ConfigError, match="task_loop must be a"):
        FewShotConfig(task_loop=task_loop)


@pytest.mark.parametrize("task_loop", ["vmap", 2])
def test_the_task_loop_is_that_of_training_and_of_evaluation(task_loop, monkeypatch):
    taken = []

    def noted(function):
        def call(*args, **options):
            taken.append(options["task_loop"])
            return function(*args, **options)

        return call

    monkeypatch.setattr(fewshot_config, "maml", noted(jaxsparse.maml))
    for name in ("evaluate", "predict"):
        monkeypatch.setattr(evaluation, name, noted(getattr(evaluation, name)))
    monkeypatch.setattr(nn, "conv4", small_model)
    config = dataclasses.replace(CONFIG, task_loop=task_loop)
    assert FewShotConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    program = training.make_program(config, SHAPE)
    images = jnp.ones((evaluation.EVALUATION_BATCH, 2, *SHAPE))
    tasks = jaxsparse.data.Task(*((images, jnp.zeros(images.shape[:2], jnp.int32)),) * 2)
    key = jax.random.key(0)
    meta = jax.eval_shape(program.init, key).meta
    jax.eval_shape(program.evaluate, meta.params, meta.mask, key, tasks)
    jax.eval_shape(program.vote, [(meta.params, meta.mask)], key, tasks)
    assert taken == [task_loop] * 3
