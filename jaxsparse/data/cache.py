"""Decoded images, written once and memory-mapped ever after."""

import hashlib
import json
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

from jaxsparse.data.images import DataError, ImageSet
from jaxsparse.user_cache import cache_dir

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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
