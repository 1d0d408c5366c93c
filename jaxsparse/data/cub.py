"""Caltech-UCSD Birds 200-2011 for few-shot learning: 100 / 50 / 50 species."""

from pathlib import Path
from typing import Any

from jaxsparse.data.class_splits import split_of
from jaxsparse.data.images import ImageSet
from jaxsparse.data.prepared import load_prepared

_SPECIES = 200


def load_cub(split: str, data_dir: Path, image_size: int | None = None) -> ImageSet:
    """Read one split of CUB-200-2011, images of 84x84 unless `image_size` is given.

    The species are split by `split_of`, in the order of their labels. All images of a species are
    used, 41 to 60. They are not cropped to the bird.

    Source: Wah et al. 2011, The Caltech-UCSD Birds-200-2011 Dataset. The split is from Chen et al.
        2019, A Closer Look at Few-shot Classification.
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
