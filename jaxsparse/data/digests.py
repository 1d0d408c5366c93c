"""A digest of everything that a data object holds."""

import dataclasses
import hashlib
import json
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def fingerprint(data: Any) -> str:
    """A digest of the data: pixels, labels, counts, names, scales.

    Equal data have the same digest on every machine and in every folder; one changed pixel or name
    changes it. Images in the cache are not read again, because their digest was stored when they
    were decoded.

    Args:
        data: an ImageSet, LabelledSet, TaskStream or SwitchingData, or dicts, lists and tuples of
            these; arrays may be NumPy's or JAX's.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: `data` contains something other than these, arrays, strings, numbers and None.

    Examples:
        >>> load = jaxsparse.data.load
        >>> train, test = load("glyphs", "train"), load("glyphs", "test")
        >>> fingerprint(train) == fingerprint(load("glyphs", "train")) != fingerprint(test)
        True
    """
    return hashlib.sha256(json.dumps(_content(data), sort_keys=True).encode()).hexdigest()


def _content(value: Any) -> Any:
    """`value` in a form that JSON can hold; arrays become their digests."""
    if value is None or isinstance(value, str | bool | np.bool_):
        return value if not isinstance(value, np.bool_) else bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, Mapping):
        return {str(name): _content(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_content(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"is": type(value).__name__, **_content(parts)}
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return [array.dtype.name, list(array.shape), stored_digest(array) or digest(array)]
    raise TypeError(f"data: a fingerprint cannot be taken of {type(value).__name__}")


def digest(array: np.ndarray) -> str:
    """SHA-256 of the elements in row-major order, little-endian."""
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(plain.reshape(-1).view(np.uint8).data).hexdigest()


def stored_digest(array: np.ndarray) -> str | None:
    """The digest that the cache stored, if `array` is the whole memory-mapped file; else None."""
    mapped: Any = array
    while isinstance(mapped.base, np.ndarray):
        mapped = mapped.base
    whole = (
        isinstance(mapped, np.memmap)
        and mapped.filename is not None
        and array.flags.c_contiguous
        and array.dtype == mapped.dtype == np.uint8
        and array.nbytes == mapped.nbytes
    )
    if not whole:
        return None
    try:
        meta = json.loads((Path(mapped.filename).parent / "meta.json").read_text())
        return str(meta["digest"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
