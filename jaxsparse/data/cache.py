"""A cache of decoded images: written once, then memory-mapped."""

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsparse import machine
from jaxsparse.data.files import open_file, put
from jaxsparse.data.images import ImageSet
from jaxsparse.errors import DataError
from jaxsparse.user_cache import cache_dir, partial, remove

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CACHE_VERSION = 2  # increase it whenever the same source would give other bytes
_WHOLE = 64 * 2**20  # bytes; up to this size the checksum covers all pixels, above it samples
_HEADER = 128  # bytes of images.npy before the first pixel

Shape = tuple[int, int, int]


class Rows(NamedTuple):
    """A split that is being decoded.

    Attributes:
        names: one name per class.
        counts: number of images in each class, all above zero.
        shape: (height, width, channels) of every image.
        images: yields uint8 arrays of `shape`: all images of the first class, then of the second...
    """

    names: list[str]
    counts: list[int]
    shape: Shape
    images: Iterator[np.ndarray]


def cached(stem: str, key: Any, rows: Callable[[], Rows]) -> ImageSet:
    """The images of `rows()`, memory-mapped from the cache; decoded only the first time.

    Several processes may call it at once: each writes its own folder and renames it when it is
    complete. A damaged cache (as far as `_checksum` finds damage) is built again.

    Args:
        stem: start of the cache folder's name.
        key: any value whose `repr` changes when the images change.
        rows: called if the images are not in the cache.

    Raises:
        DataError: the cache cannot be written, or the images are too large for the disk or the
            memory. Errors of `rows` are passed on.
    """
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    path = cache_dir() / f"{stem}-v{_CACHE_VERSION}-{digest}"
    found = _open(path)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial(path) as new:
            new.mkdir()
            _write(new, rows())
            _place(new, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot write the cache: {error.strerror};"
            " set JAXSPARSE_CACHE to a folder with room"
        ) from error
    found = _open(path)
    if found is None:
        raise DataError(f"{path}: cannot write the cache; delete what is there")
    return found


def _place(new: Path, path: Path) -> None:
    """Move a new folder to `path`, unless a whole one is there: another process may read it."""
    for _ in range(3):
        with suppress(OSError):  # something is there
            put(new, path)
            return
        if _open(path) is not None:
            return
        remove(path)


def _write(folder: Path, rows: Rows) -> None:
    shape = (sum(rows.counts), *rows.shape)
    _check_room(folder, shape)
    digest = hashlib.sha256()
    # Plain writes, not a memory map: on a full disk a memory map would kill the process.
    with (folder / "images.npy").open("wb") as file:
        file.write(_header(shape))
        for image in islice(rows.images, shape[0]):
            pixels = np.ascontiguousarray(image, np.uint8).data
            file.write(pixels)
            digest.update(pixels)
    meta = {"names": rows.names, "counts": rows.counts, "shape": list(rows.shape)}
    meta["digest"] = digest.hexdigest()
    meta["checksum"] = _checksum(_map(folder / "images.npy", shape), meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def _check_room(folder: Path, shape: tuple[int, ...]) -> None:
    """Raise DataError unless the pixels fit on the disk and into the memory."""
    size, text = math.prod(shape), " x ".join(map(str, shape))
    for there, where in (
        (shutil.disk_usage(folder).free, "free in the cache; set JAXSPARSE_CACHE to a larger disk"),
        (machine.memory() or math.inf, "memory in this machine; use fewer or smaller images"),
    ):
        if size > there:
            raise DataError(
                f"{text} bytes of pixels are {size / 1e9:.3g} GB, there are"
                f" {there / 1e9:.3g} GB {where}"
            )


def _header(shape: tuple[int, ...]) -> bytes:
    """The header of a uint8 .npy file; it does not depend on NumPy's version."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text = text.ljust(_HEADER - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The memory-mapped pixels of a .npy file; ValueError unless it has this shape."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != _HEADER + math.prod(shape) or file.read(_HEADER) != _header(shape):
            raise ValueError(f"{path} does not hold {shape} pixels")
        return np.asarray(np.memmap(file, np.uint8, "r", _HEADER, shape))


def _open(path: Path) -> ImageSet | None:
    """The set stored at `path`; None if there is none or it is damaged."""
    try:
        with open_file(path / "meta.json") as file:
            meta = json.loads(file.read())
        checksum, counts, names = meta.pop("checksum"), meta["counts"], tuple(meta["names"])
        images = _map(path / "images.npy", (sum(counts), *meta["shape"]))
        if checksum != _checksum(images, meta):
            return None
    # All errors that parsing a damaged file may raise.
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    colour = images.shape[-1] == 3
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if colour else ((0.0,), (1.0,))
    return ImageSet(images, np.asarray(counts, np.int32), names, mean, std)


def _checksum(images: np.ndarray, meta: dict[str, Any]) -> int:
    # Above _WHOLE bytes only 512 samples are read: enough to detect a truncated, zeroed or
    # overwritten file, and opening a gigabyte takes well under half a second.
    flat = images.reshape(-1)
    total = zlib.crc32(repr((images.shape, meta)).encode())
    if flat.size <= _WHOLE:
        return zlib.crc32(flat.data, total)
    for start in np.linspace(0, flat.size - 4096, 512).astype(int):
        total = zlib.crc32(flat[start : start + 4096].data, total)
    return total
