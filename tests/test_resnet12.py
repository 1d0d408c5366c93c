"""ResNet-12: the form of its layers, and given statistics of its norms, against a transcription."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from problems import quick_jit
from test_native import compiled

from jaxsparse import nn
from jaxsparse.nn import blocks, native

SHAPE = (12, 10, 3)
MODEL = nn.resnet12(3, (2, 4, 4, 6), SHAPE)


class Norm:
    """Batch norm with given statistics, or with those of x, which it appends to `seen`."""

    def __init__(self, given=None):
        self.given, self.seen = given and iter(given), []

    def __call__(self, x, params):
        if self.given:
            mean, variance, _ = next(self.given)
        else:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.seen.append((mean, variance, x.size / x.shape[3]))
        scale, bias = row(params["scale"]), row(params["bias"])
        return (x - row(mean)) / jnp.sqrt(row(variance) + 1e-5) * scale + bias


def row(x):
    return x.reshape(1, 1, 1, -1)


def unit(x, params, norm):
    dims = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=dims)
    return norm(y, params["norm"])


def leaky(x):
    return jnp.where(x > 0, x, 0.01 * x)


def reference(params, x, norm):
    for i in range(1, 5):
        block = params[f"block{i}"]
        y = leaky(unit(x, block["conv1"], norm))
        y = unit(leaky(unit(y, block["conv2"], norm)), block["conv3"], norm)
        x = leaky(y + unit(x, block["skip"], norm))
        if i < 4:
            pad = ((0, 0), *[(int(i == 3),) * 2] * 2, (0, 0))
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), pad)
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"].reshape(1, -1)


def draw(seed):
    """Params with norms that differ from one another, and two batches of images."""
    rng = np.random.default_rng(seed)
    params = MODEL.init(jax.random.key(seed))
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), params)
    return params, *(rng.normal(size=(n, *SHAPE)).astype(np.float32) for n in (5, 4))


@pytest.mark.slow
def test_statistics_of_the_batch():
    params, images, _ = draw(0)
    logits, moments = quick_jit(MODEL.with_moments)(params, images, None)
    norm = Norm()
    np.testing.assert_allclose(logits, reference(params, images, norm), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits, MODEL.apply(params, images), rtol=1e-3, atol=1e-4)
    assert len(moments) == len(norm.seen) == 16
    for ours, theirs in zip(moments, norm.seen, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_given_statistics():
    params, images, others = draw(1)
    _, given = quick_jit(MODEL.with_moments)(params, others, None)
    logits, seen = quick_jit(MODEL.with_moments)(params, images, given)
    want = reference(params, images, Norm(given))
    np.testing.assert_allclose(logits, want, rtol=1e-3, atol=1e-4)
    assert not seen
    # The other images of a batch have no influence.
    alone, _ = quick_jit(MODEL.with_moments)(params, images[:1], given)
    np.testing.assert_allclose(alone, logits[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_gradient_through_given_statistics():
    params, images, others = draw(2)

    def loss(logits):
        return jnp.sum(jnp.sin(logits))

    def ours(params):
        _, given = MODEL.with_moments(params, others, None)
        return loss(MODEL.with_moments(params, images, given)[0])

    def theirs(params):
        norm = Norm()
        reference(params, others, norm)
        return loss(reference(params, images, Norm(norm.seen)))

    got, want = (jax.tree.leaves(quick_jit(jax.grad(f))(params)) for f in (ours, theirs))
    for a, b in zip(got, want, strict=True):
        assert np.linalg.norm(a - b) < 1e-3 * max(1, np.linalg.norm(b))


# ---- the form of the layers


@compiled
@pytest.mark.parametrize("form", ["native", "xla"])
def test_resnet12_uses_the_requested_form(form):
    shape = (9, 8, 2)
    model = nn.resnet12(3, (2, 4, 4, 8), shape, blocks=form)
    params, images = model.init(jax.random.key(0)), jnp.ones((2, *shape))
    calls = str(jax.make_jaxpr(model.apply)(params, images)).count("ffi_call[")
    assert calls == (16 + 3 if form == "native" else 0)


@compiled
@pytest.mark.slow
def test_both_forms_agree():
    shape = (20, 18, 3)
    images = np.random.default_rng(1).normal(size=(5, *shape)).astype(np.float32)

    def found(form):
        model = nn.resnet12(3, (4, 6, 8, 20), shape, blocks=form)
        params = model.init(jax.random.key(0))
        loss = lambda p: jnp.sum(jnp.sin(model.apply(p, images)))  # noqa: E731
        return quick_jit(jax.value_and_grad(loss))(params)

    for ours, other in zip(*map(jax.tree.leaves, map(found, ("native", "xla"))), strict=True):
        np.testing.assert_allclose(ours, other, rtol=0, atol=1e-4 * np.abs(other).max())


def test_resnet12_without_a_compiler(monkeypatch):
    reason = "there is no C++ compiler"
    monkeypatch.setattr(native, "why_not", lambda: reason)
    monkeypatch.setattr(blocks, "default_platform", lambda: "cpu")
    with pytest.raises(ValueError, match="'native' is not available because there is no C"):
        nn.resnet12(blocks="native")
    model = nn.resnet12(3, (2, 2, 2, 4), (8, 8, 1))
    params, images = model.init(jax.random.key(0)), jnp.ones((2, 8, 8, 1))
    assert "ffi_call" not in str(jax.make_jaxpr(model.apply)(params, images))


def test_head_without_bias():
    params = nn.resnet12(3, (2, 2, 2, 2), (8, 8, 1), use_bias=False).init(jax.random.key(0))
    assert list(params["head"]) == ["kernel"]
