"""Datasets in folders: one folder per class."""

import filecmp
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxsparse.data.cache import Rows, cached
from jaxsparse.data.files import has_control_characters, one_line
from jaxsparse.data.images import ImageSet, is_blank
from jaxsparse.data.pictures import has_content, is_grey, read_image
from jaxsparse.errors import DataError

SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFile(NamedTuple):
    """An image file that has not been opened.

    Attributes:
        path: its path.
        version: its size and the time of its last change.
        identity: its device and inode numbers.
        links: its number of hard links.
    """

    path: str
    version: str
    identity: tuple[int, int]
    links: int


Classes = dict[str, list[ImageFile]]


def load_folder(data_dir: Path, split: str, image_size: int | None = None) -> ImageSet:
    """Read one split of a tree `data_dir/{train, val or validation, test}/<class>/<image>`.

    Images have one channel if all training images are greyscale, else three. Without a train folder
    (a test set from another domain) the images of the split itself decide. Images are resized to a
    square. Hidden files, and files with other endings than those of images, are ignored. See
    `jaxsparse.data.pictures.fit` for the conversion to 8-bit pixels.

    Args:
        data_dir: the folder of the splits.
        split: "train", "validation" or "test".
        image_size: height and width in pixels; default: 84.

    Returns:
        An ImageSet on the host; colour images are normalised with ImageNet's mean and std.

    Raises:
        DataError: a folder is missing, empty or unreadable; an image is damaged; a class or file is
            in two splits; or all images of a class are blank after conversion.

    Examples:
        >>> load_folder(Path("birds"), "train").image_shape
        (84, 84, 3)
    """
    classes = scan(data_dir, split)
    check_apart(data_dir, split)
    reference = classes
    if split != "train" and _split_folder(data_dir, "train"):
        reference = scan(data_dir, "train")
        _check_different({f"train/{name}": files for name, files in reference.items()} | classes)
    size = image_size or 84

    def rows() -> Rows:
        files = (file.path for files in reference.values() for file in files)
        return folder_rows(classes, (size, size, 1 if all(map(is_grey, files)) else 3))

    key = [versions(found) for found in (classes, reference)]
    return cached(f"folder-{split}-{size}", key, rows)


def scan(root: Path, split: str) -> Classes:
    """List the images in every class folder of a split, without opening them; both sorted.

    DataError for a missing split, no class folders, a class folder without images, something
    unreadable, or one file under two names.

    Examples:
        >>> list(scan(Path("birds"), "train"))
        ['crow', 'finch']
    """
    folder = _split_folder(root, split)
    if folder is None:
        raise DataError(f"{root}: there is no folder {' or '.join(SPLIT_FOLDERS[split])} in it")
    return scan_classes(folder)


def scan_classes(folder: Path) -> Classes:
    """List the images in every class folder of `folder`; DataError as in `scan`."""
    classes = {name: _images(folder / name) for name in _class_names(folder)}
    if not classes:
        raise DataError(f"{one_line(folder)}: there are no class folders in it")
    _check_different(classes)
    return classes


def versions(classes: Classes) -> list[tuple[str, str, str]]:
    """A key that changes when the images change, but not if they are reached by another path.

    Examples:
        >>> versions(scan(Path("birds"), "train"))[1]
        ('crow', '1.png', '3021 1700000000000000000')
    """
    split = Path(next(iter(classes.values()))[0].path).parent.parent
    files = [(name, file) for name, files in classes.items() for file in files]
    return [
        (os.path.realpath(split), "", ""),
        *((name, file.path.rpartition(os.sep)[2], file.version) for name, file in files),
    ]


def check_apart(root: Path, split: str) -> None:
    """Raise DataError if a class of this split is also in another split.

    If two splits have the same class names and all of them are numbers, the classes may still
    differ: each split may number its classes from 0. Then they count as the same only if they
    share an image; without one, the test split only gives a warning.
    """
    folder = _split_folder(root, split)
    if folder is None:
        return
    for other in SPLIT_FOLDERS:
        there = None if other == split else _split_folder(root, other)
        same = there is not None and _share_names(folder, there)
        if same and (split, other) == ("test", "train"):
            warnings.warn(
                f"{one_line(root)}: the classes of train and test have the same names; if they are"
                " the same classes, the test set contains training classes",
                stacklevel=2,
            )


def _share_names(folder: Path, there: Path) -> bool:
    """Whether two splits have the same numbers as names; DataError if they share a class."""
    own, others = _class_names(folder), _class_names(there)
    numbered = own == others and all(name.isdigit() for name in own)
    places = {os.path.realpath(folder / name): name for name in own}
    for name in others:
        twin = places.get(os.path.realpath(there / name))
        if twin is None and name in own:
            twin = name if not numbered or _share_an_image(folder, there, name) else None
        if twin is not None:
            raise DataError(
                f"{one_line(folder / twin)} and {one_line(there / name)}: one class in two splits;"
                " it may be in only one"
            )
    return numbered


def _share_an_image(folder: Path, there: Path, name: str) -> bool:
    """Whether class `name` of two splits has an image with the same file name and content."""
    own = {Path(file.path).name: file for file in _images(folder / name)}
    for file in _images(there / name):
        twin = own.get(Path(file.path).name)
        with suppress(OSError):
            if twin is not None and filecmp.cmp(file.path, twin.path, shallow=False):
                return True
    return False


def _split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split; None if there is none."""
    for name in SPLIT_FOLDERS[split]:
        try:
            if stat.S_ISDIR((root / name).stat().st_mode):
                return root / name
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _unreadable(error, root / name) from error
    return None


def _class_names(folder: Path) -> list[str]:
    try:
        names = [entry.name for entry in _visible(folder) if _is_folder(entry)]
    except OSError as error:
        raise _unreadable(error, folder) from error
    for name in names:
        if has_control_characters(name):
            raise DataError(
                f"{one_line(folder)}: the class folder {name!r} must have a name that is UTF-8 and"
                " can be printed on one line"
            )
    return names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Not entry.is_dir(): it returns False for a broken link, whose class would be ignored.
    return stat.S_ISDIR(entry.stat().st_mode)


def _images(folder: Path) -> list[ImageFile]:
    """The images of a class."""
    files = []
    try:
        for entry in _visible(folder):
            if entry.name.lower().endswith(SUFFIXES):
                files.append(_image_file(entry.path, entry.stat()))
    except OSError as error:
        raise _unreadable(error, folder) from error
    if not files:
        kinds = " ".join(SUFFIXES)
        raise DataError(f"{one_line(folder)}: a class folder without images ({kinds})")
    return files


def _image_file(path: str, status: os.stat_result) -> ImageFile:
    version = f"{status.st_size} {status.st_mtime_ns}"
    return ImageFile(path, version, (status.st_dev, status.st_ino), status.st_nlink)


def _check_different(classes: Classes) -> None:
    """Raise DataError if two paths lead to the same file."""
    seen: dict[tuple[int, int], ImageFile] = {}
    for file in (file for files in classes.values() for file in files):
        twin = seen.setdefault(file.identity, file)
        # Some network file systems give two different files the same inode number.
        if twin is not file and (
            file.links > 1 or os.path.realpath(file.path) == os.path.realpath(twin.path)
        ):
            raise DataError(
                f"{one_line(file.path)} and {one_line(twin.path)}: one file under two names;"
                " no image may be there twice"
            )


def _unreadable(error: OSError, folder: Path) -> DataError:
    return DataError(f"{one_line(error.filename or folder)}: cannot be read: {error.strerror}")


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)


def folder_rows(classes: Classes, shape: tuple[int, int, int]) -> Rows:
    """The images found by `scan`, converted to `shape`.

    While they are read, DataError is raised for a damaged image, or if all images of a class are
    blank after conversion but not in the files, for example white strokes on transparent ground.
    """
    counts = [len(files) for files in classes.values()]
    return Rows(list(classes), counts, shape, _decoded(classes, shape))


def _decoded(classes: Classes, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    for name, files in classes.items():
        blank = True
        for file in files:
            image = read_image(file.path, shape)
            blank = blank and is_blank(image)
            yield image
        if blank and any(has_content(file.path) for file in files):
            raise DataError(
                f"{one_line(Path(files[0].path).parent)}: on white, at {shape[1]} x {shape[0]}"
                f" pixels, every image of class {name} is blank, although the files are not"
            )
