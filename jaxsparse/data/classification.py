"""Datasets of ten classes, from which continual-learning streams are made."""

import io
import os
from pathlib import Path

import numpy as np

from jaxsparse.data.cache import Rows, cached
from jaxsparse.data.digits import load_digits
from jaxsparse.data.images import check_range
from jaxsparse.data.labelled import LabelledSet, Scale
from jaxsparse.data.locations import find_data_dir, not_prepared
from jaxsparse.data.pictures import opened
from jaxsparse.data.prepared import prepared_files, records
from jaxsparse.errors import DataError

NAMES = ("mnist", "fashion_mnist", "cifar10", "glyphs")
SPLITS = ("train", "test")
_SCALES: dict[str, tuple[Scale, Scale]] = {
    "mnist": ((0.0,), (1.0,)),
    "fashion_mnist": ((0.0,), (1.0,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
_SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def load_labelled(
    name: str, split: str, data_dir: str | os.PathLike[str] | None = None
) -> LabelledSet:
    """Load one split of a dataset with ten classes, in the order of its records.

    | name | what | images, train and test | shape |
    |---|---|---|---|
    | mnist | handwritten digits | 60,000 and 10,000 | 28, 28, 1 |
    | fashion_mnist | pieces of clothing | 60,000 and 10,000 | 28, 28, 1 |
    | cifar10 | photographs of animals and vehicles | 50,000 and 10,000 | 32, 32, 3 |
    | glyphs | digits rendered by this package, nothing to download | 6,000 and 1,000 | 28, 28, 1 |

    The first call decodes the images into the cache (see `cache_dir`); later calls open the cache.

    Args:
        name: one of the above.
        split: "train" or "test".
        data_dir: TFDS's data folder; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
        A LabelledSet of NumPy arrays; images are read from disk when they are used. Mean 0 and std
        1, except for cifar10, which has its own mean and std per channel.

    Raises:
        DataError: there is no such dataset or split, or the data are missing or damaged; the
            message is one line that says what to do.

    Examples:
        >>> load_labelled("mnist", "test").images.shape
        (10000, 28, 28, 1)
    """
    if name not in NAMES:
        raise DataError(f"there is no labelled dataset {name!r}; there are: {', '.join(NAMES)}")
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}; there are: {', '.join(SPLITS)}")
    if name == "glyphs":
        return load_digits(split)
    folder = find_data_dir(name, data_dir)
    key = prepared_files(name, folder)
    if not key:
        raise not_prepared(name, folder)
    data = cached(f"{name}-{split}", (split, key), lambda: _rows(name, split, folder))
    labels = np.array([int(label) for label in data.names], np.int32)
    check_range(f"{name}: labels in {folder}", labels, 0, 9)
    mean, std = _SCALES[name]
    return LabelledSet(data.images, labels, mean, std, 10)


def _rows(name: str, split: str, data_dir: Path) -> Rows:
    """Each record as a class with one image, named by its label: this keeps their order."""
    found = list(records(name, split, data_dir))
    if not found:
        raise DataError(f"{name}: no {split} images in {data_dir}; prepare it again")
    labels = [str(int(record["label"])) for record in found]
    shape = _SHAPES[name]
    called = f"{name}: an image in {data_dir}"
    images = (
        opened(lambda image: np.asarray(image).reshape(shape), io.BytesIO(record["image"]), called)
        for record in found
    )
    return Rows(labels, [1] * len(found), shape, images)
