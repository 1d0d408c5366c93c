"""Untrusted pickles: the content of miniImageNet's is read, and nothing else is executed."""

import collections
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest

from jaxsparse.data import DataError, load
from jaxsparse.data.plain_pickles import PickledArray, load_plain

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 3), dtype=np.uint8)


@pytest.fixture
def read(tmp_path):
    def read_bytes(content):
        (tmp_path / "file.pkl").write_bytes(content)
        return load_plain(tmp_path / "file.pkl")

    return read_bytes


class Reduced:
    """An object whose `__reduce__` returns a given value."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def dtype_with(*state):
    return Reduced(np.dtype, ("V8", False, True), state)


def array_with(*state):
    return Reduced(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_arrays_come_back(read, protocol):
    turned = np.asfortranarray(np.arange(12, dtype=">i4").reshape(3, 4))
    plain = {"a": [1, -(2**70), True, None, "ä", (), (1, (2,))], "b": {5: [[]]}}
    content = {"plain": plain, "images": IMAGES, "turned": turned, "twice": [turned, turned]}
    got = read(pickle.dumps(content | {"number": np.int64(-3)}, protocol))
    assert got["plain"] == plain and got["number"] == -3
    for name, wanted in (("images", IMAGES), ("turned", turned)):
        np.testing.assert_array_equal(got[name].array, wanted)
        assert got[name].array.dtype == wanted.dtype
    assert got["twice"][0] is got["twice"][1] is got["turned"]


# Written by Python 2 with NumPy 1, protocols 0 and 2: {"x": np.array([[1, 200]], np.uint8)}.
PYTHON_2 = {
    0: b"(dp0\nS'x'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\n"
    b"S'b'\np5\ntp6\nRp7\n(I1\n(I1\nI2\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n"
    b"(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS'\\x01\\xc8'\np15\ntp16\nbs.",
    2: b"\x80\x02}q\x00U\x01xq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03"
    b"K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x01K\x02\x86q\x08cnumpy\ndtype\nq\tU\x02u1q\n"
    b"K\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01|q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb"
    b"\x89U\x02\x01\xc8q\x0ftq\x10bs.",
}


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_files_of_python_2_are_read(read, protocol):
    got = read(PYTHON_2[protocol])["x"].array
    assert got.tolist() == [[1, 200]] and got.dtype == np.uint8


U1 = np.dtype("u1")
OBJECT_FIELD = dtype_with(3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 8, 0)
REFUSED = {
    "a type with a field of objects": array_with(1, (1,), OBJECT_FIELD, False, b"A" * 8),
    "a type with a subarray": dtype_with(3, "|", (U1, (2,)), None, None, 8, 1, 0),
    "a type that is aligned as it likes": Reduced(
        np.dtype, ("u1", False, True), (3, "|", None, None, None, 2**40, 1, 0)
    ),
    "a type with flags": Reduced(
        np.dtype, ("u1", False, True), (3, "|", None, None, None, -1, -1, 63)
    ),
    "objects": np.array([None, {}], object),
    "floats": np.zeros(3),
    "texts": np.array(["ab"]),
    "dates": np.zeros(2, "M8[s]"),
    "records": np.zeros(2, [("a", "u1"), ("b", "i4")]),
    "fewer bytes than the shape says": array_with(1, (2**40,), U1, False, b"A" * 8),
    "more bytes than the shape says": array_with(1, (4,), U1, False, b"A" * 8),
    "a shape whose size wraps around": array_with(1, (2**32, 2**32), U1, False, b""),
    "a shape below zero": array_with(1, (-1, -8), U1, False, b"A" * 8),
    "a shape of texts": array_with(1, ("8",), U1, False, b"A" * 8),
    "no type": array_with(1, (8,), None, False, b"A" * 8),
    "a list in place of bytes": array_with(1, (2,), U1, False, [1, 2]),
    "a state of another length": array_with(1, (8,), U1, False, b"A" * 8, 1),
    "another class of arrays": Reduced(np.zeros(0).__reduce__()[0], (dict, (0,), b"b")),
    "a function's state": Reduced(np.dtype, ("u1", False, True), {"shape": 1}),
    "state on a list": Reduced(np.ndarray, (), [1]),
    "a buffer that is none": Reduced(np.zeros(0).__reduce_ex__(5)[0], ([1], U1, (1,), "C")),
    "a module of NumPy's": Reduced(np.fromfile, ("/etc/passwd",)),
    "another encoding": Reduced(__import__("_codecs").encode, ("00", "hex")),
    "code": Reduced(eval, ("1",)),
    "an ordered dict": collections.OrderedDict(a=1),
    "a complex number": 1j,
    "a float": 0.5,
    "a set": {1},
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_refused(tmp_path, kind, protocol):
    content = {"image_data": IMAGES, "class_dict": {"a": [0]}, "more": REFUSED[kind]}
    file = tmp_path / "downloads" / "manual" / "mini-imagenet-cache-test.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(DataError, match=r"^.*test\.pkl: not a miniImageNet pickle: ") as caught:
        load("mini_imagenet", "test", tmp_path)
    assert "\n" not in str(caught.value)


DEEP = 200_000  # deep enough that recursion would overflow the stack
PROTO, STOP = b"\x80\x04", b"."
SIZE = struct.Struct("<Q")
HOSTILE = {
    "persistent": b"Px\n.",
    "persistent, binary": b"K\x01Q.",
    "an extension": b"\x82\x01.",
    "an instance": b"(cnumpy\nndarray\no.",
    "a new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a module of another name": b"cnumpy.core.multiarray\nfromfile\n(tR.",
    "a dotted name": PROTO + b"\x8c\x05numpy\x8c\x0edtype.__init__\x93" + STOP,
    "a name that is a number": PROTO + b"K\x01K\x02\x93" + STOP,
    "a place in the memo of 4 GB": b"Nr\xff\xff\xff\xff0Nq\x00.",
    "a place in the memo that is empty": b"h\x07.",
    "a frame of 2^62": PROTO + b"\x95" + SIZE.pack(2**62) + b"N.",
    "bytes of 2^62": PROTO + b"\x8e" + SIZE.pack(2**62) + b"N.",
    "bytes of 2^36": PROTO + b"\x8e" + SIZE.pack(2**36) + b"N.",
    "a text of 2^36": PROTO + b"\x8d" + SIZE.pack(2**36) + b"N.",
    "an array of bytes of 2^36": b"\x80\x05\x96" + SIZE.pack(2**36) + b"N.",
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7fN.",
    "a text below zero long": b"T\xff\xff\xff\xffN.",
    "a tuple a million deep": b")" + b"\x85" * DEEP + b".",
    "a tuple a million deep as a key": b"})" + b"\x85" * DEEP + b"Ns.",
    "keys in a dict at once": b"()" + b"\x85" * DEEP + b"Nd.",
    "lists in lists": b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "marks": b"(" * DEEP + b".",
    "nothing": b"",
    "no end": b"N",
    "an empty stack": b".",
    "a call of nothing": b"R.",
    "a call of a number": b"K\x01)R.",
    "a state for nothing": b"b.",
    "a state on a dict": b"}}b.",
    "a state on a type of None": b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tRNb.",
    "a protocol to come": b"\x80\xffN.",
    "text in place of an instruction": b"<!DOCTYPE html><html></html>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_instructions_do_no_harm(read, kind):
    """Each gives an exception or a plain value, with little memory; a crash would end pytest."""
    tracemalloc.start()
    try:
        got = read(HOSTILE[kind])
    except Exception:
        got = None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert got is None or isinstance(got, tuple | list | PickledArray)
    assert peak < 2**27


def test_endless_pickles_end(read, monkeypatch):
    monkeypatch.setattr("jaxsparse.data.plain_pickles._MOST_STEPS", 1000)
    with pytest.raises(pickle.UnpicklingError, match="more than 1000 steps"):
        read(b"N0" * 501 + b"N.")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_changed_bytes_give_an_error_or_plain_values(read, protocol):
    rng = np.random.default_rng(protocol)
    whole = pickle.dumps({"image_data": IMAGES[:1, :2, :2], "class_dict": {"a": [0]}}, protocol)
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 4)):
            content[at] = rng.integers(256)
        try:
            got = read(bytes(content))
        except Exception:
            continue
        kinds = dict | list | tuple | str | bytes | int | PickledArray | None
        assert isinstance(got, kinds) or callable(got)


def test_no_instruction_of_the_usual_files_is_missing():
    """All instructions in pickles of such content, of every protocol, as pickletools lists them."""
    from jaxsparse.data.plain_pickles import _INSTRUCTIONS

    content = {"image_data": IMAGES, "class_dict": {"a": [0, np.int64(1), 300, 70000]}}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        used = {code.name for code, _, _ in pickletools.genops(pickle.dumps(content, protocol))}
        assert used <= set(_INSTRUCTIONS.split()), protocol
