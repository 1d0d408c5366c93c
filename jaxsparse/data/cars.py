"""Stanford Cars for few-shot learning: 98 / 49 / 49 models."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from jaxsparse.data.cache import Rows, Shape, cached
from jaxsparse.data.cars_names import NAMES
from jaxsparse.data.class_splits import split_of, split_source
from jaxsparse.data.files import one_line
from jaxsparse.data.folder import SPLIT_FOLDERS, folder_rows, scan_classes, versions
from jaxsparse.data.images import ImageSet
from jaxsparse.data.omniglot import prepared_files
from jaxsparse.data.prepared import load_prepared
from jaxsparse.errors import DataError


def load_cars(split: str, data_dir: Path, image_size: int | None = None) -> ImageSet:
    """Read one split of Stanford Cars.

    Taken from the first that is there:

    - class folders cars/{train,val,test}/<class> in TFDS's manual folder
      `data_dir/downloads/manual`, split as they are,
    - one tree of 196 class folders cars/<class> there,
    - the records of cars196 that TFDS prepared, train and test together.

    The latter two are split by the order of the classes: the 1st, 3rd, 5th, ... are for training,
    the 2nd, 6th, ... for validation, the 4th, 8th, ... for the test. The order is that in which the
    data set numbers its classes, so that both give the same split. Folders with other names than
    the data set's are taken in the order of their names, numbers in that of their values.

    Args:
        split: "train", "validation" or "test".
        data_dir: TFDS's data folder.
        image_size: height and width in pixels; default 84.

    Returns:
        An ImageSet on the host, images uint8 [images, 84, 84, 3], read from disk as they are used;
        mean and std are ImageNet's.

    Raises:
        DataError: nothing there, or not all of it, or a class in two splits.

    Example:
        >>> load_cars("test", Path("~/tensorflow_datasets").expanduser()).num_classes
        49

    Source: Krause et al. 2013, 3D Object Representations for Fine-Grained Categorization; the split
        is that of Tseng et al. 2020, Cross-Domain Few-Shot Classification via Learned Feature-Wise
        Transformation, who use half of the images of each class, cars196's "train".
    """
    shape = (image_size or 84, image_size or 84, 3)
    stem = f"cars-{split}-{shape[0]}"
    root = data_dir / "downloads" / "manual" / "cars"
    if root.is_dir():
        return cached(stem, *_folder_source(root, split, shape))
    if not prepared_files("cars196", data_dir):
        raise DataError(
            f"cars: not found in {one_line(root)}; put the class folders"
            " cars/{train,val,test}/<class>/*.jpg or all 196 cars/<class>/*.jpg into TFDS's manual"
            " folder (<data_dir>/downloads/manual), or prepare cars196 with TFDS"
        )

    chosen = {i: name for i, name in enumerate(NAMES) if split_of(i) == split}
    return load_prepared(
        stem,
        "cars196",
        data_dir,
        shape,
        lambda record: chosen.get(int(record["label"])),
        len(chosen),
    )


def _folder_source(root: Path, split: str, shape: Shape) -> tuple[Any, Callable[[], Rows]]:
    """A key that changes when the files of a split do, and a function that opens them as rows."""
    if any((root / name).is_dir() for names in SPLIT_FOLDERS.values() for name in names):
        return split_source(root, split, shape)
    classes = scan_classes(root)
    if len(classes) != len(NAMES):
        raise DataError(
            f"cars: {one_line(root)} holds {len(classes)} class folders, not {len(NAMES)}, and no"
            " folders train, val and test"
        )
    order = enumerate(_in_order(classes))
    chosen = {name: classes[name] for i, name in order if split_of(i) == split}
    return versions(chosen), partial(folder_rows, chosen, shape)


def _in_order(names: Iterable[str]) -> list[str]:
    """The class folders as the data set numbers its classes, else by number or name."""
    numbers = {_letters(name): i for i, name in enumerate(NAMES)}
    if all(_letters(name) in numbers for name in names):
        return sorted(names, key=lambda name: numbers[_letters(name)])
    if all(name.isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _letters(name: str) -> str:
    """A name without what copies differ in: case, blanks, and the slash that no folder can have."""
    return re.sub(r"[\W_]", "", name).lower()
