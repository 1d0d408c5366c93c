"""`convert`: datasets at another image shape, mean and std."""

import jax.numpy as jnp
import numpy as np
import pytest
from made_up import pixels, tree
from PIL import Image

from jaxsparse.data import DataError, ImageSet, conversion, convert, load

GREY, COLOUR = ((0.0,), (1.0,)), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))


def image_set(images, counts=None, scales=None):
    counts = np.array([len(images)] if counts is None else counts, np.int32)
    names = tuple(f"class {i}" for i in range(len(counts)))
    return ImageSet(images, counts, names, *(scales or (GREY if images.shape[3] == 1 else COLOUR)))


def row(*values):
    """One grey image of one row."""
    return image_set(np.array(values, np.uint8)[None, None, :, None])


# --- channels ---


def test_grey_becomes_rgb_by_repetition():
    images = pixels(0, 6, 5)[None, :, :, :1]
    data = convert(image_set(images), (6, 5, 3), *COLOUR)
    np.testing.assert_array_equal(data.images, images.repeat(3, axis=3))
    assert (data.mean, data.std) == COLOUR and data.images.dtype == np.uint8


def test_rgb_becomes_grey_by_luma():
    primaries = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (10, 20, 30)]
    data = convert(image_set(np.array([[primaries]], np.uint8)), (1, 5, 1), *GREY)
    # 0.299 red + 0.587 green + 0.114 blue: 76.2, 149.7, 29.1, 255, 18.2
    assert data.images.ravel().tolist() == [76, 150, 29, 255, 18]
    images = np.stack([pixels(seed, 9, 9) for seed in range(3)])
    data = convert(image_set(images), (9, 9, 1), *GREY)
    for got, image in zip(data.images, images, strict=True):
        np.testing.assert_array_equal(got[..., 0], np.asarray(Image.fromarray(image).convert("L")))


# --- sizes ---


def test_growing_is_linear_between_the_centres_of_pixels():
    # Centres of the four new pixels in units of the old: 1/4, 3/4, 5/4, 7/4. Old centres: 1/2, 3/2.
    data = convert(row(0, 100), (2, 4, 1), *GREY)
    assert data.images[0, ..., 0].tolist() == [[0, 25, 75, 100]] * 2


def test_shrinking_averages():
    # Weights of the four old pixels in the second of two new pixels: 0, 1/7, 3/7, 3/7.
    assert convert(row(0, 0, 0, 70), (1, 2, 1), *GREY).images.ravel().tolist() == [0, 30]
    assert convert(row(0, 70, 70, 70), (1, 2, 1), *GREY).images.ravel().tolist() == [40, 70]


def test_height_and_width_are_not_mixed_up():
    quarters = np.array([[0, 80], [160, 240]], np.uint8).repeat(4, 0).repeat(2, 1)
    image = convert(image_set(quarters[None, :, :, None]), (4, 12, 1), *GREY).images[0, ..., 0]
    assert image[::3, ::11].tolist() == [[0, 80], [160, 240]]
    assert (np.diff(image.astype(int)) >= 0).all() and (
        np.diff(image.astype(int), axis=0) >= 0
    ).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_converted_set_is_what_a_folder_gives_at_that_shape(tmp_path, channels):
    tree(tmp_path, {"train": {"a": 2, "b": 1}}, size=(20, 20), channels=channels)
    data = load("folder", "train", tmp_path, image_size=20)
    for size in (7, 20, 41):
        wanted = load("folder", "train", tmp_path, image_size=size)
        got = convert(data, wanted.image_shape, data.mean, data.std)
        np.testing.assert_array_equal(got.images, wanted.images)
        np.testing.assert_array_equal(got.counts, wanted.counts)
        assert got.names == wanted.names == ("a", "b")


# --- copies and the cache ---


def test_nothing_is_copied_if_no_pixel_changes(monkeypatch):
    monkeypatch.setattr(conversion, "fit", None)
    data = image_set(pixels(0, 6, 6)[None])
    assert convert(data, (6, 6, 3), *COLOUR) is data
    assert convert(data, np.array([6, 6, 3]), *map(np.array, COLOUR)) is data
    other = convert(data, [6, 6, 3], (0, 0, 0), [1, 1, 1])
    assert other.images is data.images and (other.mean, other.std) == ((0.0,) * 3, (1.0,) * 3)
    assert data.mean == COLOUR[0]


def test_converted_images_are_cached_and_mapped(monkeypatch):
    sets = [image_set(np.stack([pixels(seed, 6, 6)] * 3), [2, 1]) for seed in (0, 1)]
    first = [convert(data, (9, 9, 3), *COLOUR) for data in sets]
    assert (first[0].images != first[1].images).any()
    monkeypatch.setattr(conversion, "fit", None)
    for data, before in zip(sets, first, strict=True):
        again = convert(data, (9, 9, 3), (0.0,) * 3, (1.0,) * 3)
        np.testing.assert_array_equal(again.images, before.images)
        assert again.mean == (0.0,) * 3 and not again.images.flags.owndata


def test_sets_that_differ_only_in_their_classes_have_different_caches():
    images = np.stack([pixels(seed, 6, 6) for seed in range(4)]).reshape(2, 2, 6, 6, 3)
    for counts in ([1, 2], [2, 1]):
        data = ImageSet(images, np.array(counts, np.int32), ("a", "b"), *COLOUR)
        new = convert(data, (6, 6, 1), *GREY)
        assert new.counts.tolist() == counts
    renamed = ImageSet(images, np.array([2, 1], np.int32), ("b", "c"), *COLOUR)
    assert convert(renamed, (6, 6, 1), *GREY).names == ("b", "c")


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_classes_of_unequal_sizes_keep_their_images(array):
    images = np.stack([np.full((3, 4, 4, 1), 10 * i, np.uint8) for i in range(3)])
    names = ("a", "b", "c")
    data = ImageSet(array(images), np.array([1, 2, 1], np.int32), names, (0.0,), (1.0,))
    new = convert(data, (6, 6, 3), *COLOUR)
    assert (
        new.counts.tolist() == [1, 2, 1] and new.names == names and new.largest == data.largest == 3
    )
    assert [new.of_class(i).mean() for i in range(3)] == [0, 10, 20]
    assert new.images.shape == (4, 6, 6, 3)


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((9, 9), *GREY), r"image_shape must be \(height, width, channels\), .*got \(9, 9\)"),
        (((9, 0, 1), *GREY), "image_shape must be"),
        (((9, 9.5, 1), *GREY), "image_shape must be"),
        (((9, 9, True), *GREY), "image_shape must be"),
        (((9, 9, 4), *GREY), "image_shape must be .* 1 or 3 channels"),
        (((9, 9, 3), *GREY), "mean must have 3 values, one per channel"),
        (((9, 9, 1), (0.0,), (0.0,)), "std must be finite and not 0"),
        (((9, 9, 1), ("grey",), (1.0,)), "could not convert"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(DataError, match=message) as caught:
        convert(row(0, 1), *arguments)
    assert "\n" not in str(caught.value)


def test_sets_with_other_channels_are_refused():
    two = ImageSet(np.zeros((1, 4, 4, 2), np.uint8), np.array([1]), ("a",), (0.0,) * 2, (1.0,) * 2)
    with pytest.raises(DataError, match=r"data's images must be .* 1 or 3 channels"):
        convert(two, (4, 4, 3), *COLOUR)
    with pytest.raises(DataError, match=r"data\.images must be uint8"):
        convert(image_set(np.zeros((1, 4, 4, 1))), (4, 4, 3), *COLOUR)
