"""Read untrusted pickles of plain containers, strings, whole numbers and arrays of whole numbers.

A pickle is a program. Only the instructions that such content needs are allowed, and the pickle
cannot call functions of Python or NumPy. Arrays are built here, after their shape, dtype and bytes
have been checked.
"""

import math
import os
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np

from jaxsparse.data.files import one_line, open_file
from jaxsparse.errors import DataError

_MOST_STEPS = 20_000_000  # instructions; tieredImageNet's largest file has at most 13 million
_MOST_AXES = 32
_TYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}

# See `pickletools` of the standard library. Numbers and strings; tuples, lists and dicts; the memo;
# names of functions, calls, and the state of the objects made by calls.
_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG
    LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST
    LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT
    LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""


class PickledArray:
    """An array in a pickle. `array` is set later, when its content is read.

    Examples:
        >>> load_plain("mini-imagenet-cache-test.pkl")["image_data"].array.shape
        (12000, 84, 84, 3)
    """

    array: np.ndarray


def read_plain(path: str | os.PathLike[str], parse: Callable[[Any], Any], kind: str) -> Any:
    """`parse` of the content of a pickle; a one-line DataError if it is not a pickle of this kind.

    Examples:
        >>> classes = read_plain("mini-imagenet-cache-test.pkl", sorted, "miniImageNet")
    """
    try:
        return parse(load_plain(path))
    except Exception as error:  # a damaged pickle raises many types of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{one_line(path)}: not a {kind} pickle: {reason}") from error


def load_plain(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of plain values and arrays of whole numbers, of any protocol.

    Strings of Python 2 are read as Latin-1. Memory and time are bounded by the size of the file.

    Returns:
        dicts, lists, tuples, strings, bytes, whole numbers and None; arrays as `PickledArray`.

    Raises:
        pickle.UnpicklingError, ValueError and others: it is truncated, or has other content.

    Examples:
        >>> load_plain("mini-imagenet-cache-test.pkl").keys()
        dict_keys(['image_data', 'class_dict'])
    """
    with open_file(path) as file:
        return _Reader(_Bounded(file), encoding="latin1").load()


class _Bounded:
    """A file that raises EOFError before it allocates memory for more bytes than are left."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._left = os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise EOFError("it is truncated")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


class _DType:
    """A dtype of whole numbers; its byte order comes later in the file."""

    def __init__(self, code: str):
        self.code, self.order = code, ""

    def take_state(self, state: Any) -> None:
        version, order, *rest = state
        # No fields, subarrays or objects.
        if version not in (3, 4) or rest != [None, None, None, -1, -1, 0]:
            raise ValueError("a dtype other than plain whole numbers")
        if order not in ("<", ">") and not (order == "|" and self.code[1] == "1"):
            raise ValueError("an invalid byte order")
        self.order = order


def _array(dtype: Any, content: Any, shape: Any, order: str) -> np.ndarray:
    """An array, after a check of its shape, dtype and bytes."""
    if isinstance(content, str):  # bytes of Python 2
        content = content.encode("latin1")
    if not isinstance(dtype, _DType) or not dtype.order or not isinstance(content, bytes):
        raise ValueError("an array without a dtype of whole numbers, or without bytes")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array with an invalid shape")
    kind = np.dtype(dtype.order + dtype.code)
    if len(shape) > _MOST_AXES or math.prod(shape) * kind.itemsize != len(content):
        raise ValueError("an array whose bytes do not fit its shape")
    return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")


def _make_dtype(code: Any, *unused: Any) -> _DType:
    if not isinstance(code, str) or code not in _TYPES:
        raise ValueError("an array of something other than whole numbers")
    return _DType(code)


def _make_array(kind: Any, *unused: Any) -> PickledArray:
    if kind is not PickledArray:
        raise ValueError("an array of another class than numpy.ndarray")
    return PickledArray()


def _array_of_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    made = PickledArray()
    made.array = _array(dtype, content, shape, order)
    return made


def _scalar(dtype: Any, content: Any) -> int:
    return int(_array(dtype, content, (), "C"))


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, in the form in which Python 3 stores them with protocols below 3."""
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError("bytes with another encoding than latin1")
    return text.encode("latin1")


def _named() -> dict[tuple[str, str], Any]:
    """Our replacements for the functions that the pickle of an array names."""
    named: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): PickledArray,
        ("numpy", "dtype"): _make_dtype,
        ("_codecs", "encode"): _encode,
    }
    for core in ("core", "_core"):
        named[f"numpy.{core}.multiarray", "_reconstruct"] = _make_array
        named[f"numpy.{core}.multiarray", "scalar"] = _scalar
        named[f"numpy.{core}.numeric", "_frombuffer"] = _array_of_buffer
    return named


class _Dict(dict):
    """A dict with plain keys only: hashing a tuple that is nested a million deep would crash."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | bytes | int):
            raise ValueError("a dict with keys other than strings and whole numbers")
        super().__setitem__(key, value)


def _dict(reader: Any) -> None:
    items, made = reader.pop_mark(), _Dict()
    for key, value in zip(items[::2], items[1::2], strict=True):
        made[key] = value
    reader.append(made)


def _build(reader: Any) -> None:
    state, made = reader.stack.pop(), reader.stack[-1]
    if not isinstance(state, tuple):
        raise ValueError("the state of something other than an array")
    if isinstance(made, _DType):
        made.take_state(state)
    elif isinstance(made, PickledArray):
        _, shape, dtype, columns_first, content = state
        made.array = _array(dtype, content, shape, "F" if columns_first else "C")
    else:
        raise ValueError("the state of something other than an array")


def _bytearray(reader: Any) -> None:
    reader.append(reader.read(int.from_bytes(reader.read(8), "little")))


class _Instructions(dict):
    def __missing__(self, code: int) -> Callable:
        raise pickle.UnpicklingError(f"it has the instruction {code}, which is not allowed")


def _instructions() -> _Instructions:
    usual: Any = pickle._Unpickler.dispatch
    own = {"EMPTY_DICT": lambda reader: reader.append(_Dict()), "DICT": _dict, "BUILD": _build}
    own["BYTEARRAY8"] = _bytearray
    codes = {name: getattr(pickle, name)[0] for name in _INSTRUCTIONS.split()}
    return _Instructions(
        {code: _counted(own.get(name, usual[code])) for name, code in codes.items()}
    )


def _counted(carry_out: Callable) -> Callable:
    def step(reader: Any) -> None:
        reader.steps += 1
        if reader.steps > _MOST_STEPS:
            raise pickle.UnpicklingError(f"it has more than {_MOST_STEPS} steps")
        carry_out(reader)

    return step


class _Reader(pickle._Unpickler):
    """The standard library's reader in Python, limited to the allowed instructions.

    The reader in C allocates memory for the largest memo index that a file names.
    """

    dispatch: ClassVar = _instructions()
    steps = 0
    _named: ClassVar = _named()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._named[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module[:60]}.{name[:60]}") from None
