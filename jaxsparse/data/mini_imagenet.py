"""miniImageNet, the split of Ravi & Larochelle: 64 / 16 / 20 classes of 600 images."""

from functools import partial
from pathlib import Path

from jaxsparse.data.cache import Rows, cached
from jaxsparse.data.images import ImageSet
from jaxsparse.data.mini_imagenet_files import is_there, manual_source
from jaxsparse.data.prepared import prepared_files, prepared_rows


def load_mini_imagenet(split: str, data_dir: Path, image_size: int | None = None) -> ImageSet:
    """Read one split of miniImageNet.

    The source is the pickles or class folders in TFDS's manual folder `data_dir/downloads/manual`;
    without them, the records that TFDS prepared with `jaxsparse.data.mini_imagenet_builder`. Images
    of other sizes are resized.

    Args:
        split: "train", "validation" or "test".
        data_dir: TFDS's data folder.
        image_size: height and width in pixels; default: 84.

    Returns:
        An ImageSet on the host, images uint8 [600 classes, 84, 84, 3], read from disk when they are
        used. There are 64, 16 or 20 classes; mean and std are ImageNet's.

    Raises:
        DataError: the data are missing or damaged.

    Examples:
        >>> load_mini_imagenet("test", Path("~/tensorflow_datasets").expanduser()).num_classes
        20
    """
    shape = (image_size or 84, image_size or 84, 3)
    manual = data_dir / "downloads" / "manual"
    prepared = prepared_files("mini_imagenet", data_dir)
    stem = f"mini_imagenet-{split}-{shape[0]}"
    if prepared and not is_there(manual):
        return cached(stem, prepared, partial(_prepared_rows, data_dir, split, shape))
    return cached(stem, *manual_source(manual, split, shape))


def _prepared_rows(data_dir: Path, split: str, shape: tuple[int, int, int]) -> Rows:
    import jaxsparse.data.mini_imagenet_builder  # noqa: F401  registers the dataset

    return prepared_rows(
        "mini_imagenet", (split,), data_dir, shape, lambda record: record["label"].decode()
    )
