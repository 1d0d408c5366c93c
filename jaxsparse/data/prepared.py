"""Records that TFDS prepared, as images class by class."""

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxsparse.data.cache import Rows, Shape, cached
from jaxsparse.data.images import ImageSet
from jaxsparse.data.locations import not_prepared
from jaxsparse.data.omniglot import prepared_files, records
from jaxsparse.data.pictures import read_image
from jaxsparse.errors import DataError

ClassOf = Callable[[dict[str, Any]], str | None]


def load_prepared(
    stem: str,
    name: str,
    data_dir: Path,
    shape: Shape,
    class_of: ClassOf,
    count: int,
    encoded: Sequence[str] = ("image",),
) -> ImageSet:
    """Some of the classes of a data set of TFDS's, the images of its train and test split together.

    Args:
        stem: start of the cache folder's name, with what tells these classes from others.
        name: TFDS's name of the data set.
        data_dir: TFDS's data folder.
        shape: (height, width, channels) that the images should have.
        class_of: the class of a record, or None to leave the record out.
        count: how many classes there should be.
        encoded: see `prepared_rows`.

    Returns:
        An ImageSet, uint8 [images, *shape], classes sorted by name, read from disk as it is used.

    Raises:
        DataError: the data set is not prepared, or another number of classes is there.

    Example:
        >>> folder = Path("~/tensorflow_datasets").expanduser()
        >>> frog_of = lambda record: "frog" if record["label"] == 6 else None
        >>> load_prepared("frogs", "cifar10", folder, (32, 32, 3), frog_of, 1).counts
        array([6000], dtype=int32)
    """
    key = prepared_files(name, data_dir)
    if not key:
        raise not_prepared(name, data_dir)

    def rows() -> Rows:
        found = prepared_rows(name, ("train", "test"), data_dir, shape, class_of, encoded)
        if len(found.names) != count:
            raise DataError(
                f"{name}: {data_dir} holds images of {len(found.names)} classes of this split, not"
                f" of {count}; prepare it again"
            )
        return found

    return cached(stem, key, rows)


def prepared_rows(
    name: str,
    splits: Sequence[str],
    data_dir: Path,
    shape: Shape,
    class_of: ClassOf,
    encoded: Sequence[str] = ("image",),
) -> Rows:
    """The records of some of TFDS's splits as rows, those of a class one after the other.

    Args:
        name: TFDS's name of the data set.
        splits: TFDS's names of the splits, whose records are put together in this order.
        data_dir: TFDS's data folder.
        shape: (height, width, channels) that the images should have.
        class_of: the class of a record, or None to leave the record out.
        encoded: the fields of a record that hold images; only "image" is read.

    Returns:
        Rows of the classes sorted by name.

    Raises:
        DataError: TFDS cannot read the records; while the rows are read: an image that is none.

    Example:
        >>> folder = Path("~/tensorflow_datasets").expanduser()
        >>> rows = prepared_rows(
        ...     "cifar10", ("test",), folder, (32, 32, 3), lambda record: str(record["label"])
        ... )
        >>> rows.counts[:3]
        [1000, 1000, 1000]
    """
    found = defaultdict(list)
    for split in splits:
        for record in records(name, split, data_dir, encoded):
            called = class_of(record)
            if called is not None:
                found[called].append(record["image"])
    names = sorted(found)
    images = (
        read_image(io.BytesIO(image), shape, f"{name}: an image of {called} in {data_dir}")
        for called in names
        for image in found[called]
    )
    return Rows(names, [len(found[called]) for called in names], shape, images)
