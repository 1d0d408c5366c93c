"""miniImageNet's class folders and pickles in TFDS's manual folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxsparse.data.cache import Rows
from jaxsparse.data.class_splits import split_source
from jaxsparse.data.files import has_control_characters, version
from jaxsparse.data.pictures import fit
from jaxsparse.data.plain_pickles import PickledArray, read_plain
from jaxsparse.errors import DataError

INSTRUCTIONS = (
    "put the class folders mini_imagenet/{train,val,test}/<class>/*.jpg, or the three files"
    " mini-imagenet-cache-{train,val,test}.pkl, into TFDS's manual folder"
    " (<data_dir>/downloads/manual)"
)
_PICKLES = {"train": "train", "validation": "val", "test": "test"}


def manual_source(
    manual: Path, split: str, shape: tuple[int, int, int] = (84, 84, 3)
) -> tuple[Any, Callable[[], Rows]]:
    """Find one split in TFDS's manual folder: its pickle, else its class folders.

    Returns:
        A key that changes when the files change, and a function that opens them as `Rows` with
        images of `shape`.

    Raises:
        DataError: the files are missing, or class folders cannot be read.
    """
    if not is_there(manual):
        raise DataError(f"mini_imagenet: not found in {manual}; {INSTRUCTIONS}")
    name = f"mini-imagenet-cache-{_PICKLES[split]}.pkl"
    for file in (manual / name, manual / "mini_imagenet" / name):
        if file.is_file():
            return version(file), partial(_pickle_rows, file, shape)
    return split_source(manual / "mini_imagenet", split, shape)


def is_there(manual: Path) -> bool:
    return (manual / "mini_imagenet").is_dir() or any(manual.glob("mini-imagenet-cache-*.pkl"))


def _pickle_rows(file: Path, shape: tuple[int, int, int]) -> Rows:
    images, classes = read_plain(file, _parse, "miniImageNet")
    wanted = isinstance(images, np.ndarray) and images.dtype == np.uint8
    if not (wanted and images.ndim == 4 and images.shape[3] == 3 and images.size and classes):
        raise DataError(
            f"{file}: image_data must be uint8 [n, height, width, 3], class_dict not empty"
        )
    for name, where in classes.items():
        if where.ndim != 1 or not where.size or where.min() < 0 or where.max() >= len(images):
            raise DataError(f"{file}: class {name} must list indices into {len(images)} images")
    every = np.concatenate(list(classes.values()))
    if len(np.unique(every)) < len(every):
        raise DataError(f"{file}: class_dict must list no image twice")
    decoded = (fit(Image.fromarray(images[i]), shape) for i in every)
    return Rows(list(classes), [len(where) for where in classes.values()], shape, decoded)


def _parse(content: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The images, and the indices of the images of each class."""
    images, listed = _value(content["image_data"]), content["class_dict"]
    return images, {_name(k): _indices(_value(v)) for k, v in sorted(listed.items())}


def _value(content: Any) -> Any:
    return content.array if isinstance(content, PickledArray) else content


def _name(key: Any) -> str:
    if not isinstance(key, str) or has_control_characters(key):
        raise ValueError(f"class_dict must have names on one line, got {str(key)[:60]!r}")
    return key


def _indices(listed: Any) -> np.ndarray:
    if isinstance(listed, list | tuple) and not all(type(i) is int for i in listed):
        raise ValueError("class_dict must list whole numbers")
    return np.asarray(listed, np.int64)
