"""Wrong arguments: each error names the argument, what it got and what it wanted."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse import gates, metrics, nn
from jaxsparse._tree import cut_leaf, partition
from jaxsparse.checks import leaf_names
from jaxsparse.continual import er
from jaxsparse.training import ConfigError, FewShotConfig
from jaxsparse.training.continual import ContinualConfig
from jaxsparse.training.online import OnlineConfig

pytestmark = pytest.mark.usefixtures("quick_programs")
ADAM, GATE = optax.adam(1e-3), gates.binary(0.1)
ROWS = jnp.ones((2, 3))


def squares(w, x):
    return (x - jnp.broadcast_to(w, x.shape)) ** 2


def square(w, x):
    return jnp.mean(squares(w, x))


def maml(loss_fn=square, optimizer=ADAM, gate=GATE, tasks=(ROWS, ROWS), first=None):
    state = jaxsparse.init_state(jnp.zeros(3), first or gate, optimizer, ADAM, jax.random.key(0))
    return jaxsparse.sparse_maml_step(
        state,
        tasks,
        loss_fn=loss_fn,
        gate=gate,
        inner_steps=1,
        theta_optimizer=optimizer,
        mask_optimizer=ADAM,
    )


def evaluate(loss_fn):
    return jaxsparse.evaluate(
        jnp.zeros(3), jnp.ones(3), (ROWS, ROWS), loss_fn=loss_fn, inner_steps=0
    )


def lamaml(loss_fn):
    state = jaxsparse.init_lamaml_state(jnp.zeros(3), GATE, jax.random.key(0), mask_optimizer=ADAM)
    return jaxsparse.lamaml_step(
        state, ROWS, None, None, loss_fn=loss_fn, gate=GATE, mask_optimizer=ADAM
    )


def cmaml(loss_fn):
    optimizers = {"theta_optimizer": ADAM, "mask_optimizer": ADAM}
    state = jaxsparse.init_cmaml_state(
        jnp.zeros(3), GATE, jax.random.key(0), batch=ROWS, **optimizers
    )
    return jaxsparse.cmaml_step(
        state,
        ROWS,
        loss_fn=loss_fn,
        gate=GATE,
        inner_steps=1,
        detection_threshold=None,
        **optimizers,
    )


def replay(loss_fn=square, optimizer=ADAM, first=None):
    state = er.init_online_state(jnp.zeros(3), first or optimizer)
    return er.er_step(state, ROWS, None, loss_fn=loss_fn, optimizer=optimizer)


LOSSES = {
    "(loss, logits)": (lambda w, x: (square(w, x), w), TypeError, r"got \(float32\[\], float32\[3"),
    "(loss, None)": (lambda w, x: (square(w, x), None), TypeError, r"got \(float32\[\], None\)"),
    "a list": (lambda w, x: [square(w, x), {}], TypeError, r"got \[float32\[\], {}\]"),
    "three": (lambda w, x: (square(w, x), {}, {}), TypeError, r"got \(float32\[\], {}, {}\)"),
    "one": (lambda w, x: (square(w, x),), TypeError, r"got \(float32\[\]\)"),
    "a string": (lambda w, x: "0.5", TypeError, "got '0.5'"),
    "nothing": (lambda w, x: None, TypeError, "got None"),
    "a dict": (lambda w, x: {"loss": square(w, x)}, TypeError, "got {'loss'"),
    "a function": (lambda w, x: square, TypeError, "got square"),
    "rows": (squares, ValueError, "a scalar loss, got shape"),
    "an integer": (lambda w, x: jnp.int32(3), TypeError, "a floating loss, got int32"),
    "named by a number": (lambda w, x: (square(w, x), {1: square(w, x)}), TypeError, "metric 1"),
    "a text": (lambda w, x: (square(w, x), {"a": "b"}), TypeError, "metric 'a': 'b'"),
    "a row": (lambda w, x: (square(w, x), {"a": w}), ValueError, r"metric 'a' has shape \(3,\)"),
}


@pytest.mark.parametrize("loss_fn, error, message", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("step", [maml, evaluate, lamaml, cmaml, replay])
def test_losses(step, loss_fn, error, message):
    with pytest.raises(error, match=f"loss_fn.*{message}"):
        step(loss_fn)


def test_a_loss_that_is_no_function():
    with pytest.raises(TypeError, match=r"loss_fn must be a function"):
        evaluate(None)


def test_optimizers():
    needs_value = optax.chain(ADAM, optax.contrib.reduce_on_plateau())
    with pytest.raises(TypeError, match=r"theta_optimizer: update\(gradient, .*argument: 'value'"):
        maml(optimizer=needs_value)
    with pytest.raises(TypeError, match=r"^optimizer: update\(gradient, .*argument: 'value'"):
        replay(optimizer=needs_value)
    with pytest.raises(TypeError, match=r"optimizer: update.* with a state of this optimiser"):
        replay(first=optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"theta_optimizer must be an optax.*got 0.1"):
        maml(optimizer=0.1)
    with pytest.raises(TypeError, match=r"^optimizer must be an optax.*got <function adam"):
        er.init_online_state(jnp.zeros(3), optax.adam)


def test_gates_that_are_none():
    with pytest.raises(TypeError, match=r"gate must be a Gate.*got <function binary"):
        maml(gate=gates.binary)
    with pytest.raises(TypeError, match=r"gate must be a Gate.*got 0.1"):
        maml(gate=0.1, first=GATE)


@pytest.mark.parametrize(
    "params, error, message",
    [
        ({"w": ROWS, "act": jax.nn.relu}, TypeError, r"params\[act\] must be a floating array"),
        ({"w": ROWS, "name": "mlp"}, TypeError, r"params\[name\] must be .* got 'mlp'"),
        ({"w": ROWS, "n": jnp.ones((3, 0))}, ValueError, r"params\[n\] has shape \(3, 0\)"),
        ({}, ValueError, "params has no leaves"),
    ],
)
def test_params(params, error, message):
    adam = {"theta_optimizer": ADAM, "mask_optimizer": ADAM}
    key = jax.random.key(0)
    for init in (
        lambda: jaxsparse.init_state(params, GATE, ADAM, ADAM, key),
        lambda: jaxsparse.init_lamaml_state(params, GATE, key, **adam),
        lambda: jaxsparse.init_cmaml_state(params, GATE, key, batch=ROWS, **adam),
        lambda: er.init_online_state(params, ADAM),
        lambda: jaxsparse.adapt(square, params, params, ROWS, 1),
    ):
        with pytest.raises(error, match=message):
            init()


def test_tasks():
    for tasks in (ROWS, (ROWS,), (ROWS, ROWS, ROWS), {"support": ROWS, "query": ROWS}):
        with pytest.raises(TypeError, match=r"tasks must be a pair"):
            maml(tasks=tasks)
    with pytest.raises(ValueError, match=r"tasks must have the same leading task axis"):
        maml(tasks=(ROWS, ROWS[:1]))


def test_metrics_of_lists():
    R = [[0.9, 0.1], [0.5, 0.7]]
    assert float(metrics.retained_accuracy(R)) == pytest.approx(0.6)
    assert float(metrics.learning_accuracy(R)) == pytest.approx(0.8)
    assert float(metrics.backward_transfer_interference(R)) == pytest.approx(-0.2)
    assert float(metrics.forward_transfer(R, [0.3, 0.05])) == pytest.approx(0.025)
    assert float(metrics.retained_accuracy([[90, 10], [50, 70]])) == 60
    for bad in ([[0.9, 0.1], [0.5]], "R", None, [["a", "b"], ["c", "d"]], {"R": 1}):
        with pytest.raises(TypeError, match=r"R must be"):
            metrics.retained_accuracy(bad)
    for bad in ([0.9, 0.1], 0.9, jnp.ones((0, 0)), [[0.9, 0.1]]):
        with pytest.raises(ValueError, match=r"R has shape .*want \[\.\.\., T, T\]"):
            metrics.learning_accuracy(bad)
    with pytest.raises(TypeError, match=r"initial must be an array of accuracies"):
        metrics.forward_transfer(R, None)


# labels

MODEL = nn.mlp(ways=3, hidden=(4,), image_shape=(2, 2, 1))
LOSS, PARAMS = jaxsparse.cross_entropy(MODEL), MODEL.init(jax.random.key(0))
IMAGES = jnp.ones((2, 2, 2, 1))


@pytest.mark.parametrize("label", [3, -1, 255])
def test_labels_outside_the_classes(label):
    for labels in (jnp.array([0, label]), np.array([0, label]), [0, label]):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 3\), got {label}"):
            LOSS(PARAMS, (IMAGES, labels))
    assert np.isnan(jax.jit(LOSS)(PARAMS, (IMAGES, jnp.array([0, label])))[0])
    loss, _ = jax.jit(LOSS.weighted)(PARAMS, (IMAGES, jnp.array([0, label])), jnp.ones(2) / 2)
    assert np.isnan(loss)
    slope = jax.jit(jax.grad(lambda p, labels: LOSS(p, (IMAGES, labels))[0]))
    assert np.isnan(slope(PARAMS, jnp.array([0, label]))["head"]["bias"]).all()


@pytest.mark.parametrize("labels", [None, "ab", [[0], [1, 2]]])
def test_labels_that_are_no_array(labels):
    with pytest.raises(TypeError, match=r"labels must be integers \[n\], got"):
        LOSS(PARAMS, (IMAGES, labels))


def of_logits(logits):
    return jaxsparse.cross_entropy(types.SimpleNamespace(apply=lambda params, images: logits))


@pytest.mark.parametrize("logits", [[[0.0, 1.0]], jnp.ones((2, 3), jnp.int32), None])
def test_models_that_give_no_logits(logits):
    with pytest.raises(TypeError, match=r"model\.apply must return floating logits, got"):
        of_logits(logits)(PARAMS, (IMAGES, jnp.zeros(2, jnp.int32)))


@pytest.mark.parametrize("model", [None, lambda params, images: images, nn.Model])
def test_models_without_apply(model):
    with pytest.raises(TypeError, match=r"model must have apply\(params, images\), got"):
        jaxsparse.cross_entropy(model)


def test_small_labels_mean_no_other_class():
    """In int8, class 200 is -56."""
    model = nn.mlp(ways=201, hidden=(), image_shape=(2, 2, 1))
    params, images = model.init(jax.random.key(0)), IMAGES[:1]
    loss = jax.jit(jaxsparse.cross_entropy(model))
    assert np.isnan(loss(params, (images, jnp.array([-56], jnp.int8)))[0])
    whole = loss(params, (images, jnp.array([200], jnp.int32)))[0]
    assert loss(params, (images, jnp.array([200], jnp.uint8)))[0] == whole


@pytest.mark.parametrize("batch", [IMAGES, (IMAGES,), {"x": IMAGES}, (IMAGES, IMAGES, IMAGES)])
def test_a_batch_that_is_no_pair(batch):
    with pytest.raises(TypeError, match=r"batch must be a pair \(images, labels\), got"):
        LOSS(PARAMS, batch)


# names


def test_names_are_distinct():
    tree = {"a": {"b": 1, "c": 2}, "a/b": 3}
    assert leaf_names(tree) == ["['a']['b']", "a/c", "['a/b']"]
    tree = {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(2)}
    part, _ = partition(tree, lambda n: n == "['a/b']")
    assert part["a"]["b"] is None and part["a/b"].shape == (2,)
    with pytest.raises(ValueError, match=r"there is no 'a/b' in params, only"):
        cut_leaf(tree, "a/b")


# masks that are never trained

DECAY = optax.chain(
    optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.adamw(0.1, weight_decay=0.5)
)
FIXED = {
    "constant": gates.constant(0.1),
    "head only": gates.head_only(0.1),
    "body only": gates.all_but_head(0.1),
}


@pytest.mark.parametrize("gate", FIXED.values(), ids=FIXED)
def test_no_optimizer_moves_a_mask_that_is_not_trained(gate):
    params = {"body": jnp.zeros(3), "head": jnp.zeros(3)}

    def loss(p, x):
        return square(p["body"] + p["head"], x)

    optimizers = {"theta_optimizer": ADAM, "mask_optimizer": DECAY}
    key = jax.random.key(0)
    state = jaxsparse.init_state(params, gate, ADAM, DECAY, key)
    after = [
        jaxsparse.sparse_maml_step(
            state, (ROWS, ROWS), loss_fn=loss, gate=gate, inner_steps=1, **optimizers
        )[0]
    ]
    lamaml_state = jaxsparse.init_lamaml_state(params, gate, key, **optimizers)
    after.append(
        jaxsparse.lamaml_step(
            lamaml_state, ROWS, None, None, loss_fn=loss, gate=gate, **optimizers
        )[0]
    )
    online = jaxsparse.init_cmaml_state(params, gate, key, batch=ROWS, capacity=1, **optimizers)
    for _ in range(2):
        online, info = jaxsparse.cmaml_step(
            online,
            ROWS,
            loss_fn=loss,
            gate=gate,
            inner_steps=1,
            detection_threshold=None,
            **optimizers,
        )
    assert info["updated"]
    for end in (*after, online):
        jax.tree.map(np.testing.assert_array_equal, end.mask, state.mask)
        assert np.any(np.asarray(end.params["body"]) != 0)


# mask initialisations as text


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "1e999", "0.1:nan", "nan:nan", "0:inf", "0.2:0.1", "0.1:0.1", ""]
)
def test_mask_inits_that_are_no_numbers(text):
    for config in (FewShotConfig, ContinualConfig, OnlineConfig):
        with pytest.raises(ConfigError, match=r"mask_init must be .*a number or low:high, got"):
            config(mask_init=text)


@pytest.mark.parametrize(
    "config, method",
    [
        (FewShotConfig, "sparse-relu-maml"),
        (FewShotConfig, "meta-sgd"),
        (ContinualConfig, "lamaml"),
        (ContinualConfig, "sync-lamaml"),
        (OnlineConfig, "sparse-relu-cmaml"),
    ],
)
def test_rates_have_no_kaiming_start(config, method):
    with pytest.raises(ConfigError, match=r"mask_init must be .*got 'kaiming'"):
        config(method=method, mask_init="kaiming")
