"""Labelled sets: made-up records, the built-in digits, and real data if TFDS has it."""

import io
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxsparse.data import DataError, LabelledSet, classification, digits, glyphs, load_labelled

# Images per class in MNIST's test set, and means of all pixels / 255, to 2e-4 by channel: copies of
# the photographs that were compressed on their way differ by that much.
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
MEANS = {"mnist": [0.1325], "fashion_mnist": [0.2868], "cifar10": [0.4942, 0.4851, 0.4504]}
MADE_UP = {"mnist": (28, 28), "fashion_mnist": (28, 28), "cifar10": (32, 32, 3)}


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Prepare a dataset of five random records per split, labelled 7, 0, 9, 0, 3."""
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))

    def prepare(name):
        images, prepared = {}, tmp_path / name / "1.0.0"
        prepared.mkdir(parents=True)
        for seed, split in enumerate(("train", "test")):
            (prepared / f"{name}-{split}.array_record-00000-of-00001").write_bytes(b"x")
            rng = np.random.default_rng(seed)
            images[split] = rng.integers(0, 256, (5, *MADE_UP[name]), dtype=np.uint8)

        def records(asked, split, data_dir):
            assert (asked, data_dir) == (name, tmp_path)
            for label, image in zip((7, 0, 9, 0, 3), images[split], strict=True):
                encoded = io.BytesIO()
                Image.fromarray(image).save(encoded, "PNG")
                yield {"image": encoded.getvalue(), "label": np.int64(label)}

        monkeypatch.setattr(classification, "records", records)
        return images

    return prepare


def _png(pixels):
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def fails(match, *args):
    with pytest.raises(DataError, match=match) as caught:
        load_labelled(*args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MADE_UP)
def test_records_keep_their_order_and_are_decoded_once(made_up, tmp_path, monkeypatch, name):
    images = made_up(name)
    for split in ("train", "test"):
        data = load_labelled(name, split, tmp_path)
        assert data.images.dtype == np.uint8 and data.labels.dtype == np.int32
        assert data.image_shape == (*MADE_UP[name], 1)[:3] and data.num_classes == 10
        np.testing.assert_array_equal(data.images, images[split].reshape(data.images.shape))
        assert data.labels.tolist() == [7, 0, 9, 0, 3]
    monkeypatch.setattr(classification, "records", None)
    again = load_labelled(name, "test", str(tmp_path))
    np.testing.assert_array_equal(again.images, data.images)
    np.testing.assert_array_equal(again.labels, data.labels)


def test_scales_are_those_of_the_literature(made_up, tmp_path):
    made_up("cifar10")
    colour = load_labelled("cifar10", "train", tmp_path)
    assert colour.mean == (0.4914, 0.4822, 0.4465) and colour.std == (0.2023, 0.1994, 0.2010)
    made_up("fashion_mnist")
    grey = load_labelled("fashion_mnist", "train", tmp_path)
    assert (grey.mean, grey.std) == ((0.0,), (1.0,))


def test_what_is_missing_says_what_to_do(tmp_path, monkeypatch):
    fails("no labelled dataset 'omniglot'; there are: mnist, .*, glyphs", "omniglot", "train")
    fails("no split 'validation'; there are: train, test", "mnist", "validation")
    fails("cifar10: not prepared in .*'cifar10'.*download_and_prepare", "cifar10", "test", tmp_path)
    fails("mnist: data_dir .*: there is no such folder", "mnist", "test", tmp_path / "nowhere")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    fails(f"{tmp_path / 'tfds'}: there is no such folder", "mnist", "train")


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_outside_the_ten_classes_are_refused(made_up, tmp_path, monkeypatch, label):
    made_up("mnist")
    records = classification.records
    monkeypatch.setattr(
        classification,
        "records",
        lambda *args: ({**r, "label": np.int64(label)} for r in records(*args)),
    )
    fails(f"mnist: labels in .* must lie in 0 .. 9, got {label}", "mnist", "train", tmp_path)


def test_records_whose_images_are_none_are_a_data_error(made_up, tmp_path, monkeypatch):
    made_up("mnist")
    for broken in (b"no image", _png(np.zeros((3, 3), np.uint8))):
        one = [{"image": broken, "label": np.int64(1)}]
        monkeypatch.setattr(classification, "records", lambda *_, one=one: iter(one))
        fails("mnist: an image in .*: not a readable image: ", "mnist", "train", tmp_path)


def test_records_that_are_no_records_are_a_data_error(made_up, tmp_path, monkeypatch):
    real_records = classification.records
    made_up("mnist")
    monkeypatch.setattr(classification, "records", real_records)
    fails("mnist: TFDS cannot read it in ", "mnist", "train", tmp_path)
    monkeypatch.setattr(classification, "records", lambda *_: iter(()))
    fails("mnist: no train images in ", "mnist", "train", tmp_path)


@pytest.mark.parametrize("name", MEANS)
def test_real_data_are_the_published_ones(name):
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if not (root / name).is_dir():
        pytest.skip(f"{name} is not in {root}")
    data = load_labelled(name, "test")
    counts = np.bincount(data.labels).tolist()
    assert counts == (MNIST_TEST if name == "mnist" else [1000] * 10)
    means = data.images.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(means, MEANS[name], atol=2e-4)


def test_labelled_set_is_a_tree_with_static_scale():
    data = LabelledSet(np.zeros((2, 3, 4, 1), np.uint8), np.zeros(2, np.int32), (0.5,), (2.0,), 7)
    assert len(jax.tree.leaves(data)) == 2
    scale = jax.jit(lambda d: d.images.sum() + d.num_classes * d.mean[0] * d.std[0])(data)
    assert scale == 7.0 and data.image_shape == (3, 4, 1)


# --- the built-in digits ---


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return {s: digits.load_digits(s, folder, images_per_class=40) for s in ("train", "test")}


def test_digits_form(rendered):
    for data in rendered.values():
        assert data.images.shape == (400, 28, 28, 1) and data.images.dtype == np.uint8
        assert data.labels.dtype == np.int32 and (data.labels == np.arange(400) % 10).all()
        assert (data.mean, data.std, data.num_classes) == ((0.0,), (1.0,), 10)


def test_digits_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path))
    assert load_labelled("glyphs", "test").images.shape == (1000, 28, 28, 1)
    assert digits.IMAGES_PER_CLASS == {"train": 600, "test": 100}
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("digits-")


def test_no_digit_is_blank_and_no_two_are_equal_in_or_across_splits(rendered):
    pixels = np.concatenate([data.images.reshape(400, -1) for data in rendered.values()])
    ink = (pixels > 100).mean(1)
    assert ink.min() > 0.02 and ink.max() < 0.6
    assert len(np.unique(pixels, axis=0)) == 800


def test_digits_are_upright_and_told_apart_by_their_nearest_neighbours(rendered):
    """A 6 upside down is a 9: with such distortions, nearest neighbours would confuse them."""
    train, test = (rendered[s].images.reshape(400, -1).astype(float) for s in ("train", "test"))
    distance = (train**2).sum(1) - 2 * test @ train.T
    guess = rendered["train"].labels[distance.argmin(1)]
    right = guess == rendered["test"].labels
    assert right.mean() > 0.6
    six, nine = (rendered["test"].labels == digit for digit in (6, 9))
    assert (guess[six] == 9).mean() < 0.1 and (guess[nine] == 6).mean() < 0.1


def test_undistorted_digits_are_the_stamps_of_their_faces(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "DISTORTION", glyphs.Distortion(0.0, 0.0, 0.0, 0.0, 0.0))
    data = digits.load_digits("train", tmp_path, images_per_class=16)
    for digit in range(10):
        stamps = [glyphs._stamp(glyphs._font(f, 56), str(digit), 56) for f in glyphs.FACES]
        want = np.rint(np.stack(stamps).reshape(16, 28, 2, 28, 2).mean((2, 4)))
        got = data.images[data.labels == digit][..., 0].astype(float)
        gaps = np.abs(got[:, None] - want).max((2, 3))
        assert (gaps.min(0) <= 1).all() and (gaps.min(1) <= 1).all()  # every face, and only these


def test_digits_are_kept_and_read_back(tmp_path, monkeypatch):
    first = digits.load_digits("test", tmp_path, images_per_class=3)
    monkeypatch.setattr(digits, "_render", None)
    again = digits.load_digits("test", tmp_path, images_per_class=3)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert again.labels.dtype == np.int32


def test_digits_rendered_again_are_the_same_and_named_by_what_makes_them(tmp_path, monkeypatch):
    first, again = (digits._render("test", 2)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    name = digits._file_name("test", 2)
    assert name not in (digits._file_name("train", 2), digits._file_name("test", 3))
    monkeypatch.setattr(digits, "DISTORTION", digits.DISTORTION._replace(bend=0.01))
    assert name != digits._file_name("test", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("validation",), "digits: split must be train or test, got 'validation'"),
        (("test", None, 0), "digits: images_per_class must be a whole number >= 1, got 0"),
        (("test", None, True), "digits: images_per_class must be a whole number >= 1, got True"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(DataError, match=message):
        digits.load_digits(*arguments)
