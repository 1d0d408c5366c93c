"""Labelled images in the order of their records."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxsparse.checks import described, is_array
from jaxsparse.data.images import check_range, check_scales
from jaxsparse.errors import DataError

Scale = tuple[float, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LabelledSet:
    """Images with one label each; a model sees (images / 255 - mean) / std.

    The set is a pytree: `images` and `labels` are its leaves, the rest is static. Pass it to
    compiled functions as an argument (a closure would store the images in the program), and put it
    on the device once, with `jax.device_put(data)`.

    Args:
        images: uint8 [n, height, width, channels].
        labels: int32 [n], from 0 to num_classes - 1.
        mean: one number per channel, on the scale [0, 1].
        std: one number per channel, on the scale [0, 1].
        num_classes: number of classes.

    Examples:
        >>> import numpy as np
        >>> images, labels = np.zeros((3, 28, 28, 1), np.uint8), np.arange(3, dtype=np.int32)
        >>> LabelledSet(images, labels, (0.0,), (1.0,), 10).image_shape
        (28, 28, 1)
    """

    images: Any
    labels: Any
    mean: Scale = field(metadata={"static": True})
    std: Scale = field(metadata={"static": True})
    num_classes: int = field(metadata={"static": True})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return tuple(self.images.shape[1:])


def check_labelled(name: str, data: LabelledSet) -> None:
    """Raise DataError unless the parts of a set are consistent; traced labels are not checked."""
    images, labels = data.images, data.labels
    if not is_array(images) or images.ndim != 4 or images.dtype != np.uint8:
        raise DataError(f"{name}.images must be uint8 [n, h, w, c], got {described(images)}")
    if np.shape(labels) != images.shape[:1]:
        raise DataError(f"{name}.labels must be [{len(images)}], got {list(np.shape(labels))}")
    check_range(f"{name}.labels", labels, 0, data.num_classes - 1)
    check_scales(name, data)
