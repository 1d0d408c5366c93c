"""Datasets from arrays: few-shot splits, and the sets of a stream."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import training
from jaxsparse.data import (
    DataError,
    from_arrays,
    labelled_from_arrays,
    sample_tasks,
    streams,
    switching,
)

COUNTS = {"owl": 3, "ant": 5, "bee": 2, "cat": 4}
NAMES = np.random.default_rng(0).permutation(np.repeat(list(COUNTS), list(COUNTS.values())))
IMAGES = np.random.default_rng(1).integers(256, size=(len(NAMES), 4, 3, 3), dtype=np.uint8)
PLACES = {name: np.flatnonzero(name == NAMES) for name in COUNTS}


def test_classes_by_name():
    data = from_arrays(IMAGES, NAMES, train=["owl", "ant"], val=["bee"], test=("cat",), mean=0.5)
    assert list(data) == ["train", "validation", "test"]
    assert data["train"].names == ("owl", "ant") and data["train"].counts.tolist() == [3, 5]
    for part in data.values():
        assert part.mean == (0.5,) * 3 and part.std == (1.0,) * 3
        for i, name in enumerate(part.names):
            np.testing.assert_array_equal(part.of_class(i), IMAGES[PLACES[name]])
    task = sample_tasks(jax.random.key(0), data["train"], 1, 2, 1, 2)
    shown = np.round(255 * (np.asarray(task.support[0][0]) + 0.5))
    for image, label in zip(shown, task.support[1][0], strict=True):
        among = [bool((image == IMAGES[PLACES[name]]).all((1, 2, 3)).any()) for name in COUNTS]
        assert sum(among) == 1 and int(label) in (0, 1)


@pytest.mark.parametrize("seed", [3, jax.random.key(3), jax.random.PRNGKey(3), np.int64(3)])
def test_classes_by_fraction(seed):
    labels = np.arange(60) % 20 - 5
    images = np.arange(60, dtype=np.uint8).reshape(-1, 1, 1)
    data = from_arrays(images, labels, train=0.5, val=0.15, test=0.35, seed=seed)
    classes = {name: list(map(int, part.names)) for name, part in data.items()}
    assert [len(x) for x in classes.values()] == [10, 3, 7]
    assert sorted(x for own in classes.values() for x in own) == list(range(-5, 15))
    assert classes["train"] == sorted(classes["train"]) != list(range(-5, 5))
    order = np.asarray(jax.random.permutation(jax.random.key(3), 20)) - 5
    assert set(classes["validation"]) == set(order[10:13].tolist())
    assert data["test"].of_class(0).ravel().tolist() == [
        i for i in range(60) if labels[i] == classes["test"][0]
    ]
    less = from_arrays(images, labels, train=0.1, test=0.25)
    assert [part.num_classes for part in less.values()] == [2, 5]


@pytest.mark.parametrize("images, pixel", [
    (np.full((4, 2, 2), 1.0), 255), (np.full((4, 2, 2, 1), 0.5, np.float32), 128),
    (np.full((4, 2, 2), 7, np.int64), 7), (np.ones((4, 2, 2), bool), 255),
    (jnp.full((4, 2, 2), 0.5, jnp.bfloat16), 128), (jnp.full((4, 2, 2), 200, jnp.uint8), 200),
    ([[[0.2]], [[0.2]], [[0.2]], [[0.2]]], 51),
])  # fmt: skip
@pytest.mark.parametrize("labels", [[1, 1, 0, 0], ["b", "b", "a", "a"], jnp.array([1, 1, 0, 0]),
                                    np.array(["b", "b", "a", "a"], object),
                                    np.array([True, True, False, False])])  # fmt: skip
def test_images_and_labels_of_every_kind(images, pixel, labels):
    data = from_arrays(images, labels, train=1.0)["train"]
    assert data.images.dtype == np.uint8 and data.images.shape[::3] == (4, 1)
    assert data.images.ravel()[0] == pixel and data.counts.tolist() == [2, 2]
    sets = labelled_from_arrays((images, labels), (images, labels))
    assert sets[0].labels.tolist() == [1, 1, 0, 0] and sets[1].images.ravel()[0] == pixel


def test_a_run_from_arrays():
    config = training.FewShotConfig(
        ways=2, shots=1, query_shots=1, width=1, inner_steps=1, test_inner_steps=1, epochs=1,
        steps_per_epoch=1, val_tasks=1, test_tasks=1, meta_batch_size=1, blocks="xla",
    )  # fmt: skip
    images = np.random.default_rng(0).random((16, 16, 16))
    data = from_arrays(images, np.arange(16) // 2, train=0.5, val=0.25, test=0.25)
    train = training.make_train(config, data)
    assert jax.eval_shape(train, jax.random.key(0))["test"]["accuracy"].shape == (1,)


def test_streams_from_arrays():
    train, test = labelled_from_arrays((IMAGES, NAMES), (IMAGES[::2], NAMES[::2]), std=[1, 2, 4])
    assert train.std == (1.0, 2.0, 4.0) and train.num_classes == test.num_classes == 4
    assert [sorted(COUNTS)[i] for i in train.labels] == NAMES.tolist()
    assert [sorted(COUNTS)[i] for i in test.labels] == NAMES[::2].tolist()
    split = streams.split(train, test, classes_per_task=2)
    _, labels = streams.test_rows(split, 1)
    assert set(labels.tolist()) <= {2, 3}
    assert streams.rotations(train, test, tasks=3).pixel_maps.shape == (3, 12)
    assert streams.permutations(train, test, tasks=2).pixel_maps.shape == (2, 12)


def test_a_switching_stream_from_arrays():
    parts = from_arrays(IMAGES, NAMES, train=["owl", "ant"], test=["cat", "bee"])
    data = switching.side_by_side({"first": parts["train"], "second": parts["test"]})
    _, (images, labels), info = switching.next_batch(
        jax.random.key(0), switching.first_task(ways=2), data, stay_probability=0.9, shots=2,
        weights=(0.0, 1.0),
    )  # fmt: skip
    assert images.shape == (4, 4, 3, 3) and labels.tolist() == [0, 0, 1, 1]
    assert info["dataset"] == 1


@pytest.mark.parametrize("changed, match", [
    ({}, "train, val, test: give at least one"),
    ({"train": 0.5, "test": ["cat"]}, "fractions or lists of labels, not both"),
    ({"train": 0.7, "test": 0.4}, r"fractions must be in \(0, 1\], sum 1, got \[0.7, 0.4\]"),
    ({"train": 0.9, "test": 0.1}, "test: with this fraction it has none of the 4 classes"),
    ({"train": -1}, "fractions must be in"),
    ({"train": ["ant"], "test": ["ant"]}, "test: the class 'ant' is in train, too"),
    ({"train": ["ant", "dog"]}, "train: no image has the label 'dog'"),
    ({"train": "ant"}, "train must be a list of labels or a fraction, got 'ant'"),
    ({"train": []}, "train must be a list of labels"),
    ({"train": ["ant", "ant"]}, "train: the class 'ant' is there twice"),
    ({"train": True}, "train must be a list of labels or a fraction, got True"),
    ({"train": [["ant"], ["bee", "cat"]]}, "train: got .*, want an array"),
    ({"train": [{}]}, "train: no image has the label {}"),
    ({"train": 1.0, "std": 0.0}, "std must be finite and above 0, got 0.0"),
    ({"train": 1.0, "std": -1.0}, "std must be finite and above 0, got -1.0"),
    ({"train": 1.0, "mean": [0.0]}, "mean must be a number, or 3, one per channel"),
    ({"train": 1.0, "mean": "x"}, "mean must be a number, or 3, one per channel; got 'x'"),
    ({"train": 1.0, "seed": "x"}, "seed must be a number or a PRNG key, got 'x'"),
    ({"train": 1.0, "seed": 2**70}, "seed must be a number or a PRNG key"),
    ({"train": 1.0, "images": [[[1, 2], [3]]]}, "images: got .*, want an array"),
    ({"train": 1.0, "labels": np.array([1, *NAMES[1:]], object)}, "integers or strings, got both"),
    ({"train": 1.0, "images": IMAGES / 100}, "images: got float64 from 0.* to 2.*, want whole"),
    ({"train": 1.0, "images": np.full((14, 2, 2), np.nan)}, "images: got float64 from nan"),
    ({"train": 1.0, "images": IMAGES - 300.0}, "or floats in"),
    ({"train": 1.0, "images": NAMES}, "images: got <U3, want whole"),
    ({"train": 1.0, "images": IMAGES[0, 0]}, r"images must be \[n, h, w, c\] .*, got \[3, 3\]"),
    ({"train": 1.0, "labels": NAMES[1:]}, r"labels must be \[14\], got \[13\]"),
    ({"train": 1.0, "labels": np.zeros(14)}, "labels must be integers or strings, got float64"),
])  # fmt: skip
def test_arrays_that_do_not_fit(changed, match):
    arguments = {"images": IMAGES, "labels": NAMES} | changed
    with pytest.raises(DataError, match=match) as caught:
        from_arrays(**arguments)
    assert "\n" not in str(caught.value)


def test_sets_of_a_stream_that_do_not_fit():
    for pairs, match in (
        (((IMAGES, NAMES), (IMAGES, np.where(NAMES == "cat", "dog", NAMES))), "class dog is not"),
        (((IMAGES, NAMES), IMAGES), r"test must be a pair \(images, labels\), got uint8"),
        (((IMAGES, NAMES[1:]), (IMAGES, NAMES)), "train: labels must be"),
        (((IMAGES, NAMES), (IMAGES[:, 1:], NAMES)), r"test: its images are \[.*, those of train"),
    ):
        with pytest.raises(DataError, match=match):
            labelled_from_arrays(*pairs)
    with pytest.raises(DataError, match="images and labels must be known"):
        jax.jit(lambda x: dataclasses.astuple(from_arrays(x, NAMES, train=1.0)["train"])[0])(IMAGES)
