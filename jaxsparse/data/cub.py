"""Caltech-UCSD Birds 200-2011 for few-shot learning: 100 / 50 / 50 species."""

from pathlib import Path
from typing import Any

from jaxsparse.data.class_splits import split_of
from jaxsparse.data.images import ImageSet
from jaxsparse.data.prepared import load_prepared

_SPECIES = 200


def load_cub(split: str, data_dir: Path, image_size: int | None = None) -> ImageSet:
    """Read one split of CUB-200-2011.

    The species are in the order in which the data set numbers them: the 1st, 3rd, 5th, ... are for
    training, the 2nd, 6th, ... for validation, the 4th, 8th, ... for the test. All 41 to 60 images
    of a species are used, whole and not cut to the bird, resized to a square.

    Args:
        split: "train", "validation" or "test".
        data_dir: TFDS's data folder, with caltech_birds2011 prepared in the array_record format.
        image_size: height and width in pixels; default 84.

    Returns:
        An ImageSet on the host, images uint8 [images, 84, 84, 3], read from disk as they are used;
        mean and std are ImageNet's.

    Raises:
        DataError: caltech_birds2011 is not prepared in `data_dir`, or not all of it is there.

    Example:
        >>> load_cub("test", Path("~/tensorflow_datasets").expanduser()).num_classes
        50

    Source: Wah et al. 2011, The Caltech-UCSD Birds-200-2011 Dataset; the split is that of Chen et
        al. 2019, A Closer Look at Few-shot Classification.
    """

    def class_of(record: dict[str, Any]) -> str | None:
        label = int(record["label"])
        if split_of(label) != split:
            return None
        return f"{label + 1:03d}.{record['label_name'].decode()}"

    size = image_size or 84
    return load_prepared(
        f"cub-{split}-{size}",
        "caltech_birds2011",
        data_dir,
        (size, size, 3),
        class_of,
        sum(split_of(label) == split for label in range(_SPECIES)),
        encoded=("image", "segmentation_mask"),
    )
