"""Datasets from arrays in memory."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import jax
import numpy as np

from jaxsparse.checks import described, is_traced
from jaxsparse.data.images import ImageSet, check_images
from jaxsparse.data.labelled import LabelledSet, check_labelled
from jaxsparse.errors import DataError

Pair = tuple[Any, Any]
Scale = float | Sequence[float]
Choice = float | Sequence[Any] | None


def from_arrays(
    images: Any,
    labels: Any,
    *,
    train: Choice = None,
    val: Choice = None,
    test: Choice = None,
    seed: int | jax.Array = 0,
    mean: Scale = 0.0,
    std: Scale = 1.0,
) -> dict[str, ImageSet]:
    """Make few-shot datasets from arrays, one for each split. The splits share no class.

    Give each split that you want its classes, as a list of labels, or give each a fraction of the
    classes. With fractions, the classes are drawn at random; those beyond the sum are not used.
    Classes may have different numbers of images; a task can be drawn if the smallest class has
    enough of them (see `check_episode`).

    Args:
        images: [n, h, w, c] or [n, h, w], NumPy or JAX arrays. Whole numbers from 0 to 255, or
            floats or booleans in [0, 1], which are stored as round(255 x).
        labels: [n], integers or strings, in any order.
        train: a list of labels, or a fraction of the classes; None: no such split.
        val: as `train`.
        test: as `train`.
        seed: a number or a PRNG key, which decides the classes of each fraction.
        mean: one number per channel, or one for all, on the scale [0, 1].
        std: one number per channel, or one for all, on the scale [0, 1]; above 0.

    Returns:
        A dict with "train", "validation" and "test", as far as they were asked for, for
        `training.make_train`. Each is an `ImageSet` of NumPy arrays, for `sample_tasks`; a model
        sees (images - mean) / std, with pixels in [0, 1]. Its classes are in the order given, or
        sorted with fractions; their names are the labels as text.

    Raises:
        DataError: an argument is not as above, a class is unknown or in two splits, or a split
            would have no class.

    Examples:
        >>> import numpy as np
        >>> images, labels = np.zeros((40, 8, 8)), np.arange(40) % 10
        >>> data = from_arrays(images, labels, train=[0, 1, 2, 3, 4], test=[5, 6, 7, 8, 9])
        >>> data["test"].names
        ('5', '6', '7', '8', '9')
        >>> {name: part.num_classes for name, part in
        ...  from_arrays(images, labels, train=0.5, val=0.2, test=0.3).items()}
        {'train': 5, 'validation': 2, 'test': 3}
        >>> tasks = jaxsparse.data.sample_tasks(jax.random.key(0), data["train"], 4, 5, 1, 3)
        >>> tasks.query[0].shape
        (4, 15, 8, 8, 1)
    """
    pixels, labels = _checked("", images, labels)
    classes, numbers = np.unique(labels, return_inverse=True)
    given = {"train": train, "val": val, "test": test}
    parts = {name: part for name, part in given.items() if part is not None}
    if not parts:
        raise DataError("train, val, test: give at least one of them, classes or a fraction")
    fractions = [isinstance(part, Real) and not isinstance(part, bool) for part in parts.values()]
    if any(fractions) and not all(fractions):
        raise DataError("train, val, test: give fractions or lists of labels, not both")
    chosen = _drawn(parts, len(classes), seed) if any(fractions) else _listed(parts, classes)
    scales = _scale("mean", mean, pixels.shape[-1]), _scale("std", std, pixels.shape[-1])

    def image_set(wanted: Sequence[int]) -> ImageSet:
        where = [np.flatnonzero(numbers == number) for number in wanted]
        counts = np.array([len(own) for own in where], np.int32)
        names = tuple(str(classes[number]) for number in wanted)
        data = ImageSet(pixels[np.concatenate(where)], counts, names, *scales)
        check_images(data)
        return data

    called = {"train": "train", "val": "validation", "test": "test"}
    return {called[name]: image_set(wanted) for name, wanted in chosen.items()}


def labelled_from_arrays(
    train: Pair, test: Pair, *, mean: Scale = 0.0, std: Scale = 1.0
) -> tuple[LabelledSet, LabelledSet]:
    """Make the two datasets of a stream from arrays: training images and test images.

    Args:
        train: (images, labels), as in `from_arrays`.
        test: (images, labels), of classes that are also in `train`.
        mean: as in `from_arrays`.
        std: as in `from_arrays`.

    Returns:
        The training and the test set, NumPy arrays, for `streams.rotations`,
        `streams.permutations` and `streams.split`. The sorted labels of `train` are numbered from
        0.

    Raises:
        DataError: an argument is not as in `from_arrays`, or `test` has a class that `train` has
            not.

    Examples:
        >>> import numpy as np
        >>> images, labels = np.zeros((40, 8, 8)), np.repeat(["ant", "bee", "cat", "dog"], 10)
        >>> sets = labelled_from_arrays((images[::2], labels[::2]), (images[1::2], labels[1::2]))
        >>> jaxsparse.data.streams.split(*sets, classes_per_task=2).num_tasks
        2
    """
    sets = []
    classes = None
    for name, pair in (("train", train), ("test", test)):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"{name} must be a pair (images, labels), got {described(pair)}")
        pixels, labels = _checked(f"{name}: ", *pair)
        classes = np.unique(labels) if classes is None else classes
        unknown = ~np.isin(labels, classes)
        if unknown.any():
            raise DataError(f"test: its class {labels[unknown][0]!s} is not in train")
        numbers = np.searchsorted(classes, labels).astype(np.int32)
        scales = _scale("mean", mean, pixels.shape[-1]), _scale("std", std, pixels.shape[-1])
        sets.append(LabelledSet(pixels, numbers, *scales, num_classes=len(classes)))
        check_labelled(name, sets[-1])
    first, second = sets
    if first.images.shape[1:] != second.images.shape[1:]:
        got, want = list(second.images.shape[1:]), list(first.images.shape[1:])
        raise DataError(f"test: its images are {got}, those of train {want}")
    return first, second


def as_uint8(name: str, images: Any) -> np.ndarray:
    """Images as uint8; DataError unless they are numbers as in `from_arrays`."""
    pixels = _array(name, images)
    if pixels.dtype == np.uint8:
        return pixels
    # bfloat16 is not one of NumPy's own kinds.
    kind = "f" if pixels.dtype.kind == "V" and "float" in pixels.dtype.name else pixels.dtype.kind
    wanted = {"i": (0, 255), "u": (0, 255), "f": (0, 1), "b": (0, 1)}.get(kind)
    # Not `min < low`, so that NaN is refused.
    if wanted is None or (
        pixels.size and not (pixels.min() >= wanted[0] and pixels.max() <= wanted[1])
    ):
        got = pixels.dtype if wanted is None or not pixels.size else _range(pixels)
        raise DataError(f"{name}: got {got}, want whole numbers from 0 to 255 or floats in [0, 1]")
    if kind in "iu":
        return pixels.astype(np.uint8)
    return np.round(255 * pixels.astype(np.float32)).astype(np.uint8)


def _array(name: str, values: Any) -> np.ndarray:
    """`values` as an array; DataError if they have none."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:  # rows of different lengths, for example
        raise DataError(f"{name}: got {described(values)[:200]}, want an array") from error


def _range(pixels: np.ndarray) -> str:
    return f"{pixels.dtype} from {pixels.min():g} to {pixels.max():g}"


def _checked(name: str, images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images as uint8 [n, h, w, c], and labels [n]."""
    if is_traced(images) or is_traced(labels):
        raise DataError(f"{name}images and labels must be known; make the set outside of `jit`")
    pixels, labels = as_uint8(f"{name}images", images), _array(f"{name}labels", labels)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or 0 in pixels.shape:
        got = list(np.shape(images))
        raise DataError(f"{name}images must be [n, h, w, c] or [n, h, w], got {got}")
    if labels.dtype == object:
        if len({isinstance(label, str) for label in labels.ravel()}) > 1:
            raise DataError(f"{name}labels must be integers or strings, got both")
        labels = _array(f"{name}labels", labels.tolist())  # strings, as pandas has them
    if labels.shape != pixels.shape[:1]:
        raise DataError(f"{name}labels must be [{len(pixels)}], got {list(labels.shape)}")
    if labels.dtype.kind not in "iubU":
        raise DataError(f"{name}labels must be integers or strings, got {labels.dtype}")
    return pixels, labels


def _scale(name: str, value: Scale, channels: int) -> tuple[float, ...]:
    """One number per channel."""
    numbers = _array(name, value)
    if numbers.dtype.kind not in "iuf" or numbers.shape not in ((), (channels,)):
        got = described(value)[:200]
        raise DataError(f"{name} must be a number, or {channels}, one per channel; got {got}")
    if not np.isfinite(numbers).all() or (name == "std" and not (numbers > 0).all()):
        wanted = "finite and above 0" if name == "std" else "finite"
        raise DataError(f"{name} must be {wanted}, got {value}")
    return tuple(map(float, np.broadcast_to(numbers, channels)))


def _listed(parts: dict[str, Any], classes: np.ndarray) -> dict[str, list[int]]:
    """The numbers of the classes of each split, given by their labels."""
    places = {label: number for number, label in enumerate(classes.tolist())}
    taken: dict[int, str] = {}
    chosen: dict[str, list[int]] = {}
    for name, part in parts.items():
        own = _array(name, part)
        if own.ndim != 1 or not own.size:
            raise DataError(f"{name} must be a list of labels or a fraction, got {described(part)}")
        chosen[name] = []
        for label in own.tolist():
            if not isinstance(label, int | str) or label not in places:
                raise DataError(f"{name}: no image has the label {label!r}")
            number = places[label]
            if number in taken:
                other = f"in {taken[number]}, too" if taken[number] != name else "there twice"
                raise DataError(f"{name}: the class {label!r} is {other}")
            taken[number] = name
            chosen[name].append(number)
    return chosen


def _drawn(parts: dict[str, Any], count: int, seed: int | jax.Array) -> dict[str, list[int]]:
    """The numbers of the classes of each split, a random fraction of all."""
    fractions = [float(part) for part in parts.values()]
    if not all(0 < x <= 1 for x in fractions) or sum(fractions) > 1 + 1e-6:
        raise DataError(f"train, val, test: fractions must be in (0, 1], sum 1, got {fractions}")
    try:
        key = jax.random.key(int(seed)) if isinstance(seed, Integral) else seed
        order = np.asarray(jax.random.permutation(key, count))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"seed must be a number or a PRNG key, got {described(seed)}") from error
    edges = [round(count * math.fsum(fractions[:n])) for n in range(len(fractions) + 1)]
    chosen = {}
    for name, first, end in zip(parts, edges[:-1], edges[1:], strict=True):
        if first == end:
            raise DataError(f"{name}: with this fraction it has none of the {count} classes")
        chosen[name] = sorted(map(int, order[first:end]))
    return chosen
