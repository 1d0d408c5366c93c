"""A stream that switches between classification tasks of several data sets, unannounced."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.data.classification import load_labelled
from jaxsparse.data.glyphs import load_glyphs
from jaxsparse.data.images import ImageSet, check_images
from jaxsparse.data.labelled import LabelledSet, check_labelled
from jaxsparse.data.locations import find_data_dir
from jaxsparse.data.omniglot import load_omniglot
from jaxsparse.data.sources import SPLITS
from jaxsparse.draws import choose
from jaxsparse.errors import DataError

NAMES = ("omniglot-mnist-fashion", "glyphs")
WEIGHTS = (0.5, 0.25, 0.25)  # how often each of the three data sets is drawn
_RAW = (1 / 255,)  # the std of pixels that a model sees as they are, 0 to 255


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SwitchingData:
    """Several data sets side by side: image i is seen as ``images[i] * scale + shift``.

    A pytree: hand it to compiled functions as an argument, and put it on the device once, with
    `jax.device_put(data)`. Classes are numbered through all data sets, as images are.

    Args:
        images: uint8 [images, height, width, channels], class by class.
        starts: int32 [classes], where each class's images begin.
        counts: int32 [classes], how many each class has.
        datasets: int32 [classes], which data set each class is of.
        scale: float32 [data sets, channels].
        shift: float32 [data sets, channels].
        names: one name per data set.
        num_classes: number of classes of each data set.
        fewest_images: number of images in the smallest class of each data set.

    Example:
        >>> data = load_switching("glyphs")
        >>> data.names, data.num_classes[1:]
        (('latin', 'cyrillic', 'greek'), (10, 10))
    """

    images: Any
    starts: Any
    counts: Any
    datasets: Any
    scale: Any
    shift: Any
    names: tuple[str, ...] = field(metadata={"static": True})
    num_classes: tuple[int, ...] = field(metadata={"static": True})
    fewest_images: tuple[int, ...] = field(metadata={"static": True})


class SwitchingTask(NamedTuple):
    """The task at hand, and so all that the stream remembers.

    Attributes:
      dataset: int32, which data set; -1 before the first batch.
      classes: int32 [ways], its classes in the order of their labels.

    Example:
      >>> task = first_task(ways=10)
      >>> int(task.dataset)
      -1
    """

    dataset: jax.Array
    classes: jax.Array


def load_switching(name: str, data_dir: str | os.PathLike[str] | None = None) -> SwitchingData:
    """Load the data sets of a switching stream.

    | name | half of the tasks | a quarter each |
    |---|---|---|
    | omniglot-mnist-fashion | all 1,623 characters of Omniglot | MNIST, Fashion-MNIST (train) |
    | glyphs | Latin letters, nothing to download | ten Cyrillic and ten Greek letters |

    The first has dark ink on bright paper with pixels in [0, 1], the other two bright ink on black
    with pixels in [0, 255], as in the experiments of Caccia et al. 2020. All classes of MNIST have
    as many images as the smallest, 5,421, the first in the order of TFDS's records; Omniglot's
    images are averaged over areas to 28x28.

    Args:
        name: one of the above.
        data_dir: TFDS's data folder, default $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
        A SwitchingData of NumPy arrays.

    Raises:
        DataError: no such stream, or the data are missing or damaged; the message is one line.

    Example:
        >>> load_switching("omniglot-mnist-fashion").num_classes
        (1623, 10, 10)
    """
    if name not in NAMES:
        raise DataError(f"there is no switching stream {name!r}; there are: {', '.join(NAMES)}")
    if name == "glyphs":
        letters = {split: load_glyphs(split) for split in SPLITS}
        return side_by_side(
            {
                "latin": _dark_ink([_of_script(letters["train"], "LATIN", None)]),
                "cyrillic": _raw(_of_script(letters["validation"], "CYRILLIC", 10)),
                "greek": _raw(_of_script(letters["test"], "GREEK", 10)),
            }
        )
    folder = find_data_dir("omniglot", data_dir)
    omniglot = {split: load_omniglot(split, folder) for split in SPLITS}
    upright = omniglot["train"].take(range(omniglot["train"].num_classes // 4))
    return side_by_side(
        {
            "omniglot": _dark_ink([upright, omniglot["validation"], omniglot["test"]]),
            "mnist": _raw(by_class(load_labelled("mnist", "train", data_dir))),
            "fashion_mnist": _raw(by_class(load_labelled("fashion_mnist", "train", data_dir))),
        }
    )


def side_by_side(sets: Mapping[str, ImageSet]) -> SwitchingData:
    """Join data sets whose images have one shape.

    Args:
        sets: an `ImageSet` for each name, in the order of the weights of `next_batch`.

    Returns:
        A SwitchingData of NumPy arrays.

    Raises:
        DataError: no sets, or images of different shapes.

    Example:
        >>> side_by_side({"a": load_glyphs("train"), "b": load_glyphs("test")}).names
        ('a', 'b')
    """
    shapes = {data.image_shape for data in sets.values()}
    if len(shapes) != 1:
        raise DataError(f"sets must be of images of one shape, got {sorted(shapes) or 'no sets'}")
    for data in sets.values():
        check_images(data)
    counts = [np.asarray(data.counts) for data in sets.values()]
    images = [data.take(range(data.num_classes)).images for data in sets.values()]
    every = np.concatenate(counts).astype(np.int32)
    mean, std = (
        np.array([getattr(data, name) for data in sets.values()]) for name in ("mean", "std")
    )
    return SwitchingData(
        np.concatenate(images),
        (np.cumsum(every) - every).astype(np.int32),
        every,
        np.repeat(np.arange(len(sets), dtype=np.int32), [len(own) for own in counts]),
        (1 / (255 * std)).astype(np.float32),
        (-mean / std).astype(np.float32),
        tuple(sets),
        tuple(len(own) for own in counts),
        tuple(int(own.min()) for own in counts),
    )


def by_class(data: LabelledSet) -> ImageSet:
    """Group labelled images by class, each class cut to the size of the smallest.

    Args:
        data: images in any order; the first of each class are kept, in that order.

    Returns:
        An ImageSet whose classes are the labels.

    Raises:
        DataError: a class without images.

    Example:
        >>> by_class(load_labelled("mnist", "train")).images.shape
        (54210, 28, 28, 1)
    """
    check_labelled("data", data)
    labels, images = np.asarray(data.labels), np.asarray(data.images)
    counts = np.bincount(labels, minlength=data.num_classes)
    fewest = int(counts.min())
    if not fewest:
        raise DataError(f"class {int(counts.argmin())} has no images")
    grouped = [images[np.flatnonzero(labels == i)[:fewest]] for i in range(data.num_classes)]
    names = tuple(str(i) for i in range(data.num_classes))
    every = np.full(data.num_classes, fewest, np.int32)
    return ImageSet(np.concatenate(grouped), every, names, data.mean, data.std)


def first_task(ways: int = 10) -> SwitchingTask:
    """The stream before its first batch, which always starts a task.

    Args:
        ways: classes per task.

    Returns:
        A SwitchingTask.

    Raises:
        DataError: `ways` is not a whole number above zero.

    Example:
        >>> first_task(ways=5).classes.shape
        (5,)
    """
    _check_count("ways", ways)
    return SwitchingTask(jnp.full((), -1, jnp.int32), jnp.zeros(ways, jnp.int32))


def next_batch(
    key: jax.Array,
    task: SwitchingTask,
    data: SwitchingData,
    *,
    stay_probability: float,
    shots: int = 5,
    weights: Sequence[float] = WEIGHTS,
) -> tuple[SwitchingTask, tuple[jax.Array, jax.Array], dict[str, jax.Array]]:
    """Draw the next batch of the stream: of the same task, or with a switch of a new one.

    With probability ``1 - p``, and at first, a new task is drawn: a data set by its weight, the
    old one not excluded, and `ways` of its classes without replacement in random order, which is
    that of the labels. Then `shots` images of each class, with replacement.

    Pure; works under jit, vmap and scan with `data` as a traced argument. A run's stream depends on
    its keys alone, `jax.random.fold_in(key, t)` for timestep t, say: give every method the same.

    Args:
        key: a jax.random key, one for each batch.
        task: what `first_task` or the call before returned.
        data: the classes to draw from.
        stay_probability: p, of no switch between two batches; may be traced, and is then unchecked.
        shots: images per class.
        weights: how often each data set is drawn, not negative; they need not sum to one.

    Returns:
        The task; the batch, images float32 [ways * shots, h, w, c] and labels int32
        [ways * shots], ordered by label; and {"dataset": int32, "switched": bool}.

    Raises:
        DataError: a probability outside [0, 1], or more classes or images than there are.

    Example:
        >>> data, task = jax.device_put(load_switching("glyphs")), first_task(ways=10)
        >>> draw = jax.jit(next_batch, static_argnames="shots")
        >>> task, (images, labels), info = draw(jax.random.key(0), task, data, stay_probability=0.9)
        >>> images.shape, bool(info["switched"])
        ((50, 28, 28, 1), True)

    Source: Caccia et al. 2020, Online fast adaptation and knowledge accumulation (OSAKA), Sec. 3
        and its public code.
    """
    (ways,) = task.classes.shape
    _check(data, ways, shots, stay_probability, weights)
    switch_key, task_key, image_key = jax.random.split(key, 3)
    switched = (jax.random.uniform(switch_key) > stay_probability) | (task.dataset < 0)
    drawn = _draw_task(task_key, data, ways, weights)
    task = jax.tree.map(lambda new, old: jnp.where(switched, new, old), drawn, task)

    starts, counts = (jnp.asarray(x)[task.classes][:, None] for x in (data.starts, data.counts))
    where = starts + jax.random.randint(image_key, (ways, shots), 0, counts)
    pixels = jnp.asarray(data.images)[where.ravel()].astype(jnp.float32)
    scale, shift = (jnp.asarray(x)[task.dataset] for x in (data.scale, data.shift))
    labels = jnp.repeat(jnp.arange(ways, dtype=jnp.int32), shots)
    info = {"dataset": task.dataset, "switched": switched}
    return task, (pixels * scale + shift, labels), info


def _draw_task(key, data, ways, weights):
    dataset_key, class_key = jax.random.split(key)
    dataset = jax.random.categorical(dataset_key, jnp.log(jnp.array(weights, jnp.float32)))
    classes = choose(class_key, jnp.asarray(data.datasets) == dataset, ways)
    return SwitchingTask(dataset.astype(jnp.int32), classes.astype(jnp.int32))


def _check(data, ways, shots, stay_probability, weights):
    _check_count("shots", shots)
    traced = isinstance(stay_probability, jax.core.Tracer)
    if not traced and not 0 <= stay_probability <= 1:
        raise DataError(f"stay_probability must lie in [0, 1], got {stay_probability}")
    if len(weights) != len(data.names) or min(weights) < 0 or not sum(weights) > 0:
        raise DataError(
            f"weights must be one for each of {', '.join(data.names)}, none negative and not all "
            f"zero; got {tuple(weights)}"
        )
    for name, asked, there in (
        ("ways", ways, data.num_classes),
        ("shots", shots, data.fewest_images),
    ):
        fewest = int(np.argmin(there))
        if asked > there[fewest]:
            what = "classes" if name == "ways" else "images of the smallest class"
            raise DataError(
                f"{name} must be at most {there[fewest]}, the {what} of {data.names[fewest]}; "
                f"got {asked}"
            )


def _check_count(name, value):
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise DataError(f"{name} must be a whole number >= 1, got {value!r}")


def _dark_ink(sets: Sequence[ImageSet]) -> ImageSet:
    """White letters on black of several sets as one, dark on bright."""
    images = 255 - np.concatenate([np.asarray(data.images) for data in sets])
    counts = np.concatenate([np.asarray(data.counts) for data in sets])
    names = tuple(name for data in sets for name in data.names)
    return ImageSet(images, counts, names, (0.0,), (1.0,))


def _raw(data: ImageSet) -> ImageSet:
    return replace(data, mean=(0.0,), std=_RAW)


def _of_script(data: ImageSet, script: str, count: int | None) -> ImageSet:
    chosen = [i for i, name in enumerate(data.names) if name.split(" ")[0] == script]
    return data.take(chosen[:count])
