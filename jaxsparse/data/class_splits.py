"""The classes of each split of a dataset."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jaxsparse.data.cache import Rows
from jaxsparse.data.folder import check_apart, folder_rows, scan, versions


def split_of(index: int) -> str:
    """The split of class number `index`: of every four classes 2 train, 1 validation, 1 test.

    Examples:
        >>> [split_of(i) for i in range(4)]
        ['train', 'validation', 'train', 'test']

    Source: Chen et al. 2019, A Closer Look at Few-shot Classification, public code
        (filelists/CUB/write_CUB_filelist.py).
    """
    return ("train", "validation", "train", "test")[index % 4]


def split_source(
    root: Path, split: str, shape: tuple[int, int, int]
) -> tuple[Any, Callable[[], Rows]]:
    """Find one split in a tree of folders; DataError as in `scan` and `check_apart`.

    Returns a key that changes when the files change, and a function that opens them as `Rows` with
    images of `shape`.
    """
    classes = scan(root, split)
    check_apart(root, split)
    return versions(classes), partial(folder_rows, classes, shape)
