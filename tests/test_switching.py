"""The switching stream: when it switches, what it draws, and from which datasets."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import quick_jit

from jaxsparse.data.images import ImageSet
from jaxsparse.data.labelled import LabelledSet
from jaxsparse.data.switching import (
    by_class,
    first_task,
    load_switching,
    next_batch,
    side_by_side,
)
from jaxsparse.errors import DataError

STEPS = 4000


def numbered(classes, counts, first, mean=0.0, std=1.0):
    """Images of two pixels: the class, numbered from `first`, and the image; padding is 99."""
    images = np.full((classes, max(counts), 1, 2, 1), 99, np.uint8)
    for i, count in enumerate(counts):
        images[i, :count, 0, 0, 0] = first + i
        images[i, :count, 0, 1, 0] = np.arange(count)
    names = tuple(str(first + i) for i in range(classes))
    return ImageSet(images, np.array(counts, np.int32), names, (mean,), (std,))


# A set of 7 classes and two of 3, that are seen as x / 255, as x, and as 1 - x / 255.
DATA = side_by_side(
    {
        "large": numbered(7, [4, 5, 6, 4, 4, 9, 4], 0),
        "second": numbered(3, [6, 6, 6], 7, std=1 / 255),
        "third": numbered(3, [20, 20, 20], 10, mean=1.0, std=-1.0),
    }
)
PLAIN = (lambda x: x * 255, lambda x: x, lambda x: 255 - x * 255)  # back to what the pixels were


@functools.partial(jax.jit, static_argnames=("steps", "weights"))
def run(key, data, stay_probability, steps=STEPS, weights=(0.5, 0.25, 0.25)):
    def step(task, key):
        task, batch, info = next_batch(
            key, task, data, stay_probability=stay_probability, shots=4, weights=weights
        )
        return task, (batch, info)

    return jax.lax.scan(step, first_task(ways=3), jax.random.split(key, steps))[1]


@pytest.fixture(scope="module")
def drawn():
    (images, labels), info = run(jax.random.key(0), DATA, 0.9)
    pixels = np.zeros((*images.shape[:2], 2), int)
    for i, plain in enumerate(PLAIN):
        mine = np.asarray(info["dataset"]) == i
        pixels[mine] = np.rint(plain(np.asarray(images)[mine, :, 0, :, 0]))
    return pixels[..., 0], pixels[..., 1], np.asarray(labels), jax.tree.map(np.asarray, info)


def test_switches_are_as_frequent_as_asked(drawn):
    *_, info = drawn
    switches = info["switched"][1:]
    assert info["switched"][0]
    np.testing.assert_allclose(switches.mean(), 0.1, atol=4 * np.sqrt(0.09 / STEPS))
    # Independent of the switch before.
    np.testing.assert_allclose(switches[1:][switches[:-1]].mean(), 0.1, atol=0.07)


def test_data_sets_are_drawn_by_their_weights(drawn):
    *_, info = drawn
    dataset = info["dataset"][info["switched"]]
    shares = np.bincount(dataset, minlength=3) / len(dataset)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=4 * 0.5 / np.sqrt(len(dataset)))
    # The old one is not excluded.
    same = (dataset[1:] == dataset[:-1]).mean()
    np.testing.assert_allclose(same, 0.5**2 + 2 * 0.25**2, atol=4 * 0.5 / np.sqrt(len(dataset)))
    *_, info = run(jax.random.key(0), DATA, 0.0, steps=50, weights=(0.0, 0.0, 3.0))
    assert set(np.asarray(info["dataset"])) == {2}


def test_labels_and_datasets_of_batches(drawn):
    classes, images, labels, info = drawn
    np.testing.assert_array_equal(labels, np.tile(np.repeat(np.arange(3), 4), (STEPS, 1)))
    per_label = classes.reshape(STEPS, 3, 4)
    assert (per_label == per_label[:, :, :1]).all()
    per_label = per_label[:, :, 0]
    assert all(len(set(row)) == 3 for row in per_label)  # without replacement
    first, end = np.array([0, 7, 10]), np.array([7, 10, 13])
    assert (per_label >= first[info["dataset"]][:, None]).all()
    assert (per_label < end[info["dataset"]][:, None]).all()
    # A task keeps its classes and their order; a new task draws them again.
    stays = ~info["switched"][1:]
    np.testing.assert_array_equal(per_label[1:][stays], per_label[:-1][stays])
    orders = {tuple(row) for row in per_label[info["dataset"] == 1]}
    assert len(orders) == 6  # all orders of three classes
    assert images.max() < 20 and (images < np.array(DATA.counts)[classes]).all()


def test_classes_and_images_are_uniform(drawn):
    classes, images, _, info = drawn
    switched = info["switched"] & (info["dataset"] == 0)
    per_label = classes.reshape(STEPS, 3, 4)[switched][:, :, 0]
    shares = np.stack([np.bincount(column, minlength=7) for column in per_label.T]) / len(per_label)
    np.testing.assert_allclose(shares, 1 / 7, atol=4 * np.sqrt(6 / 49 / len(per_label)))
    of_third = images[info["dataset"] == 2]
    np.testing.assert_allclose(
        np.bincount(of_third.ravel(), minlength=20) / of_third.size, 1 / 20, atol=0.01
    )
    # With replacement: of 4 of 20 some are alike with probability 1 - 19 18 17 / 20^3.
    rows = of_third.reshape(-1, 4)
    repeated = np.mean([len(set(row)) < 4 for row in rows])
    np.testing.assert_allclose(repeated, 1 - 19 * 18 * 17 / 20**3, atol=0.05)


def test_the_stream_depends_on_its_key_alone():
    one = run(jax.random.key(3), DATA, 0.9, steps=30)
    other = run(jax.random.key(4), DATA, 0.9, steps=30)
    assert not np.array_equal(one[0][0], other[0][0])
    task = first_task(ways=3)
    draw = quick_jit(functools.partial(next_batch, shots=4))
    for t, key in enumerate(jax.random.split(jax.random.key(3), 30)[:5]):
        task, batch, _ = draw(key, task, DATA, stay_probability=0.9)
        for got, want in zip(batch, one[0], strict=True):
            np.testing.assert_array_equal(got, want[t])


def test_probabilities_zero_and_one():
    switched = {p: run(jax.random.key(0), DATA, p, steps=100)[1]["switched"] for p in (0.0, 1.0)}
    assert switched[0.0].all()
    assert switched[1.0].tolist() == [True] + [False] * 99


def test_vmap_over_seeds():
    keys = jax.random.split(jax.random.key(0), 2)
    draw = functools.partial(next_batch, data=DATA, stay_probability=0.5, shots=2)
    both = quick_jit(jax.vmap(lambda key: draw(key, first_task(ways=3))))(keys)
    one = quick_jit(draw)
    for i, key in enumerate(keys):
        alone = one(key, first_task(ways=3))
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, i=i: x[i], both), alone)


# Where the data come from


def test_by_class_cuts_to_the_smallest_in_order():
    labels = np.array([1, 0, 1, 1, 0, 2, 2, 2], np.int32)
    images = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)
    data = by_class(LabelledSet(images, labels, (0.5,), (2.0,), 3))
    np.testing.assert_array_equal(data.images.ravel(), [1, 4, 0, 2, 5, 6])
    assert data.counts.tolist() == [2, 2, 2] and (data.mean, data.std) == ((0.5,), (2.0,))
    with pytest.raises(DataError, match=r"^class 3 has no images"):
        by_class(LabelledSet(images, labels, (0.0,), (1.0,), 4))


def test_letters_replace_the_datasets():
    data = load_switching("glyphs")
    assert data.num_classes[0] > 200 and data.num_classes[1:] == (10, 10)
    assert len(data.images) == 20 * sum(data.num_classes)
    draw = jax.jit(functools.partial(next_batch, data=data, stay_probability=1.0))
    for dataset, (paper, low, high) in enumerate([(1, 0, 1), (0, 0, 255), (0, 0, 255)]):
        classes = np.flatnonzero(data.datasets == dataset)[:10].astype(np.int32)
        task = first_task()._replace(dataset=jnp.int32(dataset), classes=jnp.asarray(classes))
        _, (images, labels), info = draw(jax.random.key(0), task)
        assert images.shape == (50, 28, 28, 1) and labels.shape == (50,) and not info["switched"]
        assert images.min() == low and images.max() == high and jnp.median(images) == paper


@pytest.mark.slow
def test_real_data():
    """The counts and pixel ranges of Caccia et al. 2020."""
    root = Path("~/tensorflow_datasets").expanduser()
    for name in ("omniglot", "mnist", "fashion_mnist"):
        if not (root / name).is_dir():
            pytest.skip(f"{name} is not in {root}")
    data = load_switching("omniglot-mnist-fashion")
    assert data.num_classes == (1623, 10, 10)
    assert data.fewest_images == (20, 5421, 6000)
    assert len(data.images) == 1623 * 20 + 10 * 5421 + 10 * 6000
    np.testing.assert_allclose(data.scale[:, 0], [1 / 255, 1, 1], rtol=1e-7)
    means = [data.images[data.datasets.repeat(data.counts) == i].mean() for i in range(3)]
    assert means[0] > 200 and means[1] < 40 and means[2] < 90


# Errors


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stay_probability": 1.01}, r"^stay_probability must lie in \[0, 1\], got 1.01"),
        ({"stay_probability": -0.1}, r"^stay_probability must lie in \[0, 1\], got -0.1"),
        ({"stay_probability": float("nan")}, r"^stay_probability must lie in \[0, 1\], got nan"),
        ({"ways": 4}, "^ways must be at most 3, the classes of second; got 4"),
        ({"shots": 5}, "^shots must be at most 4, the images of the smallest class of large; got"),
        ({"shots": 0}, "^shots must be a whole number >= 1, got 0"),
        ({"shots": 1.5}, "^shots must be a whole number >= 1, got 1.5"),
        ({"ways": 0}, "^ways must be a whole number >= 1, got 0"),
        ({"weights": (1.0, 1.0)}, "^weights must be one for each of large, second, third"),
        ({"weights": (1.0, 1.0, -1.0)}, "^weights must be one for each of large, second, third"),
        ({"weights": (0.0, 0.0, 0.0)}, "^weights must be one for each.*not all zero; got"),
    ],
)
def test_errors_are_one_line(change, message):
    given = {"stay_probability": 0.9, "shots": 4, "ways": 3} | change
    with pytest.raises(DataError, match=message) as error:
        ways = given.pop("ways")
        next_batch(jax.random.key(0), first_task(ways), DATA, **given)
    assert "\n" not in str(error.value)


def test_unknown_streams_and_shapes(tmp_path):
    with pytest.raises(DataError, match=r"^there is no switching stream 'mnist'; there are: omni"):
        load_switching("mnist")
    with pytest.raises(DataError, match=r"^omniglot: not prepared in"):
        load_switching("omniglot-mnist-fashion", tmp_path)
    square = ImageSet(np.zeros((1, 1, 2, 2, 1), np.uint8), np.ones(1), ("a",), (0.0,), (1.0,))
    with pytest.raises(DataError, match=r"^sets must have one image shape, got \[\(1, 2, 1\)"):
        side_by_side({"a": square, "b": numbered(1, [1], 0)})
    with pytest.raises(DataError, match=r"^sets must have one image shape, got no sets"):
        side_by_side({})
