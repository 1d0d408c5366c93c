"""miniImageNet, the split of Ravi & Larochelle: 64 / 16 / 20 classes of 600 images."""

import io
import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxsparse.data.cache import Rows, cached
from jaxsparse.data.files import has_control_characters, one_line
from jaxsparse.data.folder import check_apart, folder_rows, scan, versions
from jaxsparse.data.images import ImageSet
from jaxsparse.data.omniglot import prepared_files, records
from jaxsparse.data.pictures import fit, read_image
from jaxsparse.data.plain_pickles import PickledArray, load_plain
from jaxsparse.errors import DataError

INSTRUCTIONS = (
    "put the class folders mini_imagenet/{train,val,test}/<class>/*.jpg, or the three files"
    " mini-imagenet-cache-{train,val,test}.pkl, into TFDS's manual folder"
    " (<data_dir>/downloads/manual)"
)
_PICKLES = {"train": "train", "validation": "val", "test": "test"}


def load_mini_imagenet(split: str, data_dir: Path, image_size: int | None = None) -> ImageSet:
    """Read one split of miniImageNet.

    Taken from the first that is there: class folders or pickles in TFDS's manual folder
    `data_dir/downloads/manual`, or the records that TFDS prepared from them with
    `jaxsparse.data.mini_imagenet_builder`. Images of other sizes are resized.

    Args:
        split: "train", "validation" or "test".
        data_dir: TFDS's data folder.
        image_size: height and width in pixels; default 84.

    Returns:
        An ImageSet on the host, images uint8 [600 classes, 84, 84, 3], read from disk as they are
        used; there are 64, 16 or 20 classes, mean and std are ImageNet's.

    Raises:
        DataError: nothing there, or it is damaged.

    Example:
        >>> load_mini_imagenet("test", Path("~/tensorflow_datasets").expanduser()).num_classes
        20
    """
    shape = (image_size or 84, image_size or 84, 3)
    manual = data_dir / "downloads" / "manual"
    prepared = prepared_files("mini_imagenet", data_dir)
    stem = f"mini_imagenet-{split}-{shape[0]}"
    if prepared and not _is_there(manual):
        return cached(stem, prepared, partial(_prepared_rows, data_dir, split, shape))
    return cached(stem, *manual_source(manual, split, shape))


def manual_source(
    manual: Path, split: str, shape: tuple[int, int, int] = (84, 84, 3)
) -> tuple[Any, Callable[[], Rows]]:
    """Find one split in TFDS's manual folder; its pickle before its class folders.

    Args:
        manual: TFDS's manual folder.
        split: "train", "validation" or "test".
        shape: (height, width, 3) that the images should have.

    Returns:
        A key that changes when the files do, and a function that opens them as rows of images.

    Raises:
        DataError: nothing there, or class folders that cannot be read.

    Example:
        >>> key, rows = manual_source(Path("downloads/manual"), "train")
        >>> len(rows().names)
        64
    """
    if not _is_there(manual):
        raise DataError(f"mini_imagenet: not found in {manual}; {INSTRUCTIONS}")
    name = f"mini-imagenet-cache-{_PICKLES[split]}.pkl"
    for file in (manual / name, manual / "mini_imagenet" / name):
        if file.is_file():
            status = file.stat()
            key = (os.path.realpath(file), status.st_size, status.st_mtime_ns)
            return key, partial(_pickle_rows, file, shape)
    root = manual / "mini_imagenet"
    classes = scan(root, split)
    check_apart(root, split)
    return versions(classes), partial(folder_rows, classes, shape)


def _is_there(manual: Path) -> bool:
    return (manual / "mini_imagenet").is_dir() or any(manual.glob("mini-imagenet-cache-*.pkl"))


def _prepared_rows(data_dir: Path, split: str, shape: tuple[int, int, int]) -> Rows:
    import jaxsparse.data.mini_imagenet_builder  # noqa: F401  makes the data set known to TFDS

    encoded = defaultdict(list)
    for record in records("mini_imagenet", split, data_dir):
        encoded[record["label"].decode()].append(record["image"])
    names = sorted(encoded)
    images = (
        read_image(io.BytesIO(image), shape, f"mini_imagenet: an image of {name} in {data_dir}")
        for name in names
        for image in encoded[name]
    )
    return Rows(names, [len(encoded[name]) for name in names], shape, images)


def _pickle_rows(file: Path, shape: tuple[int, int, int]) -> Rows:
    try:
        content = load_plain(file)
        images, listed = _value(content["image_data"]), content["class_dict"]
        classes = {_name(k): _indices(_value(v)) for k, v in sorted(listed.items())}
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{one_line(file)}: not a miniImageNet pickle: {reason}") from error
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
