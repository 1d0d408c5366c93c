"""The one form every image data set comes in."""

from dataclasses import dataclass, field
from typing import Any

import jax


class DataError(ValueError):
    """A data set that cannot be used as it is; the message is one line a user can act on.

    Example:
        >>> raise DataError("glyphs: split must be 'train' or 'test', got 'dev'")
        Traceback (most recent call last):
        ...
        jaxsparse.data.images.DataError: glyphs: split must be 'train' or 'test', got 'dev'
    """


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageSet:
    """Images grouped by class, padded to one number of images per class.

    Image k of class c is valid where k < counts[c]; a model sees (images / 255 - mean) / std.

    The set is a pytree: `images` and `counts` are its leaves, the rest is static. Hand it to
    compiled functions as an argument (a closure would bake the images into the program), and
    put it on the device once, with `jax.device_put(data)`.

    Args:
        images: uint8 [classes, most images in a class, height, width, channels].
        counts: int32 [classes], number of valid images in each class.
        names: one name per class.
        mean: one number per channel, on the scale [0, 1].
        std: one number per channel, on the scale [0, 1].

    Example:
        >>> import numpy as np
        >>> images = np.zeros((3, 20, 28, 28, 1), np.uint8)
        >>> data = ImageSet(images, np.full(3, 20, np.int32), ("a", "b", "c"), (0.0,), (1.0,))
        >>> data.num_classes, data.image_shape
        (3, (28, 28, 1))
    """

    images: Any
    counts: Any
    names: tuple[str, ...] = field(metadata={"static": True})
    mean: tuple[float, ...] = field(metadata={"static": True})
    std: tuple[float, ...] = field(metadata={"static": True})

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.images.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return tuple(self.images.shape[2:])
