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
from jaxsparse.data.prepared import load_prepared, prepared_files
from jaxsparse.errors import DataError


def load_cars(split: str, data_dir: Path, image_size: int | None = None) -> ImageSet:
    """Read one split of Stanford Cars, images of 84x84 unless `image_size` is given.

    The first of these sources that exists is read:

    - class folders cars/{train,val,test}/<class> in TFDS's manual folder
      `data_dir/downloads/manual`,
    - 196 class folders cars/<class> in the same folder,
    - the records of cars196 that TFDS prepared, train and test together.

    The last two are split by `split_of`, in the dataset's order of the classes, so both give the
    same split. If the folders have other names, they are sorted by name, or by value if all names
    are numbers.

    Source: Krause et al. 2013, 3D Object Representations for Fine-Grained Categorization. The split
        is from Tseng et al. 2020, Cross-Domain Few-Shot Classification via Learned Feature-Wise
        Transformation. They use only cars196's "train", half of the images of each class.
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
    """A key that changes when the files of a split change, and a function that opens them."""
    if any((root / name).is_dir() for names in SPLIT_FOLDERS.values() for name in names):
        return split_source(root, split, shape)
    classes = scan_classes(root)
    if len(classes) != len(NAMES):
        raise DataError(
            f"cars: {one_line(root)} must have folders train, val and test, or {len(NAMES)} class"
            f" folders, got {len(classes)} class folders"
        )
    order = enumerate(_in_order(classes))
    chosen = {name: classes[name] for i, name in order if split_of(i) == split}
    return versions(chosen), partial(folder_rows, chosen, shape)


def _in_order(names: Iterable[str]) -> list[str]:
    """The class folders in the dataset's order of the classes, else by number or name."""
    numbers = {_letters(name): i for i, name in enumerate(NAMES)}
    if all(_letters(name) in numbers for name in names):
        return sorted(names, key=lambda name: numbers[_letters(name)])
    if all(name.isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _letters(name: str) -> str:
    """The letters and digits of a name in lower case; copies differ in the other characters."""
    return re.sub(r"[\W_]", "", name).lower()
