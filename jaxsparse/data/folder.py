"""Trees of class folders."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxsparse.data.cache import Rows, cached
from jaxsparse.data.images import DataError, ImageSet

SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


def load_folder(data_dir: Path, split: str, image_size: int | None = None) -> ImageSet:
    """Read one split of a tree `data_dir/{train, val or validation, test}/<class>/<image>`.

    Images have one channel where all training images are greyscale, else three (without a train
    folder, as in a test set from another domain, the split itself decides). They are resized to
    a square, whatever their shape. Hidden files and files that are no images are passed over.

    Args:
        data_dir: the folder that holds the splits.
        split: "train", "validation" or "test".
        image_size: height and width in pixels; default 84.

    Returns:
        An ImageSet on the host, normalised with ImageNet's mean and std where it has colour.

    Raises:
        DataError: a folder is missing, empty or unreadable, or an image is broken.

    Example:
        >>> load_folder(Path("birds"), "train").image_shape
        (84, 84, 3)
    """
    classes = scan(data_dir, split)
    other = split != "train" and (data_dir / "train").is_dir()
    reference = scan(data_dir, "train") if other else classes
    size = image_size or 84

    def rows() -> Rows:
        files = (file for files in reference.values() for file, _ in files)
        shape = (size, size, 1 if all(map(_is_grey, files)) else 3)
        return folder_rows(classes, shape)

    return cached(f"folder-{split}-{size}", (list(classes.items()), list(reference.items())), rows)


def scan(root: Path, split: str) -> dict[str, list[tuple[str, str]]]:
    """List the images in every class folder of a split, without opening them.

    Args:
        root: the folder that holds the splits' folders.
        split: "train", "validation" (in the folder val or validation) or "test".

    Returns:
        Sorted class names -> sorted [(path, size and time of the last change)].

    Raises:
        DataError: no such folder, no class folders in it, a class folder without images, or
            something unreadable.

    Example:
        >>> list(scan(Path("birds"), "train"))
        ['crow', 'finch']
    """
    folders = [root / name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()]
    if not folders:
        raise DataError(f"{root}: there is no folder {' or '.join(SPLIT_FOLDERS[split])} in it")
    try:
        classes = {
            entry.name: [
                (file.path, f"{(stat := file.stat()).st_size} {stat.st_mtime_ns}")
                for file in _visible(entry.path)
                if file.name.lower().endswith(SUFFIXES)
            ]
            for entry in _visible(folders[0])
            if entry.is_dir()
        }
    except OSError as error:
        where = error.filename or folders[0]
        raise DataError(f"{where}: cannot be read: {error.strerror}") from error
    if not classes:
        raise DataError(f"{folders[0]}: there are no class folders in it")
    for name, files in classes.items():
        if not files:
            kinds = " ".join(SUFFIXES)
            raise DataError(f"{folders[0] / name}: a class folder without images ({kinds})")
    return classes


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)


def folder_rows(classes: dict[str, list[tuple[str, str]]], shape: tuple[int, int, int]) -> Rows:
    """What `scan` found, as rows of images of one shape.

    Args:
        classes: class names -> [(path, anything)].
        shape: (height, width, channels) to resize and convert to.

    Example:
        >>> folder_rows(scan(Path("birds"), "train"), (84, 84, 3)).names
        ['crow', 'finch']
    """
    images = (read_image(file, shape) for files in classes.values() for file, _ in files)
    return Rows(list(classes), [len(files) for files in classes.values()], shape, images)


def _is_grey(file: str) -> bool:
    return _guarded(lambda image: image.mode in _GREY_MODES, file, file)


def read_image(file: Any, shape: tuple[int, int, int], name: str | None = None) -> np.ndarray:
    """Decode one image, resized with an antialiased bilinear filter.

    Args:
        file: a path, or a binary file object.
        shape: (height, width, channels) wanted; channels is 1 or 3.
        name: what to call it in an error; default: the path.

    Returns:
        uint8 array of that shape.

    Raises:
        DataError: not an image, truncated, or so large that it must be a decompression bomb.

    Example:
        >>> read_image("birds/train/crow/1.jpg", (84, 84, 3)).shape
        (84, 84, 3)
    """
    return _guarded(lambda image: fit(image, shape), file, name or str(file))


def _guarded(use: Callable[[Image.Image], Any], file: Any, name: str) -> Any:
    try:
        with Image.open(file) as image:
            return use(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: not a readable image: {reason}") from error


def fit(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Convert an image to uint8 of a given shape.

    Args:
        image: of any size and mode; 16-bit greyscale is scaled to 8 bits.
        shape: (height, width, channels), channels 1 or 3.

    Returns:
        uint8 array of that shape.

    Example:
        >>> fit(Image.new("RGB", (100, 50)), (84, 84, 1)).shape
        (84, 84, 1)
    """
    height, width, channels = shape
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)
