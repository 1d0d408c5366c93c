"""Trees of class folders, read once and kept decoded in a memory-mapped cache."""

import hashlib
import json
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxsparse.data.images import DataError, ImageSet, cache_dir

SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_CACHE_VERSION = 1  # raise it whenever the same source would give other bytes
_WHOLE = 64 * 2**20  # caches up to this size, in bytes, are checked whole; larger ones in samples


class Rows(NamedTuple):
    """A split about to be decoded: what it holds, and its images one by one.

    Args:
        names: one name per class.
        counts: number of images in each class, all above zero.
        shape: (height, width, channels) of every image.
        images: yields uint8 `shape` arrays, all of the first class, then all of the second, ...

    Example:
        >>> Rows(["a"], [2], (8, 8, 1), iter(np.zeros((2, 8, 8, 1), np.uint8))).counts
        [2]
    """

    names: list[str]
    counts: list[int]
    shape: tuple[int, int, int]
    images: Iterator[np.ndarray]


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


def cached(stem: str, key: Any, rows: Callable[[], Rows]) -> ImageSet:
    """The decoded images of `rows()`, memory-mapped from the cache; decoded only the first time.

    Several processes may ask at once: each writes a folder of its own and renames it when it is
    whole. A cache that is damaged (see `_checksum` for how far that is seen) is built anew.

    Args:
        stem: start of the cache folder's name.
        key: anything whose `repr` changes when the images do.
        rows: called when the cache has no such images.

    Returns:
        An ImageSet whose images are read from disk as they are used.

    Raises:
        DataError: the cache cannot be written, or whatever `rows` raises.

    Example:
        >>> cached("zeros", 1, lambda: Rows(["a"], [1], (8, 8, 1), iter(np.zeros((1, 8, 8, 1)))))
        ImageSet(...)
    """
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    path = cache_dir() / f"{stem}-v{_CACHE_VERSION}-{digest}"
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    found = _open(path)
    if found is not None:
        return found
    try:
        partial.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _write(partial, rows())
        if path.exists() and _open(path) is None:
            shutil.rmtree(path)
        with suppress(OSError):  # another process was first
            partial.rename(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot write the cache: {error.strerror};"
            " set JAXSPARSE_CACHE to a folder with room"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    found = _open(path)
    if found is None:
        raise DataError(f"{path}: cannot write the cache; delete what is there")
    return found


def _write(folder: Path, rows: Rows) -> None:
    classes, most = len(rows.counts), max(rows.counts)
    header = {"descr": "|u1", "fortran_order": False, "shape": (classes, most, *rows.shape)}
    # Plain writes and no memory map: on a full disk those raise, a map kills the process.
    with (folder / "images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for count in rows.counts:
            block = np.zeros((most, *rows.shape), np.uint8)
            block[:count] = np.stack(list(islice(rows.images, count)))
            file.write(block.data)
    images = np.load(folder / "images.npy", mmap_mode="r")
    meta = {"names": rows.names, "counts": rows.counts}
    meta["checksum"] = _checksum(images, meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def _open(path: Path) -> ImageSet | None:
    try:
        meta = json.loads((path / "meta.json").read_text())
        images = np.load(path / "images.npy", mmap_mode="r")
        if meta.pop("checksum") != _checksum(images, meta):
            return None
        counts = np.asarray(meta["counts"], np.int32)
        names = tuple(meta["names"])
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
        return None
    colour = images.shape[-1] == 3
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if colour else ((0.0,), (1.0,))
    return ImageSet(np.asarray(images), counts, names, mean, std)


def _checksum(images: np.ndarray, meta: dict[str, Any]) -> int:
    # Of everything up to _WHOLE bytes; beyond, of 512 samples: enough to see a file cut short,
    # zeroed or overwritten, and it keeps opening a gigabyte well under half a second.
    flat = images.reshape(-1)
    total = zlib.crc32(repr((images.shape, images.dtype, meta)).encode())
    if flat.size <= _WHOLE:
        return zlib.crc32(flat.data, total)
    for start in np.linspace(0, flat.size - 4096, 512).astype(int):
        total = zlib.crc32(flat[start : start + 4096].data, total)
    return total
