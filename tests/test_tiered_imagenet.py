"""tieredImageNet from made-up pickles and class folders."""

import os
import pickle

import numpy as np
import pytest
from made_up import IMAGENET, fails, manual_folder, pixels, png, tree

from jaxsparse.data import fingerprint, load


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))


TIERED = {"train": {"b": 2, "a": 1}, "val": {"c": 2}, "test": {"d": 1}}


def tiered_pickles(root, protocol=4, form=lambda png: png, layout=TIERED, **changed):
    """Write pickles like those of Ren et al.; `changed` replaces fields of the labels."""
    root.mkdir(parents=True)
    images = {}
    for split, classes in layout.items():
        numbers = [i for i, count in enumerate(classes.values()) for _ in range(count)][::-1]
        images[split] = [pixels(len(split) + i, 84, 84) for i in range(len(numbers))]
        encoded = [form(np.frombuffer(png(x).read(), np.uint8)) for x in images[split]]
        labels = {
            "label_specific": np.array(numbers, np.int32),
            "label_general": np.zeros(len(numbers), np.int32),
            "label_specific_str": list(classes),
            "label_general_str": ["all"],
        }
        for name, content in (("images_png", encoded), ("labels", labels | changed)):
            (root / f"{split}_{name}.pkl").write_bytes(pickle.dumps(content, protocol))
    return images


FORMS = {"row": lambda png: png, "column": lambda png: png[:, None], "bytes": bytes}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_tiered_imagenet_from_pickles(tmp_path, protocol, form):
    root = tmp_path / "downloads/manual/tiered-imagenet"
    images = tiered_pickles(root, protocol, FORMS[form])
    data = load("tiered_imagenet", "train", tmp_path)
    assert data.names == ("b", "a") and data.counts.tolist() == [2, 1]
    assert (data.mean, data.std) == IMAGENET
    np.testing.assert_array_equal(data.images, [images["train"][i] for i in (1, 2, 0)])
    assert load("tiered_imagenet", "validation", tmp_path).names == ("c",)
    assert load("tiered_imagenet", "test", tmp_path, image_size=16).image_shape == (16, 16, 3)


def test_tiered_imagenet_has_the_colours_of_its_png_files(tmp_path):
    """OpenCV writes the last of the three values of a pixel as red."""
    root = tmp_path / "downloads/manual/tiered_imagenet"
    tiered_pickles(root)
    opencv = np.zeros((84, 84, 3), np.uint8) + np.array([10, 20, 250], np.uint8)
    encoded = [np.frombuffer(png(opencv[..., ::-1].copy()).read(), np.uint8)]
    (root / "test_images_png.pkl").write_bytes(pickle.dumps(encoded))
    assert load("tiered_imagenet", "test", tmp_path).images[0, 0, 0].tolist() == [250, 20, 10]


def test_tiered_imagenet_from_class_folders(tmp_path):
    written = tree(manual_folder(tmp_path) / "tiered_imagenet", TIERED, size=(84, 84))
    data = load("tiered_imagenet", "train", tmp_path)
    assert data.names == ("a", "b")
    np.testing.assert_array_equal(data.images[2], written["train", "b", 1])
    assert load("tiered_imagenet", "validation", tmp_path).names == ("c",)


BAD_LABELS = {
    "floats": {"label_specific": np.zeros(1)},
    "a number too high": {"label_specific": np.array([1])},
    "a class without images": {"label_specific_str": ["d", "e"]},
    "a class twice": {"label_specific_str": ["d", "d"], "label_specific": np.array([0, 1])},
    "a name of two lines": {"label_specific_str": ["d\nd"]},
    "a name that is not text": {"label_specific_str": [7]},
    "a table of numbers": {"label_specific": np.zeros((1, 1), np.int32)},
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_bad_labels_are_named(tmp_path, kind):
    root = tmp_path / "downloads/manual/tiered_imagenet"
    tiered_pickles(root, layout={"test": {"d": 1}}, **BAD_LABELS[kind])
    fails("test_labels.pkl: not a tieredImageNet pickle: ", "tiered_imagenet", "test", tmp_path)


class Attack:
    """Its pickle makes a folder when pickle.load opens it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_tiered_pickles_cannot_run_code(tmp_path):
    root = tmp_path / "downloads/manual/tiered_imagenet"
    tiered_pickles(root)
    attack = pickle.dumps([Attack(tmp_path / "harm")])
    for name in ("test_images_png.pkl", "test_labels.pkl"):
        (root / name).write_bytes(attack)
        fails(f"{name}: not a tieredImageNet pickle: it asks for .*mkdir",
              "tiered_imagenet", "test", tmp_path)  # fmt: skip
    assert not (tmp_path / "harm").exists()


def test_images_and_labels_must_fit(tmp_path):
    root = tmp_path / "downloads/manual/tiered_imagenet"
    tiered_pickles(root)
    for content, match in (
        ([np.zeros(3)], "not a tieredImageNet pickle"),
        ({}, "it must be a list"),
        ([np.zeros(3, np.uint8)], r"test_images_png\.pkl: image 0: not a readable image"),
        ([], "it has 0 images, but there are 1 labels"),
    ):
        (root / "test_images_png.pkl").write_bytes(pickle.dumps(content))
        fails(match, "tiered_imagenet", "test", tmp_path)
    (root / "test_labels.pkl").unlink()
    fails("test_labels.pkl: not found", "tiered_imagenet", "test", tmp_path)


def test_a_class_in_two_pickles_is_refused(tmp_path):
    root = tmp_path / "downloads/manual/tiered_imagenet"
    tiered_pickles(root, layout=TIERED | {"test": {"d": 1, "b": 1}})
    fails("the class 'b' is in the labels of (train and of test|test and of train)",
          "tiered_imagenet", "test", tmp_path)  # fmt: skip
    load("tiered_imagenet", "validation", tmp_path)


def test_the_second_load_reads_the_cache(tmp_path, monkeypatch):
    tiered_pickles(tmp_path / "downloads/manual/tiered_imagenet")
    first = fingerprint(load("tiered_imagenet", "train", tmp_path))
    monkeypatch.setattr("jaxsparse.data.tiered_imagenet.read_image", None)
    assert fingerprint(load("tiered_imagenet", "train", tmp_path)) == first
