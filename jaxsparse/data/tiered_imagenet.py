"""tieredImageNet: 351 / 97 / 160 classes of ImageNet, no superclass in two splits."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxsparse.data.cache import Rows, Shape, cached
from jaxsparse.data.class_splits import split_source
from jaxsparse.data.files import has_control_characters, one_line, version
from jaxsparse.data.images import ImageSet
from jaxsparse.data.pictures import read_image
from jaxsparse.data.plain_pickles import PickledArray, read_plain
from jaxsparse.errors import DataError

_PICKLES = {"train": "train", "validation": "val", "test": "test"}
_NAME = "tieredImageNet"
_FOLDERS = ("tiered_imagenet", "tiered-imagenet")  # the archive has the second one
_IMAGES, _LABELS = "{}_images_png.pkl", "{}_labels.pkl"


def load_tiered_imagenet(split: str, data_dir: Path, image_size: int | None = None) -> ImageSet:
    """Read one split of tieredImageNet, images of 84x84 unless `image_size` is given.

    The source is the folder tiered_imagenet (or tiered-imagenet) in TFDS's manual folder
    `data_dir/downloads/manual`. It has the pickles {train,val,test}_images_png.pkl and
    {train,val,test}_labels.pkl, or class folders {train,val,test}/<class>. The pickles are
    preferred. The largest needs about 8 GB of memory while it is decoded, once.

    The pickles hold one PNG file per image, written with OpenCV. OpenCV has pixels as blue, green,
    red in memory but stores red, green, blue in the file. So the decoded colours are correct here.

    Source: Ren et al. 2018, Meta-Learning for Semi-Supervised Few-Shot Classification, and its
        public code.
    """
    shape = (image_size or 84, image_size or 84, 3)
    manual = data_dir / "downloads" / "manual"
    stem = f"tiered_imagenet-{split}-{shape[0]}"
    roots = [manual / name for name in _FOLDERS if (manual / name).is_dir()]
    for root in roots:
        if (root / _IMAGES.format(_PICKLES[split])).is_file():
            return cached(stem, *_pickle_source(root, split, shape))
    if not roots:
        raise DataError(
            f"tiered_imagenet: not found in {one_line(manual)}; put the class folders"
            " {train,val,test}/<class>/*.jpg, or the files {train,val,test}_images_png.pkl and"
            " {train,val,test}_labels.pkl, into the folder tiered_imagenet of TFDS's manual folder"
            " (<data_dir>/downloads/manual)"
        )
    return cached(stem, *split_source(roots[0], split, shape))


def _pickle_source(root: Path, split: str, shape: Shape) -> tuple[Any, Callable[[], Rows]]:
    """A key that changes when the pickles of a split change, and a function that opens them."""
    images, labels = (root / name.format(_PICKLES[split]) for name in (_IMAGES, _LABELS))
    if not labels.is_file():
        raise DataError(f"{one_line(labels)}: not found; {images.name} cannot be used without it")
    names, numbers = read_plain(labels, _parse_labels, _NAME)
    _check_apart(root, split, names)
    return [version(images), version(labels)], partial(_rows, images, names, numbers, shape)


def _check_apart(root: Path, split: str, names: list[str]) -> None:
    """Raise DataError if a class of this split is also in the pickle of another split."""
    for other in _PICKLES:
        labels = root / _LABELS.format(_PICKLES[other])
        if other == split or not labels.is_file():
            continue
        shared = set(names).intersection(read_plain(labels, _parse_labels, _NAME)[0])
        if shared:
            raise DataError(
                f"{one_line(root)}: the class {min(shared)!r} is in the labels of"
                f" {_PICKLES[split]} and of {_PICKLES[other]}; it may be in only one split"
            )


def _rows(file: Path, names: list[str], numbers: np.ndarray, shape: Shape) -> Rows:
    """The images of a pickle, class by class."""
    encoded = read_plain(file, _parse_images, _NAME)
    if len(encoded) != len(numbers):
        raise DataError(
            f"{one_line(file)}: it has {len(encoded)} images, but there are {len(numbers)} labels"
        )
    images = (
        read_image(io.BytesIO(encoded[i]), shape, f"{one_line(file)}: image {i}")
        for i in np.argsort(numbers, kind="stable")
    )
    return Rows(names, np.bincount(numbers).tolist(), shape, images)


def _parse_labels(content: Any) -> tuple[list[str], np.ndarray]:
    """The names of the classes, and the class number of every image."""
    names, numbers = content["label_specific_str"], content["label_specific"]
    numbers = numbers.array if isinstance(numbers, PickledArray) else np.asarray(numbers)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError("label_specific must be whole numbers [images]")
    if not isinstance(names, list) or not all(
        isinstance(name, str) and not has_control_characters(name) for name in names
    ):
        raise ValueError("label_specific_str must be a list of names on one line each")
    if len(set(names)) < len(names):
        raise ValueError("label_specific_str names a class twice")
    if not np.array_equal(np.unique(numbers), np.arange(len(names))):
        raise ValueError(f"label_specific must number the images of {len(names)} classes from 0")
    return names, numbers.astype(np.int64)


def _parse_images(content: Any) -> list[bytes]:
    """The PNG files; versions of OpenCV make arrays of uint8 [n] or [n, 1]."""
    if not isinstance(content, list):
        raise ValueError("it must be a list of encoded images")
    return [_png(entry) for entry in content]


def _png(entry: Any) -> bytes:
    if isinstance(entry, bytes):
        return entry
    if not isinstance(entry, PickledArray) or entry.array.dtype != np.uint8:
        raise ValueError("an image must be a uint8 array with the bytes of a PNG file")
    return entry.array.tobytes()
