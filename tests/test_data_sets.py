"""Few-shot datasets: class lists, and made-up records of TFDS and class folders."""

import sys

import numpy as np
import pytest
from made_up import IMAGENET, fails, manual_folder, pixels, png, prepare, tree
from PIL import Image

from experiments import unread
from experiments.fewshot.presets import preset_config
from jaxsparse.data import cifar100, load, sources
from jaxsparse.data.cars_names import NAMES as CARS
from jaxsparse.data.class_splits import split_of
from jaxsparse.data.pictures import fit
from jaxsparse.training.fewshot.config import Dataset

SPLITS = ("train", "validation", "test")
# The superclass of each fine label, from the files of CIFAR-100.
COARSE = """
    4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5
    5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9
    13 15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))


def flat(value, size=(4, 4)):
    """An image of one colour, which is given by `value`."""
    return np.broadcast_to(np.array([value, 255 - value, 7], np.uint8), (*size, 3)).copy()


# --- which classes ---


@pytest.mark.parametrize(("name", "counts"), [("cifar_fs", [64, 16, 20]), ("fc100", [60, 20, 20])])
def test_every_class_of_cifar_100_is_in_exactly_one_split(name, counts):
    parts = [cifar100.members(name, split) for split in SPLITS]
    assert [len(part) for part in parts] == counts
    assert set.union(*map(set, parts)) == set(cifar100.CLASSES) and sum(counts) == 100


def test_cifar_100_numbers_its_classes_as_its_files_do():
    assert len(set(cifar100.CLASSES)) == 100
    some = {0: "apple", 8: "bicycle", 39: "keyboard", 58: "pickup_truck", 99: "worm"}
    assert {i: cifar100.CLASSES[i] for i in some} == some
    superclass = {c: i for i, names in enumerate(cifar100.SUPERCLASSES.values()) for c in names}
    assert [superclass[c] for c in cifar100.CLASSES] == [int(i) for i in COARSE.split()]


def test_fc100_is_split_by_superclass():
    published = {
        "train": {1, 2, 3, 4, 5, 6, 9, 10, 15, 17, 18, 19},
        "validation": {8, 11, 13, 16},
        "test": {0, 7, 12, 14},
    }
    coarse = dict(zip(cifar100.CLASSES, map(int, COARSE.split()), strict=True))
    for split, numbers in published.items():
        assert {coarse[c] for c in cifar100.members("fc100", split)} == numbers


def test_cifar_fs_has_the_published_classes():
    some = {
        "train": "apple sunflower bee tiger bridge boy dinosaur willow_tree train tank",
        "validation": "beaver otter shark lamp butterfly sea crab crocodile maple_tree tractor",
        "test": "whale poppy sweet_pepper wardrobe leopard plain fox worm woman rocket",
    }
    for split, names in some.items():
        assert set(names.split()) <= cifar100.members("cifar_fs", split)


def test_classes_in_their_order_are_split_two_to_one_to_one():
    for classes, counts in ((200, [100, 50, 50]), (196, [98, 49, 49])):
        assert [[split_of(i) for i in range(classes)].count(s) for s in SPLITS] == counts
    assert [i for i in range(12) if split_of(i) == "train"] == [0, 2, 4, 6, 8, 10]
    assert [i for i in range(12) if split_of(i) == "validation"] == [1, 5, 9]


def test_stanford_cars_are_named_in_the_order_of_their_numbers():
    assert len(set(CARS)) == 196
    some = {
        0: "AM General Hummer SUV 2000",
        5: "Acura Integra Type R 2001",
        100: "Ferrari FF Coupe 2012",
        195: "smart fortwo Convertible 2012",
    }
    assert {i: CARS[i] for i in some} == some


# --- records of TFDS ---


def cifar_records(split, skipped=()):
    for label in range(100):
        if label not in skipped:
            image = flat(label + 100 * (split == "test"), (32, 32))
            yield {"image": png(image), "label": label, "coarse_label": 0, "id": str(label)}


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    def make(name, examples):
        prepare(tmp_path, name, {split: examples(split) for split in ("train", "test")})

    return make


# Warnings of packages that TFDS uses must not fail these tests.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cifar_fs", "fc100"])
def test_cifar_100_is_read_class_by_class(prepared, tmp_path, name):
    prepared("cifar100", cifar_records)
    assert "tensorflow" not in sys.modules
    for split in SPLITS:
        data = load(name, split, tmp_path)
        assert set(data.names) == cifar100.members(name, split)
        assert data.images.shape == (2 * len(data.names), 32, 32, 3) and (data.counts == 2).all()
        assert (data.mean, data.std) == IMAGENET
        for i, called in enumerate(data.names):
            label = cifar100.CLASSES.index(called)
            np.testing.assert_array_equal(data.of_class(i)[:, 5, 5, 0], [label, 100 + label])
    assert load(name, "test", tmp_path, image_size=16).image_shape == (16, 16, 3)


@pytest.mark.filterwarnings("ignore")
def test_a_class_without_records_is_an_error(prepared, tmp_path):
    prepared("cifar100", lambda split: cifar_records(split, skipped=(99,)))
    load("cifar_fs", "train", tmp_path)
    fails("cifar100: .* of 19 classes of this split, want 20; prepare it again",
          "cifar_fs", "test", tmp_path)  # fmt: skip


def box():
    import tensorflow_datasets as tfds

    return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)


def bird_records(split):
    for label in range(200) if split == "train" else (3, 4):
        image = pixels(label + 1000 * (split == "test"), 12, 16)
        yield {
            "image": png(image), "image/filename": f"{split}{label}.jpg", "label": label,
            "label_name": f"bird_{label}", "bbox": box(), "segmentation_mask": png(image[..., 0]),
        }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_cub_is_read_from_records(prepared, tmp_path):
    prepared("caltech_birds2011", bird_records)
    data = {split: load("cub", split, tmp_path, image_size=8) for split in SPLITS}
    assert [data[split].num_classes for split in SPLITS] == [100, 50, 50]
    assert data["test"].names[:2] == ("004.bird_3", "008.bird_7")
    assert data["validation"].names[:2] == ("002.bird_1", "006.bird_5")
    assert data["train"].counts[:4].tolist() == [1, 1, 2, 1]
    for got, seed in zip(data["test"].of_class(0), (3, 1003), strict=True):
        np.testing.assert_array_equal(got, fit(Image.fromarray(pixels(seed, 12, 16)), (8, 8, 3)))
    assert load("cub", "test", tmp_path).image_shape == (84, 84, 3)


# --- Stanford Cars ---


def car_records(split):
    for label in range(196):
        if (label % 3 == 0) == (split == "test"):
            image = flat(label, (4, 6))
            yield {"image": png(image), "label": label, "bbox": box(), "id": str(label)}


def flat_tree(root, names):
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.fromarray(flat(i)).save(root / name / "0.png")


@pytest.mark.filterwarnings("ignore")
def test_cars_have_the_same_split_in_records_and_in_one_tree(prepared, tmp_path):
    prepared("cars196", car_records)
    flat_tree(tmp_path / "own/downloads/manual/cars", (c.replace("/", "-") for c in CARS))
    for split, count in zip(SPLITS, (98, 49, 49), strict=True):
        records, folders = (load("cars", split, tmp_path / d, image_size=4) for d in ("", "own"))
        numbers = [i for i in range(196) if split_of(i) == split]
        assert len(numbers) == count == records.num_classes
        assert sorted(records.images[:, 0, 0, 0].tolist()) == numbers
        assert sorted(folders.images[:, 0, 0, 0].tolist()) == numbers
        assert sorted(records.names) == sorted(CARS[i] for i in numbers)
    assert load("cars", "test", tmp_path).image_shape == (84, 84, 3)


def test_cars_with_other_names_are_sorted_by_number_or_name(tmp_path):
    for case, names in {
        "numbers": [str(i + 1) for i in range(196)],
        "names": [f"{i:03d} car" for i in range(196)],
    }.items():
        flat_tree(tmp_path / case / "downloads/manual/cars", names)
        data = load("cars", "validation", tmp_path / case, image_size=4)
        assert data.images[:, 0, 0, 0].tolist() == list(range(1, 196, 4))


def test_cars_in_three_folders_keep_their_split(tmp_path):
    layout = {"train": {"a": 2, "b": 1}, "val": {"c": 1}, "test": {"d": 1}}
    written = tree(manual_folder(tmp_path) / "cars", layout, size=(84, 84))
    data = load("cars", "train", tmp_path)
    assert data.names == ("a", "b") and data.counts.tolist() == [2, 1]
    np.testing.assert_array_equal(data.images[1], written["train", "a", 1])
    assert load("cars", "test", tmp_path).names == ("d",)


def test_a_tree_of_too_few_cars_is_refused(tmp_path):
    flat_tree(manual_folder(tmp_path) / "cars", CARS[:3])
    fails(
        "cars must have folders train, val and test, or 196 class folders, got 3",
        "cars",
        "train",
        tmp_path,
    )


# --- test domains of ten classes ---

TEN = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@pytest.fixture
def ten(prepared):
    """Prepare a dataset of ten classes: 12 test images with the labels 9 .. 0, 0, 1."""

    def make(name, labels=(*range(9, -1, -1), 0, 1)):
        shape = TEN[name]

        def records(split):
            for i, label in enumerate(labels if split == "test" else (0,)):
                image = np.full(shape if shape[2] == 3 else shape[:2], 10 * label + i, np.uint8)
                named = {"id": str(i)} if name == "cifar10" else {}
                yield {"image": png(image), "label": label, **named}

        prepared(name, records)

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TEN)
def test_ten_classes_are_a_test_domain(ten, tmp_path, name):
    ten(name)
    data = load(name, "test", tmp_path)
    assert data.image_shape == TEN[name] and data.counts.tolist() == [2, 2] + [1] * 8
    assert data.images[:, 3, 3, 0].tolist() == [
        9,
        10,
        18,
        21,
        *(9 - i + 10 * i for i in range(2, 10)),
    ]
    first = {"mnist": "0", "fashion_mnist": "T-shirt/top", "cifar10": "airplane"}
    assert data.names[0] == first[name] and len(set(data.names)) == 10
    assert data.mean == ((0.0,) if name != "cifar10" else (0.4914, 0.4822, 0.4465))
    larger = load(name, "test", tmp_path, image_size=40)
    assert larger.image_shape == (40, 40, TEN[name][2]) and larger.mean == data.mean
    for split in ("train", "validation"):
        fails(f"{name}: .*'{split}': its 10 classes are only a test domain", name, split, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_class_without_test_images_is_named(ten, tmp_path):
    ten("fashion_mnist", labels=(0, 1, 2, 3, 4, 5, 6, 7, 8))
    fails("fashion_mnist: no test images of Ankle boot in", "fashion_mnist", "test", tmp_path)


# --- all datasets ---


@pytest.mark.parametrize("name", ["folder", "mini_imagenet", "tiered_imagenet", "cars"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_class_in_two_splits_is_refused_in_every_tree(tmp_path, name, alone):
    root = tmp_path if name == "folder" else manual_folder(tmp_path) / name
    own = {} if alone else {"b": 1}
    tree(root, {"train": {"n01": 1, **own}, "val": {"c": 1}, "test": {"n01": 1}})
    for split in ("train", "test"):
        fails("n01 and .*/n01: one class in two splits", name, split, tmp_path)
    load(name, "validation", tmp_path)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("cub", "caltech_birds2011: not prepared in .*'caltech_birds2011'.*download_and_prepare"),
        ("cifar_fs", "cifar100: not prepared in .*'cifar100'.*download_and_prepare"),
        ("fc100", "cifar100: not prepared in .*'cifar100'.*download_and_prepare"),
        ("cars", r"cars: not found in .*manual/cars; put .* or prepare cars196"),
        ("tiered_imagenet", r"tiered_imagenet: not found in .*manual; put .*_labels\.pkl"),
        ("mnist", "mnist: not prepared in .*'mnist'.*download_and_prepare"),
    ],
)
def test_missing_data_say_where_and_what_to_do(tmp_path, name, match):
    fails(f"^{match}", name, "test", tmp_path)


def test_runs_accept_the_datasets_they_can_train_on():
    names = set(Dataset.__args__)
    assert names == set(sources.NAMES) - set(TEN)
    for name in names:
        assert preset_config(None, name, "sparse-maml", 5).dataset == name
        config = preset_config(None, name, "sparse-maml", 5)
        assert unread.is_read(unread.FEWSHOT, config, "data_dir") == (name != "glyphs")
