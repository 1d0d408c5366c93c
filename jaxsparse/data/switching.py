"""A stream that switches between classification tasks of several datasets without notice."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.data.classification import load_labelled
from jaxsparse.data.glyphs import load_glyphs
from jaxsparse.data.images import ImageSet, check_count, check_images
from jaxsparse.data.labelled import LabelledSet, check_labelled
from jaxsparse.data.locations import find_data_dir
from jaxsparse.data.omniglot import load_omniglot
from jaxsparse.data.sources import SPLITS
from jaxsparse.draws import choose
from jaxsparse.errors import DataError

NAMES = ("omniglot-mnist-fashion", "glyphs")
WEIGHTS = (0.5, 0.25, 0.25)  # how often each of the three datasets is drawn
_RAW = (1 / 255,)  # with this std a model sees pixels from 0 to 255


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SwitchingData:
    """Several datasets in one; a model sees image i as ``images[i] * scale + shift``.

    A pytree: pass it to compiled functions as an argument, and put it on the device once, with
    `jax.device_put(data)`. Classes and images are numbered across all datasets.

    Args:
        images: uint8 [images, height, width, channels], class by class.
        starts: int32 [classes], index of the first image of each class.
        counts: int32 [classes], number of images of each class.
        datasets: int32 [classes], index of the dataset of each class.
        scale: float32 [datasets, channels].
        shift: float32 [datasets, channels].
        names: one name per dataset.
        num_classes: number of classes of each dataset.
        fewest_images: number of images in the smallest class of each dataset.

    Examples:
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
    """The current task, which is the whole state of the stream.

    Attributes:
      dataset: int32, index of its dataset; -1 before the first batch.
      classes: int32 [ways], its classes in the order of their labels.

    Examples:
      >>> task = first_task(ways=10)
      >>> int(task.dataset)
      -1
    """

    dataset: jax.Array
    classes: jax.Array


def load_switching(name: str, data_dir: str | os.PathLike[str] | None = None) -> SwitchingData:
    """Load the datasets of a switching stream.

    | name | half of the tasks | a quarter each |
    |---|---|---|
    | omniglot-mnist-fashion | all 1,623 characters of Omniglot | MNIST, Fashion-MNIST (train) |
    | glyphs | Latin letters, nothing to download | ten Cyrillic and ten Greek letters |

    The first dataset is dark on bright, with pixels in [0, 1]. The other two are bright on dark,
    with pixels in [0, 255], as in the experiments of Caccia et al. 2020. Each class of MNIST has
    5,421 images (the size of the smallest class), the first ones in the order of TFDS's records.
    Omniglot's images are resized to 28x28 by area averaging.

    Args:
        name: one of the above.
        data_dir: TFDS's data folder; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
        A SwitchingData of NumPy arrays.

    Raises:
        DataError: there is no such stream, or the data are missing or damaged; the message is one
            line.

    Examples:
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
    """Join datasets with the same image shape.

    Args:
        sets: an `ImageSet` for each name, in the order of the weights of `next_batch`.

    Returns:
        A SwitchingData of NumPy arrays.

    Raises:
        DataError: no sets, or images of different shapes.

    Examples:
        >>> side_by_side({"a": load_glyphs("train"), "b": load_glyphs("test")}).names
        ('a', 'b')
    """
    shapes = {data.image_shape for data in sets.values()}
    if len(shapes) != 1:
        raise DataError(f"sets must have one image shape, got {sorted(shapes) or 'no sets'}")
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
    """Group labelled images by class; each class is cut to the size of the smallest.

    Args:
        data: images in any order; the first images of each class are kept, in this order.

    Returns:
        An ImageSet whose classes are the labels.

    Raises:
        DataError: a class without images.

    Examples:
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
    """The state before the first batch; that batch always starts a task.

    Args:
        ways: classes per task.

    Returns:
        A SwitchingTask.

    Raises:
        DataError: `ways` is not a whole number above zero.

    Examples:
        >>> first_task(ways=5).classes.shape
        (5,)
    """
    check_count("ways", ways)
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
    """Sample the next batch of the stream, from the same task or, after a switch, from a new one.

    At the first batch, and then with probability ``1 - p``, a new task is sampled: a dataset by
    its weight (it may be the same as before), and `ways` of its classes without replacement, in the
    random order of the labels. Then `shots` images of each class are sampled with replacement.

    Pure; works under jit, vmap and scan with `data` as a traced argument. The stream depends only
    on the keys, for example `jax.random.fold_in(key, t)` at timestep t: use the same for every
    method.

    Args:
        key: a jax.random key, one for each batch.
        task: the result of `first_task` or of the previous call.
        data: the classes to sample from.
        stay_probability: p, the probability of no switch; not checked if it is traced.
        shots: images per class.
        weights: relative frequency of each dataset, not negative; they need not sum to one.

    Returns:
        The task; the batch, images float32 [ways * shots, h, w, c] and labels int32
        [ways * shots], ordered by label; and {"dataset": int32, "switched": bool}.

    Raises:
        DataError: the probability is outside [0, 1], or the data have too few classes or images.

    Examples:
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
    images = scaled_images(data, where.ravel(), task.dataset)
    labels = jnp.repeat(jnp.arange(ways, dtype=jnp.int32), shots)
    info = {"dataset": task.dataset, "switched": switched}
    return task, (images, labels), info


def scaled_images(data: SwitchingData, where: jax.Array, dataset: Any) -> jax.Array:
    """The images at `where` [...], float32 [..., h, w, c], scaled as those of a dataset."""
    pixels = jnp.asarray(data.images)[where].astype(jnp.float32)
    scale, shift = (
        jnp.broadcast_to(jnp.asarray(x)[dataset], pixels.shape) for x in (data.scale, data.shift)
    )
    return pixels * scale + shift


def _draw_task(key, data, ways, weights):
    dataset_key, class_key = jax.random.split(key)
    dataset = jax.random.categorical(dataset_key, jnp.log(jnp.array(weights, jnp.float32)))
    classes = choose(class_key, jnp.asarray(data.datasets) == dataset, ways)
    return SwitchingTask(dataset.astype(jnp.int32), classes.astype(jnp.int32))


def _check(data, ways, shots, stay_probability, weights):
    check_count("shots", shots)
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


def _dark_ink(sets: Sequence[ImageSet]) -> ImageSet:
    """Join sets of white letters on black, and invert the images to dark on bright."""
    images = 255 - np.concatenate([np.asarray(data.images) for data in sets])
    counts = np.concatenate([np.asarray(data.counts) for data in sets])
    names = tuple(name for data in sets for name in data.names)
    return ImageSet(images, counts, names, (0.0,), (1.0,))


def _raw(data: ImageSet) -> ImageSet:
    return replace(data, mean=(0.0,), std=_RAW)


def _of_script(data: ImageSet, script: str, count: int | None) -> ImageSet:
    chosen = [i for i, name in enumerate(data.names) if name.split(" ")[0] == script]
    return data.take(chosen[:count])
