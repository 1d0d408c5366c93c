"""Image datasets by name."""

import os
import stat
from numbers import Integral
from pathlib import Path

from jaxsparse.data.files import one_line
from jaxsparse.data.folder import SPLIT_FOLDERS, load_folder
from jaxsparse.data.glyphs import load_glyphs
from jaxsparse.data.images import ImageSet
from jaxsparse.data.mini_imagenet import load_mini_imagenet
from jaxsparse.data.omniglot import load_omniglot
from jaxsparse.errors import DataError

NAMES = ("glyphs", "omniglot", "omniglot-1200", "mini_imagenet", "folder")
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
    | folder | your own tree of class folders, see `load_folder` | 84, 84, 1 or 3 |

    The first call decodes the images into the cache (see `cache_dir`); later calls open the cache.

    Args:
        name: one of the above.
        split: "train", "validation" or "test".
        data_dir: for "folder" the root of the tree; else TFDS's data folder, default:
            $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        image_size: height and width in pixels to resize to; default: as above.

    Returns:
        An ImageSet of NumPy arrays; large sets are read from disk when they are used.

    Raises:
        DataError: there is no such dataset or split, or the data are missing or damaged; the
            message is one line that says what to do.

    Example:
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
    folder = find_data_dir(name, data_dir)
    if name == "folder":
        return load_folder(folder, split, image_size)
    if name == "mini_imagenet":
        return load_mini_imagenet(split, folder, image_size)
    return load_omniglot(split, folder, image_size, mixed=name == "omniglot-1200")


def _glyphs(split: str, image_size: int | None) -> ImageSet:
    data = load_glyphs(split)
    if image_size not in (None, data.image_shape[0]):
        raise DataError(f"glyphs: image_size must be {data.image_shape[0]}, got {image_size}")
    return data


def find_data_dir(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of a dataset, `data_dir` or TFDS's default; DataError if there is none."""
    if data_dir is None and name == "folder":
        raise DataError("the dataset 'folder' needs data_dir, a tree train/<class>/<image> etc.")
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    given = os.fspath(default if data_dir is None else data_dir)
    path = os.path.expanduser(given)  # noqa: PTH111  Path.expanduser raises for an unknown user
    if given.startswith("~") and path == given:
        raise DataError(f"{name}: data_dir {one_line(given)}: has no home folder for ~")
    if reason := _no_folder(path):
        raise DataError(f"{name}: data_dir {one_line(path)[:200]}: {reason}")
    return Path(path)


def _no_folder(path: str) -> str | None:
    """Why `path` is not a readable folder; None if it is."""
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
        return "there is no such folder"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if stat.S_ISDIR(mode) else "is a file, not a folder"
