"""A set of images as another set's network expects them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Integral

import numpy as np
from PIL import Image

from jaxsparse.checks import check_scale
from jaxsparse.data.cache import Rows, Shape, cached
from jaxsparse.data.digests import fingerprint
from jaxsparse.data.images import ImageSet, check_images
from jaxsparse.data.labelled import Scale
from jaxsparse.data.pictures import fit
from jaxsparse.errors import DataError


def convert(
    data: ImageSet, image_shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> ImageSet:
    """Resize images, change grey to RGB or back, and set how a model sees them.

    Each image becomes what it would be if it were read from a folder at this shape, see
    `jaxsparse.data.pictures.fit`, so a set is treated alike however it is read:

    - grey to RGB: the same value three times; RGB to grey: ITU-R 601's luma,
      0.299 red + 0.587 green + 0.114 blue, rounded as Pillow's `convert("L")` rounds it,
    - then the height and the width, each on its own, by Pillow's bilinear filter, which averages
      over areas where it shrinks. The aspect ratio is not kept.

    Where only mean and std change, no pixel is touched or copied. Else the images are converted one
    by one and kept in the cache folder; later calls open them in a moment.

    Args:
        data: images uint8 [images, h, w, c], c 1 or 3, as NumPy or JAX arrays.
        image_shape: (height, width, channels) of the new images, channels 1 or 3.
        mean: one number per channel of the new images, on the scale [0, 1].
        std: one number per channel of the new images, on the scale [0, 1].

    Returns:
        An ImageSet with the same classes, images uint8 [images, *image_shape]; `data` itself
        where nothing changes.

    Raises:
        DataError: a shape that images cannot have, a mean or std that does not go with it, or
            the cache cannot be written.

    Example:
        >>> letters = jaxsparse.data.load("glyphs", "test").take([0, 1])
        >>> letters.image_shape
        (28, 28, 1)
        >>> convert(letters, (84, 84, 3), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)).image_shape
        (84, 84, 3)

    Source: ITU-R BT.601 for the luma.
    """
    check_images(data)
    shape = _shape("image_shape", image_shape)
    _shape("data's images", data.image_shape)
    scales = _scales(mean, std, shape[2])
    new = data if shape == data.image_shape else _resized(data, shape)
    return new if (new.mean, new.std) == scales else replace(new, mean=scales[0], std=scales[1])


def _shape(name: str, shape: Sequence[int]) -> Shape:
    """(height, width, channels) as plain numbers; DataError if no image can have such a shape."""
    sizes = tuple(shape)
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) and n > 0 for n in sizes)
    if len(sizes) != 3 or not whole or sizes[2] not in (1, 3):
        raise DataError(
            f"{name} must be (height, width, channels), whole numbers above 0 and 1 or 3 channels,"
            f" got {sizes}"
        )
    height, width, channels = map(int, sizes)
    return height, width, channels


def _scales(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[Scale, Scale]:
    """Mean and std as plain numbers; DataError unless they are one a channel, std not 0."""
    try:
        plain = tuple(map(float, mean)), tuple(map(float, std))
        check_scale("mean", plain[0], channels)
        check_scale("std", plain[1], channels, zero=False)
    except (TypeError, ValueError) as error:
        raise DataError(str(error)) from error
    return plain


def _resized(data: ImageSet, shape: Shape) -> ImageSet:
    """The images at another shape, from the cache."""
    counts = np.asarray(data.counts).tolist()
    key = fingerprint([data.images, data.starts, counts, data.names, shape])
    stem = "converted-{}x{}x{}".format(*shape)
    new = cached(stem, key, lambda: Rows(list(data.names), counts, shape, _fitted(data, shape)))
    return replace(new, largest=data.largest)  # on which draws depend


def _fitted(data: ImageSet, shape: Shape) -> Iterator[np.ndarray]:
    grey = data.image_shape[2] == 1
    for i in range(data.num_classes):
        # Class by class: the images may be on a device, or larger than the memory.
        for image in np.asarray(data.of_class(i)):
            yield fit(Image.fromarray(image[..., 0] if grey else image), shape)
