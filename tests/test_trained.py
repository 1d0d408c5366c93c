"""A trained learner in use: adapted and predicting as plain gradient descent does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_runs import flags, images, quick, small_model  # noqa: F401

from experiments import fewshot
from jaxsparse.training import RunError
from jaxsparse.training.fewshot.trained import load_learner

SHAPE = (16, 16, 1)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("trained") / "run"
    fewshot.main([*flags(images, out), "--seeds=2"])
    return out


def draw(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def by_hand(learner, images, labels, others, steps):  # noqa: F811
    """The probabilities after `steps` steps of gradient descent on the parameters with m >= 0."""
    model = small_model(2, 2, SHAPE, True, None)
    scaled, query = ((x / 255 - learner.mean[0]) / learner.std[0] for x in (images, others))

    def loss(params):
        logits = jax.nn.log_softmax(model.apply(params, jnp.float32(scaled)))
        return -jnp.mean(logits[np.arange(len(labels)), labels])

    phi = learner.params
    for _ in range(steps):
        phi = jax.tree.map(
            lambda p, m, g: p - learner.config.inner_lr * (m >= 0) * g,
            phi, learner.mask, jax.grad(loss)(phi),
        )  # fmt: skip
    return np.asarray(jax.nn.softmax(model.apply(phi, jnp.float32(query))))


def test_probabilities_are_those_of_gradient_descent(run):
    learner = load_learner(run)
    support, labels, query = draw(6), [1, 0, 1, 0, 0, 1], draw(5, seed=1)
    got = learner.adapt(support, labels, steps=3).predict(query)
    np.testing.assert_allclose(
        got, by_hand(learner, support, labels, query, 3), rtol=1e-4, atol=1e-5
    )
    default = learner.adapt(support, labels).predict(query)
    want = by_hand(learner, support, labels, query, learner.config.test_inner_steps)
    np.testing.assert_allclose(default, want, rtol=1e-4, atol=1e-5)
    assert default.shape == (5, 2) and np.abs(default.sum(1) - 1).max() < 1e-6


def test_names_are_sorted_and_fewer_classes_than_outputs_share_the_probability(run):
    learner, support = load_learner(run), draw(4)
    named = learner.adapt(support, ["b", "a", "b", "a"])
    numbered = learner.adapt(support, [1, 0, 1, 0])
    assert named.classes == ("a", "b")
    np.testing.assert_array_equal(named.predict(draw(3, 1)), numbered.predict(draw(3, 1)))
    assert learner.adapt(support, ["x"] * 4).predict(draw(3, 1)).tolist() == [[1.0]] * 3


def test_images_in_other_forms_are_the_same(run):
    adapted, own = load_learner(run).adapt(draw(4), [0, 1, 0, 1]), draw(3, 1)
    want = adapted.predict(own)
    for other in (
        own[..., 0],
        jnp.asarray(own),
        own / 255,
        np.float32(own / 255),
        [Image.fromarray(x[..., 0]) for x in own],
        np.repeat(own, 3, -1),
    ):
        np.testing.assert_array_equal(adapted.predict(other), want)
    assert adapted.predict(np.zeros((2, 40, 30, 3), np.uint8)).shape == (2, 2)


def test_each_seed_has_its_own(run):
    first, second = load_learner(run), load_learner(run, seed=1)
    leaves = (jax.tree.leaves(one.params)[0] for one in (first, second))
    assert not np.array_equal(*leaves)
    with pytest.raises(RunError, match="has the seeds 0 to 1, not 2"):
        load_learner(run, seed=2)


@pytest.mark.parametrize(
    ("support", "labels", "words"),
    [
        (draw(3), [0, 1], "labels: got 2, want 3"),
        (draw(3), [0, 1, 2], "got 3 classes, want at most 2"),
        (draw(2).astype(np.int64) + 200, [0, 1], "got int64 from 2"),
        (draw(2) / 100, [0, 1], "0 to 255 or floats in"),
        (np.zeros((2, 16, 16, 2), np.uint8), [0, 1], "got one of shape"),
        (np.zeros((16, 16, 3), np.uint8), [0] * 16, r"for one image, use images\[None\]"),
    ],
)
def test_wrong_images_and_labels(run, support, labels, words):
    with pytest.raises(ValueError, match=words):
        load_learner(run).adapt(support, labels)


def test_a_folder_that_is_no_finished_run(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        load_learner(tmp_path)


def test_what_adapt_and_load_learner_take(run):
    learner, support = load_learner(run), draw(4)
    want = learner.adapt(support, [0, 0, 1, 1]).predict(draw(3, 1))
    for labels in (jnp.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), ("0", "0", "1", "1")):
        np.testing.assert_array_equal(learner.adapt(support, labels).predict(draw(3, 1)), want)
    for labels in (["a", 1, "a", 1], [[0], [1], [0], [1]], None, 3, [0.5, np.nan, 1, 1]):
        with pytest.raises(TypeError, match="labels: got"):
            learner.adapt(support, labels)
    for few in (support[:0], [], None, support[0, ..., 0], Image.new("L", (4, 4))):
        with pytest.raises(ValueError, match="images: got"):
            learner.adapt(few, [0, 1, 0, 1])
    with pytest.raises(TypeError, match="images: got a traced array"):
        jax.jit(lambda x: learner.adapt(x, [0, 1, 0, 1]).params)(support)
    with pytest.raises(TypeError, match="steps must be a Python int"):
        learner.adapt(support, [0, 1, 0, 1], steps=jnp.array(1))
    for seed in ("0", 0.5, 9):
        with pytest.raises(RunError, match=f"has the seeds 0 to 1, not {seed!r}"):
            load_learner(run, seed)
    with pytest.raises(TypeError, match="run must be a path or a name, got 3"):
        load_learner(3)
    assert learner == learner and learner != load_learner(run) and hash(learner)
