"""Labelled images in the order they were recorded in: what a continual stream is made of."""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsparse.checks import described, is_array
from jaxsparse.data.cache import Rows, cached
from jaxsparse.data.images import DataError, check_range, check_scales
from jaxsparse.data.omniglot import prepared_files, records
from jaxsparse.data.pictures import opened
from jaxsparse.data.sources import find_data_dir

Scale = tuple[float, ...]

NAMES = ("mnist", "fashion_mnist", "cifar10", "glyphs")
SPLITS = ("train", "test")
_SCALES: dict[str, tuple[Scale, Scale]] = {
    "mnist": ((0.0,), (1.0,)),
    "fashion_mnist": ((0.0,), (1.0,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
_SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LabelledSet:
    """Images with a label each; a model sees (images / 255 - mean) / std.

    The set is a pytree: `images` and `labels` are its leaves, the rest is static. Hand it to
    compiled functions as an argument (a closure would bake the images into the program), and
    put it on the device once, with `jax.device_put(data)`.

    Args:
        images: uint8 [n, height, width, channels].
        labels: int32 [n], from 0 to num_classes - 1.
        mean: one number per channel, on the scale [0, 1].
        std: one number per channel, on the scale [0, 1].
        num_classes: number of classes.

    Example:
        >>> import numpy as np
        >>> images, labels = np.zeros((3, 28, 28, 1), np.uint8), np.arange(3, dtype=np.int32)
        >>> LabelledSet(images, labels, (0.0,), (1.0,), 10).image_shape
        (28, 28, 1)
    """

    images: Any
    labels: Any
    mean: Scale = field(metadata={"static": True})
    std: Scale = field(metadata={"static": True})
    num_classes: int = field(metadata={"static": True})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return tuple(self.images.shape[1:])


def check_labelled(name: str, data: LabelledSet) -> None:
    """Raise DataError unless the parts of a set go together; traced labels are not looked at."""
    images, labels = data.images, data.labels
    if not is_array(images) or images.ndim != 4 or images.dtype != np.uint8:
        raise DataError(f"{name}.images must be uint8 [n, h, w, c], got {described(images)}")
    if np.shape(labels) != images.shape[:1]:
        raise DataError(f"{name}.labels must be [{len(images)}], got {list(np.shape(labels))}")
    check_range(f"{name}.labels", labels, 0, data.num_classes - 1)
    check_scales(name, data)


def load_labelled(
    name: str, split: str, data_dir: str | os.PathLike[str] | None = None
) -> LabelledSet:
    """Load one split of a data set of ten classes, in the order of its records.

    | name | what | images, train and test | shape |
    |---|---|---|---|
    | mnist | handwritten digits | 60,000 and 10,000 | 28, 28, 1 |
    | fashion_mnist | pieces of clothing | 60,000 and 10,000 | 28, 28, 1 |
    | cifar10 | photographs of animals and vehicles | 50,000 and 10,000 | 32, 32, 3 |
    | glyphs | digits rendered by this package, nothing to download | 6,000 and 1,000 | 28, 28, 1 |

    The first call decodes into the cache (see `cache_dir`), later ones open it in a moment.

    Args:
        name: one of the above.
        split: "train" or "test".
        data_dir: TFDS's data folder, default $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
        A LabelledSet of NumPy arrays, its images read from disk as they are used. Mean 0 and std 1
        but for cifar10, which has its own, channel by channel.

    Raises:
        DataError: no such data set or split, or the data are missing or damaged; the message is
            one line that says what to do.

    Example:
        >>> load_labelled("mnist", "test").images.shape
        (10000, 28, 28, 1)
    """
    if name not in NAMES:
        raise DataError(f"there is no labelled data set {name!r}; there are: {', '.join(NAMES)}")
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}; there are: {', '.join(SPLITS)}")
    if name == "glyphs":
        from jaxsparse.data.digits import load_digits  # here, as it needs LabelledSet

        return load_digits(split)
    folder = find_data_dir(name, data_dir)
    key = prepared_files(name, folder)
    if not key:
        raise DataError(
            f"{name}: not prepared in {folder}; do so once, with TensorFlow installed:"
            ' python -c "import tensorflow_datasets as tfds;'
            f" tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
        )
    data = cached(f"{name}-{split}", (split, key), lambda: _rows(name, split, folder))
    labels = np.array([int(label) for label in data.names], np.int32)
    check_range(f"{name}: labels in {folder}", labels, 0, 9)
    mean, std = _SCALES[name]
    return LabelledSet(data.images, labels, mean, std, 10)


def _rows(name: str, split: str, data_dir: Path) -> Rows:
    """Every record as a class of one image that is named by its label: this keeps their order."""
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
