"""The form of all few-shot image datasets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxsparse.checks import check_scale, described, is_array, is_integer, is_traced
from jaxsparse.errors import DataError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageSet:
    """Images in one array, class by class; classes may have different sizes.

    Image k of class c is images[starts[c] + k], 0 <= k < counts[c]; a model sees
    (images / 255 - mean) / std.

    `images` may also be an array [classes, most, height, width, channels], of which the first
    counts[c] images of each class c are used. It is reshaped without a copy.

    The set is a pytree: `images`, `counts` and `starts` are its leaves, the rest is static. Pass it
    to compiled functions as an argument (a closure would store the images in the program), and put
    it on the device once, with `jax.device_put(data)`.

    Args:
        images: uint8 [images, height, width, channels], class by class; or with two leading axes,
            see above.
        counts: int32 [classes], number of images of each class.
        names: one name per class.
        mean: one number per channel, on the scale [0, 1].
        std: one number per channel, on the scale [0, 1].
        starts: int32 [classes], index of the first image of each class; default: directly after the
            previous class.
        largest: number of images of the largest class; default: from `counts`. Random draws depend
            on it.

    Raises:
        DataError: `counts` are not whole numbers, or they are traced and `largest` is not given.

    Examples:
        >>> import numpy as np
        >>> images = np.zeros((50, 28, 28, 1), np.uint8)
        >>> data = ImageSet(images, np.array([30, 20], np.int32), ("a", "b"), (0.0,), (1.0,))
        >>> data.num_classes, data.image_shape, data.of_class(1).shape
        (2, (28, 28, 1), (20, 28, 28, 1))
    """

    images: Any
    counts: Any
    names: tuple[str, ...] = field(metadata={"static": True})
    mean: tuple[float, ...] = field(metadata={"static": True})
    std: tuple[float, ...] = field(metadata={"static": True})
    starts: Any = None
    largest: int = field(default=-1, metadata={"static": True})

    def __post_init__(self):
        # JAX also calls this when it rebuilds the tree, with leaves of any type; then `largest` is
        # known.
        if self.largest == -1:
            for name, value in self._layout().items():
                object.__setattr__(self, name, value)

    def _layout(self) -> dict[str, Any]:
        """The fields that follow from `images` and `counts`."""
        shape = np.shape(self.images)
        if len(shape) == 5 and self.starts is None:
            starts = np.arange(shape[0], dtype=np.int32) * shape[1]
            return {"images": _joined(self.images), "starts": starts, "largest": shape[1]}
        if isinstance(self.counts, jax.core.Tracer):
            raise DataError("data.counts: make the set outside of compiled code, or give `largest`")
        counts = np.asarray(self.counts)
        if counts.dtype.kind not in "iu":
            raise DataError(f"data.counts must be whole numbers, got {counts.dtype}")
        layout: dict[str, Any] = {"largest": int(counts.max(initial=0))}
        if self.starts is None:
            layout["starts"] = (np.cumsum(counts) - counts).astype(np.int32)
        return layout

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return tuple(self.images.shape[1:])

    def of_class(self, index: int) -> Any:
        """The images of one class, uint8 [counts[index], height, width, channels]."""
        start = int(self.starts[index])
        return self.images[start : start + int(self.counts[index])]

    def take(self, classes: Sequence[int]) -> "ImageSet":
        """A set of some of the classes, in the given order; NumPy arrays, copied.

        Examples:
            >>> jaxsparse.data.load("glyphs", "test").take([4, 2]).num_classes
            2
        """
        starts, counts = (np.asarray(x)[list(classes)] for x in (self.starts, self.counts))
        where = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        names = tuple(self.names[i] for i in classes)
        images = np.asarray(self.images)[where]
        return ImageSet(images, counts.astype(np.int32), names, self.mean, self.std)


def _joined(images: Any) -> Any:
    """Images with their two leading axes joined."""
    shape = (images.shape[0] * images.shape[1], *images.shape[2:])
    if isinstance(images, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, images.dtype)
    return images.reshape(shape)


def check_images(data: ImageSet) -> None:
    """Raise DataError unless the parts of a set are consistent; traced values are not checked."""
    images, counts, starts = data.images, data.counts, data.starts
    if not is_array(images) or images.ndim != 4 or images.dtype != np.uint8:
        raise DataError(
            f"data.images must be uint8 [images, height, width, channels], got {described(images)}"
        )
    for name, value in (("counts", counts), ("starts", starts)):
        if np.shape(value) != (data.num_classes,):
            raise DataError(
                f"data.{name} must be [{data.num_classes}], one for each name, "
                f"got {list(np.shape(value))}"
            )
    check_scales("data", data)
    if not any(isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct) for x in (counts, starts)):
        _check_places(data)


def check_scales(name: str, data: Any) -> None:
    """Raise DataError unless mean and std have one number per channel, and std is never 0."""
    channels = data.images.shape[-1]
    try:
        check_scale(f"{name}.mean", data.mean, channels)
        check_scale(f"{name}.std", data.std, channels, zero=False)
    except (TypeError, ValueError) as error:
        raise DataError(str(error)) from error


def _check_places(data: ImageSet) -> None:
    counts, starts = np.asarray(data.counts), np.asarray(data.starts)
    for wrong, what in (
        (counts < 1, "has no images"),
        (counts > data.largest, f"has more images than `largest`, {data.largest}"),
        (
            (starts < 0) | (starts + counts > len(data.images)),
            f"ends beyond the {len(data.images)} images",
        ),
    ):
        if wrong.any():
            i = int(wrong.argmax())
            raise DataError(
                f"data.counts: class {data.names[i]!r} {what}: starts at {starts[i]}, "
                f"counts {counts[i]}"
            )


def check_range(name: str, values: Any, low: int, high: int) -> None:
    """Raise DataError unless `values` are whole numbers in [low, high]; traced ones pass."""
    if isinstance(values, jax.core.Tracer | jax.ShapeDtypeStruct):
        return
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise DataError(f"{name} must be whole numbers, got {values.dtype}")
    wrong = (values < low) | (values > high)
    if wrong.any():
        raise DataError(f"{name} must lie in {low} .. {high}, got {values[wrong][0]}")


def check_count(name: str, value: Any) -> None:
    """Raise DataError unless `value` is a whole number, 1 or more, known at trace time."""
    if is_traced(value):
        raise DataError(f"{name} determines shapes, so it must be static under jit; got {value}")
    if not is_integer(value) or value < 1:
        raise DataError(f"{name} must be a whole number >= 1, got {value!r}")


def check_not_blank(data: ImageSet) -> None:
    """Check that every class has an image that is not blank; a blank image has one colour.

    Raises:
        DataError: a class has only blank images; the message is one line that names it.

    Examples:
        >>> check_not_blank(jaxsparse.data.load("glyphs", "test"))
    """
    for i, name in enumerate(data.names):
        if all(is_blank(image) for image in data.of_class(i)):
            raise DataError(f"class {name!r}: all its images are blank (one colour each)")


def is_blank(image: np.ndarray) -> bool:
    """Whether all pixels of an image [height, width, channels] have the same colour."""
    return bool((image == image[:1, :1]).all())
