"""Convert a dataset to the image shape and normalisation that a network expects."""

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
    """Convert a dataset to another image shape, mean and std.

    The result is the same as if the images were read from a folder at this shape:

    1. Grey images become RGB by repeating the value three times. RGB images become grey by luma,
       0.299 red + 0.587 green + 0.114 blue, rounded as in Pillow's `convert("L")`.
    2. Height and width are resized with Pillow's antialiased bilinear filter. The aspect ratio is
       not kept.

    If only mean and std change, the pixels are not copied. Otherwise the first call converts the
    images and writes them to the cache (see `cache_dir`); later calls open the cache.

    Args:
        data: the dataset, images uint8 [images, h, w, c] with 1 or 3 channels, NumPy or JAX arrays.
        image_shape: (height, width, channels) of the new images, 1 or 3 channels.
        mean: one number per channel of the new images, on the scale [0, 1].
        std: one number per channel of the new images, on the scale [0, 1]; not 0.

    Returns:
        An ImageSet with the same classes, images uint8 [images, *image_shape]; `data` itself if
        nothing changes.

    Raises:
        DataError: `data`, `image_shape`, `mean` or `std` is not as above, or the cache cannot be
            written.

    Examples:
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
    """(height, width, channels) as Python integers; DataError unless they are a valid shape."""
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
    """Mean and std as Python floats; DataError unless one per channel, and std is never 0."""
    try:
        plain = tuple(map(float, mean)), tuple(map(float, std))
        check_scale("mean", plain[0], channels)
        check_scale("std", plain[1], channels, zero=False)
    except (TypeError, ValueError) as error:
        raise DataError(str(error)) from error
    return plain


def _resized(data: ImageSet, shape: Shape) -> ImageSet:
    """`data` with images of another shape, from the cache."""
    counts = np.asarray(data.counts).tolist()
    key = fingerprint([data.images, data.starts, counts, data.names, shape])
    stem = "converted-{}x{}x{}".format(*shape)
    new = cached(stem, key, lambda: Rows(list(data.names), counts, shape, _fitted(data, shape)))
    return replace(new, largest=data.largest)  # random draws depend on it


def _fitted(data: ImageSet, shape: Shape) -> Iterator[np.ndarray]:
    grey = data.image_shape[2] == 1
    for i in range(data.num_classes):
        # Class by class, because the images may be on a device or larger than the memory.
        for image in np.asarray(data.of_class(i)):
            yield fit(Image.fromarray(image[..., 0] if grey else image), shape)
