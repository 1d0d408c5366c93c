"""Weighted losses against NumPy's weighted mean of the rows."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import cross_entropy
from jaxsparse.continual.online import self_masked_loss
from jaxsparse.losses import weighted_loss
from jaxsparse.nn import conv4, mlp, normalised, resnet12, strided_cnn

MODEL = mlp(ways=3, hidden=(4,), image_shape=(2, 2, 1))
LOSS = cross_entropy(MODEL)
WEIGHTS = jnp.array([0.0, 2.0, 1.0, 1.0])


def rows(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(4, 2, 2, 1)).astype(np.float32)
    return jnp.asarray(images), jnp.array([0, 2, 1, 1])


def without_own(params, batch):
    """The same loss as a plain function without weights."""
    return LOSS(params, batch)


@pytest.mark.parametrize("loss_fn", [LOSS, without_own])
def test_a_weighted_loss_is_the_weighted_mean_of_the_rows(loss_fn):
    params, (images, labels) = MODEL.init(jax.random.key(0)), rows()
    loss, metrics = weighted_loss(loss_fn, (images, labels), WEIGHTS)(params)
    logits = np.asarray(MODEL.apply(params, images), np.float64)
    log_odds = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses, hits = -log_odds[np.arange(4), labels], logits.argmax(1) == np.asarray(labels)
    assert loss == pytest.approx((2 * losses[1] + losses[2] + losses[3]) / 4, abs=1e-6)
    want = (2.0 * hits[1] + hits[2] + hits[3]) / 4
    assert metrics["accuracy"] == pytest.approx(want, abs=1e-6)


def test_both_ways_have_the_same_gradient():
    params = MODEL.init(jax.random.key(1))
    together, one_by_one = (
        jax.grad(lambda p, f=f: weighted_loss(f, rows(), WEIGHTS)(p)[0])(params)
        for f in (LOSS, without_own)
    )
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_rows_of_weight_zero_do_not_count_if_rowwise_is_unknown():
    """Each row is evaluated alone then, because the network may have batch norm."""

    def apply(params, images):
        x = images.reshape(len(images), -1) @ params
        return (x - x.mean()) / (x.std() + 0.1)

    loss_fn, (images, labels) = cross_entropy(types.SimpleNamespace(apply=apply)), rows()
    params = jax.random.normal(jax.random.key(0), (4, 3))
    got = weighted_loss(loss_fn, (images, labels), WEIGHTS)(params)
    other = weighted_loss(loss_fn, (images.at[0].add(100.0), labels), WEIGHTS)(params)
    alone = [loss_fn(params, (images[i : i + 1], labels[i : i + 1])) for i in range(4)]
    np.testing.assert_array_equal(got[0], other[0])
    _, *losses = (float(loss) for loss, _ in alone)
    _, *hits = (float(metrics["accuracy"]) for _, metrics in alone)
    for mine, values in ((got[0], losses), (got[1]["accuracy"], hits)):
        assert float(mine) == pytest.approx(np.dot([0.5, 0.25, 0.25], values), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "rowwise"),
    [
        (MODEL, True),
        (strided_cnn(3, 2, 1, (4,), (4, 4, 1)), True),
        (conv4(3, 2, (16, 16, 1), blocks="xla"), False),
        (resnet12(3, (2, 2, 2, 2), (16, 16, 1)), False),
    ],
)
def test_networks_say_whether_they_are_rowwise(model, rowwise):
    for network in (model, normalised(model, (0.1,), (0.5,))):
        loss_fn = cross_entropy(network)
        assert loss_fn.rowwise is rowwise
        assert self_masked_loss(loss_fn, lambda name: True).rowwise is rowwise
        if loss_fn.split is not None:
            assert loss_fn.split.loss_fn.rowwise is rowwise
        if not rowwise:
            with pytest.raises(ValueError, match=r"^weights: got weights, want None"):
                weighted_loss(loss_fn, rows(), WEIGHTS)


def test_without_weights_all_rows_count_equally():
    params = MODEL.init(jax.random.key(2))
    loss, _ = weighted_loss(LOSS, rows(), None)(params)
    equal, _ = weighted_loss(LOSS, rows(), jnp.full(4, 3.0))(params)
    assert float(loss) == pytest.approx(float(equal), abs=1e-6)
