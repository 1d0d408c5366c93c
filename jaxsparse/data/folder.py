"""Trees of class folders."""

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
    """An image that has been found but not opened.

    Args:
        path: where it is.
        version: its size and the time of its last change.
        identity: the numbers of its disk and of its place there.
        links: the number of names that the file has.

    Example:
        >>> scan(Path("birds"), "train")["crow"][0].path
        'birds/train/crow/1.png'
    """

    path: str
    version: str
    identity: tuple[int, int]
    links: int


Classes = dict[str, list[ImageFile]]


def load_folder(data_dir: Path, split: str, image_size: int | None = None) -> ImageSet:
    """Read one split of a tree `data_dir/{train, val or validation, test}/<class>/<image>`.

    Images have one channel where all training images are greyscale, else three (without a train
    folder, as in a test set from another domain, the split itself decides). They are resized to
    a square, whatever their shape. Hidden files and files that are no images are passed over.
    How pixels of each kind become 8 bits is described in `jaxsparse.data.pictures.fit`.

    Args:
        data_dir: the folder that holds the splits.
        split: "train", "validation" or "test".
        image_size: height and width in pixels; default 84.

    Returns:
        An ImageSet on the host, normalised with ImageNet's mean and std where it has colour.

    Raises:
        DataError: a folder is missing, empty or unreadable, an image is broken, a class or a file
            is in two splits, or nothing is to be seen in the images of a class.

    Example:
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
    """List the images in every class folder of a split, without opening them.

    Args:
        root: the folder that holds the splits' folders.
        split: "train", "validation" (in the folder val or validation) or "test".

    Returns:
        Sorted class names -> sorted files.

    Raises:
        DataError: no such folder, no class folders in it, a class folder without images, something
            unreadable or that is no file, or one file twice.

    Example:
        >>> list(scan(Path("birds"), "train"))
        ['crow', 'finch']
    """
    folder = _split_folder(root, split)
    if folder is None:
        raise DataError(f"{root}: there is no folder {' or '.join(SPLIT_FOLDERS[split])} in it")
    return scan_classes(folder)


def scan_classes(folder: Path) -> Classes:
    """List the images in every class folder of one folder, as `scan` does for a split's.

    Example:
        >>> list(scan_classes(Path("birds/train")))
        ['crow', 'finch']
    """
    classes = {name: _images(folder / name) for name in _class_names(folder)}
    if not classes:
        raise DataError(f"{one_line(folder)}: there are no class folders in it")
    _check_different(classes)
    return classes


def versions(classes: Classes) -> list[tuple[str, str, str]]:
    """What changes when the images do, but not with the way that leads to them.

    Args:
        classes: what `scan` found.

    Example:
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
    """Raise DataError where a class of this split is in another one, too.

    Names alone do not tell where two splits have the same ones and these are numbers, which may be
    counted anew in each. Then one image that is in both tells; without one the test split warns.
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
                " the same classes, the test measures what was trained on",
                stacklevel=2,
            )


def _share_names(folder: Path, there: Path) -> bool:
    """Whether two splits number their classes alike; DataError if they share a class."""
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
                " it may be in one only"
            )
    return numbered


def _share_an_image(folder: Path, there: Path, name: str) -> bool:
    """Whether two folders of one class hold an image of the same name and content."""
    own = {Path(file.path).name: file for file in _images(folder / name)}
    for file in _images(there / name):
        twin = own.get(Path(file.path).name)
        with suppress(OSError):
            if twin is not None and filecmp.cmp(file.path, twin.path, shallow=False):
                return True
    return False


def _split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split; None where there is none."""
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
    # Not entry.is_dir(), to which a dangling link is no folder: its class would go missing.
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
    """Raise DataError where two names lead to one file."""
    seen: dict[tuple[int, int], ImageFile] = {}
    for file in (file for files in classes.values() for file in files):
        twin = seen.setdefault(file.identity, file)
        # Some network file systems give two files one number.
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
    """What `scan` found, as rows of images of one shape.

    Args:
        classes: class names -> files.
        shape: (height, width, channels) to resize and convert to.

    Raises:
        DataError: while it is read, see `read_image`; or the images of a class turn out blank
            although there is something in the files, as with white strokes on a transparent ground.

    Example:
        >>> folder_rows(scan(Path("birds"), "train"), (84, 84, 3)).names
        ['crow', 'finch']
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
                f" pixels, every image of class {name} is blank: nothing is left of what is in them"
            )
