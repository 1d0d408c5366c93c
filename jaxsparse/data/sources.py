"""Image datasets by name."""

import os
from collections.abc import Callable
from functools import partial
from numbers import Integral
from pathlib import Path

from jaxsparse.data.cars import load_cars
from jaxsparse.data.cifar100 import load_cifar_fs, load_fc100
from jaxsparse.data.cub import load_cub
from jaxsparse.data.folder import SPLIT_FOLDERS, load_folder
from jaxsparse.data.glyphs import load_glyphs
from jaxsparse.data.images import ImageSet
from jaxsparse.data.locations import find_data_dir
from jaxsparse.data.mini_imagenet import load_mini_imagenet
from jaxsparse.data.omniglot import load_omniglot
from jaxsparse.data.ten_classes import load_ten_classes
from jaxsparse.data.tiered_imagenet import load_tiered_imagenet
from jaxsparse.errors import DataError

Reader = Callable[[str, Path, int | None], ImageSet]  # (split, data_dir, image_size)
_READERS: dict[str, Reader] = {
    "omniglot": load_omniglot,
    "omniglot-1200": partial(load_omniglot, mixed=True),
    "mini_imagenet": load_mini_imagenet,
    "tiered_imagenet": load_tiered_imagenet,
    "cub": load_cub,
    "cars": load_cars,
    "cifar_fs": load_cifar_fs,
    "fc100": load_fc100,
    "mnist": partial(load_ten_classes, "mnist"),
    "fashion_mnist": partial(load_ten_classes, "fashion_mnist"),
    "cifar10": partial(load_ten_classes, "cifar10"),
    "folder": lambda split, data_dir, image_size: load_folder(data_dir, split, image_size),
}
NAMES = ("glyphs", *_READERS)
SPLITS = tuple(SPLIT_FOLDERS)


def load(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> ImageSet:
    """Load one split of a dataset. The splits share no class.

    | name | what | shape of an image |
    |---|---|---|
    | glyphs | characters rendered by this package, nothing to download | fixed |
    | omniglot | splits share no alphabet, see `load_omniglot` | 28, 28, 1 |
    | omniglot-1200 | the 1,200 / 423 characters split, alphabets mixed | 28, 28, 1 |
    | mini_imagenet | 64 / 16 / 20 classes x 600 | 84, 84, 3 |
    | tiered_imagenet | 351 / 97 / 160 classes, splits share no superclass | 84, 84, 3 |
    | cub | 100 / 50 / 50 species of birds | 84, 84, 3 |
    | cars | 98 / 49 / 49 models of cars | 84, 84, 3 |
    | cifar_fs | 64 / 16 / 20 classes x 600 of CIFAR-100 | 32, 32, 3 |
    | fc100 | 60 / 20 / 20 classes x 600 of CIFAR-100, splits share no superclass | 32, 32, 3 |
    | mnist, fashion_mnist | 10 classes, only a test split | 28, 28, 1 |
    | cifar10 | 10 classes, only a test split | 32, 32, 3 |
    | folder | your own tree of class folders, see `load_folder` | 84, 84, 1 or 3 |

    The first call decodes the images into the cache (see `cache_dir`); later calls open the cache.

    Args:
        name: one of the above.
        split: "train", "validation" or "test".
        data_dir: for "folder" the root of the tree; else TFDS's data folder, default:
            $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        image_size: height and width in pixels to resize to; default: as above.

    Returns:
        An ImageSet of NumPy arrays, of JAX arrays for glyphs; large sets are read from disk when
        they are used.

    Raises:
        DataError: there is no such dataset or split, or the data are missing or damaged; the
            message is one line that says what to do.

    Examples:
        >>> load("mini_imagenet", "test").images.shape
        (12000, 84, 84, 3)
    """
    if name not in NAMES:
        raise DataError(f"there is no dataset {name!r}; there are: {', '.join(NAMES)}")
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}; there are: {', '.join(SPLITS)}")
    if image_size is not None and not isinstance(image_size, Integral):
        raise DataError(f"image_size must be a whole number of pixels, got {image_size!r}")
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be at least 1 pixel, got {image_size}")
    if name == "glyphs":
        return _glyphs(split, image_size)
    return _READERS[name](split, find_data_dir(name, data_dir), image_size)


def _glyphs(split: str, image_size: int | None) -> ImageSet:
    data = load_glyphs(split)
    if image_size not in (None, data.image_shape[0]):
        raise DataError(f"glyphs: image_size must be {data.image_shape[0]}, got {image_size}")
    return data
