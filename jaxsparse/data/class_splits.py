"""Which classes of a data set are in which split."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jaxsparse.data.cache import Rows
from jaxsparse.data.folder import check_apart, folder_rows, scan, versions


def split_of(index: int) -> str:
    """The split of a class by its place among all: of each four two, one and one.

    Args:
        index: the class's number, from 0.

    Returns:
        "train", "validation" or "test".

    Example:
        >>> [split_of(i) for i in range(4)]
        ['train', 'validation', 'train', 'test']

    Source: Chen et al. 2019, A Closer Look at Few-shot Classification, public code
        (filelists/CUB/write_CUB_filelist.py).
    """
    return ("train", "validation", "train", "test")[index % 4]


def split_source(
    root: Path, split: str, shape: tuple[int, int, int]
) -> tuple[Any, Callable[[], Rows]]:
    """Find one split of a tree whose splits share no class.

    Args:
        root: the folder that holds the splits' folders.
        split: "train", "validation" or "test".
        shape: (height, width, channels) that the images should have.

    Returns:
        A key that changes when the files do, and a function that opens them as rows of images.

    Raises:
        DataError: as `scan` and `check_apart`.

    Example:
        >>> key, rows = split_source(Path("birds"), "train", (84, 84, 3))
        >>> rows().names
        ['crow', 'finch']
    """
    classes = scan(root, split)
    check_apart(root, split)
    return versions(classes), partial(folder_rows, classes, shape)
