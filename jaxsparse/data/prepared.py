"""Read the records that TFDS prepared, class by class."""

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxsparse.data.cache import Rows, Shape, cached
from jaxsparse.data.files import Version, version
from jaxsparse.data.images import ImageSet
from jaxsparse.data.locations import not_prepared
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
    """Read some classes of a dataset of TFDS, its train and test images together.

    The other arguments are those of `prepared_rows`. The cache folder's name begins with `stem`,
    which must be unique to these classes. DataError unless there are `count` classes.

    Examples:
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
                f"{name}: {data_dir} has images of {len(found.names)} classes of this split, want"
                f" {count}; prepare it again"
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
    """The records of some of TFDS's splits as `Rows`, with the classes sorted by name.

    `class_of` gives the class of a record, or None to skip the record. `encoded` names the fields
    that hold images; only "image" is read. `name` and `splits` are TFDS's names. DataError if TFDS
    cannot read the records, or if an image is damaged.
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


def prepared_files(name: str, data_dir: Path) -> list[Version]:
    """The array_record files that TFDS prepared for a dataset: `version` of each, sorted.

    The list is empty if the dataset is not prepared, or in another format.
    """
    # Without TFDS: importing it takes longer than opening the cache.
    files = sorted((data_dir / name).glob(f"*/{name}-*.array_record*"))
    whole = [f for f in files if not f.parent.name.startswith("incomplete")]
    return [version(file) for file in whole]


def records(
    name: str, split: str, data_dir: Path, encoded: Sequence[str] = ("image",)
) -> Iterator[dict[str, Any]]:
    """Read the examples that TFDS prepared, with encoded images; needs no TensorFlow.

    Yields a dict per example; "image" is the content of an image file. `name` and `split` are
    TFDS's names. `encoded` names the fields that hold images.

    Examples:
        >>> next(records("omniglot", "test", Path("~/tensorflow_datasets").expanduser())).keys()
        dict_keys(['alphabet', 'alphabet_char_id', 'image', 'label'])
    """
    import tensorflow_datasets as tfds  # slow to import, and only needed to fill the cache

    decoders = {field: tfds.decode.SkipDecoding() for field in encoded}
    try:
        yield from tfds.data_source(
            name, split=split, data_dir=data_dir, download=False, decoders=decoders
        )
    except Exception as error:  # TFDS and its readers raise many types of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: TFDS cannot read it in {data_dir}: {reason}") from error
