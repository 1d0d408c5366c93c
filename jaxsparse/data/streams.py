"""Streams of tasks for continual learning."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxsparse.checks import is_array
from jaxsparse.data.augmentation import augment as augment  # re-exported
from jaxsparse.data.images import check_count, check_range
from jaxsparse.data.labelled import LabelledSet, check_labelled
from jaxsparse.draws import choose
from jaxsparse.errors import DataError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TaskStream:
    """A sequence of tasks made from one labelled set.

    The stream is a pytree: pass it to compiled functions as an argument, and put it on the device
    once, with `jax.device_put(stream)`. Tasks share the images and differ only in indices.

    Args:
        train: the training images of all tasks.
        test: the test images of all tasks.
        train_members: int32 [T, n], the indices of each task's images in `train`; None: all images.
        test_members: int32 [T, m], the indices of each task's images in `test`; None: all images.
        pixel_maps: int32 [T, h * w], for each pixel in row-major order the source pixel of the
            original image, -1 for black; None: unchanged images.

    Examples:
        >>> digits = load_labelled("glyphs", "train"), load_labelled("glyphs", "test")
        >>> permutations(*digits, tasks=3).pixel_maps.shape
        (3, 784)
    """

    train: LabelledSet
    test: LabelledSet
    train_members: Any = None
    test_members: Any = None
    pixel_maps: Any = None

    @property
    def num_tasks(self) -> int:
        """T, the number of tasks; 1 if there are neither members nor pixel maps."""
        of_tasks = (self.train_members, self.test_members, self.pixel_maps)
        return next((len(x) for x in of_tasks if x is not None), 1)


def rotations(
    train: LabelledSet, test: LabelledSet, tasks: int = 20, data_seed: int = 0
) -> TaskStream:
    """Each task rotates all images by its own angle; the angles increase from task to task.

    angle_t ~ U[180 t / T, 180 (t + 1) / T) degrees, t = 0 .. T - 1, counter-clockwise around the
    centre. The image size stays; nearest-neighbour sampling, black outside (PIL's Image.rotate).

    Args:
        train: images of any size.
        test: images of the same size.
        tasks: T, the number of tasks.
        data_seed: seed of the angles; they do not depend on the seed of a run.

    Returns:
        A TaskStream with pixel maps.

    Raises:
        DataError: tasks is below 1, or `train` and `test` differ in image shape or classes.

    Examples:
        >>> stream = rotations(load_labelled("glyphs", "train"), load_labelled("glyphs", "test"))
        >>> stream.num_tasks
        20

    Source: Lopez-Paz & Ranzato 2017, GEM, public code; Riemer et al. 2019, MER (20 tasks, 180).
    """
    height, width, _ = _check_pair(train, test)
    check_count("tasks", tasks)
    edges = 180 * np.arange(tasks + 1) / tasks
    angles = np.random.default_rng(data_seed).uniform(edges[:-1], edges[1:])
    maps = np.stack([_rotation_map(height, width, float(angle)) for angle in angles])
    return TaskStream(train, test, pixel_maps=maps)


def permutations(
    train: LabelledSet, test: LabelledSet, tasks: int = 20, data_seed: int = 0
) -> TaskStream:
    """Each task applies its own random permutation to the pixels of all images, also the first.

    x'_j = x_{p_t(j)},  p_t a uniform permutation of the h w pixels

    Args:
        train: images of any size.
        test: images of the same size.
        tasks: T, the number of tasks.
        data_seed: seed of the permutations; they do not depend on the seed of a run.

    Returns:
        A TaskStream with pixel maps.

    Raises:
        DataError: tasks is below 1, or `train` and `test` differ in image shape or classes.

    Examples:
        >>> digits = load_labelled("glyphs", "train"), load_labelled("glyphs", "test")
        >>> permutations(*digits, tasks=100).num_tasks
        100

    Source: Lopez-Paz & Ranzato 2017, GEM, public code.
    """
    height, width, _ = _check_pair(train, test)
    check_count("tasks", tasks)
    rng = np.random.default_rng(data_seed)
    maps = np.stack([rng.permutation(height * width) for _ in range(tasks)])
    return TaskStream(train, test, pixel_maps=maps.astype(np.int32))


def split(train: LabelledSet, test: LabelledSet, classes_per_task: int = 2) -> TaskStream:
    """Each task has a few of the classes, in the order of the classes.

    Task t has the images of classes c t, c t + 1, .., c t + c - 1. All tasks get the same number of
    images, that of the smallest task; larger ones lose their last images. Nothing is lost if all
    classes have the same size, as in CIFAR-10.

    Args:
        train: images of all classes.
        test: images of all classes.
        classes_per_task: c, a divisor of the number of classes.

    Returns:
        A TaskStream with `train_members` and `test_members`.

    Raises:
        DataError: c does not divide the number of classes, or a task has no images.

    Examples:
        >>> split(load_labelled("glyphs", "train"), load_labelled("glyphs", "test")).num_tasks
        5

    Source: Zenke, Poole & Ganguli 2017, Synaptic intelligence, Sec. 5.1.
    """
    _check_pair(train, test)
    check_count("classes_per_task", classes_per_task)
    if train.num_classes % classes_per_task:
        raise DataError(
            f"classes_per_task must divide the {train.num_classes} classes, got {classes_per_task}"
        )
    groups = np.arange(train.num_classes).reshape(-1, classes_per_task)
    return TaskStream(train, test, _members("train", train, groups), _members("test", test, groups))


def hold_out(train: LabelledSet, fraction: float = 1 / 6) -> tuple[LabelledSet, LabelledSet]:
    """Hold out the last images of each class for validation.

    Of a class with n images the last round(fraction n) are held out. No randomness.

    Args:
        train: the training images.
        fraction: the fraction to hold out, above 0 and below 1.

    Returns:
        (remaining images, held-out images), each in the order of `train`.

    Raises:
        DataError: with this fraction a class would have no image in one of the parts.

    Examples:
        >>> rest, validation = hold_out(load_labelled("glyphs", "train"))
        >>> len(rest.labels), len(validation.labels)
        (5000, 1000)
    """
    check_labelled("train", train)
    if not is_array(fraction) or not 0 < fraction < 1:
        raise DataError(
            f"fraction must leave images of every class in both parts, got {fraction!r}"
        )
    labels = np.asarray(train.labels)
    held = np.zeros(len(labels), bool)
    for label in range(train.num_classes):
        (own,) = np.nonzero(labels == label)
        count = round(fraction * len(own))
        if not 0 < count < len(own):
            raise DataError(
                f"fraction must leave images of every class in both parts, got {fraction}: "
                f"{count} of the {len(own)} images of class {label}"
            )
        held[own[-count:]] = True
    return _subset(train, ~held), _subset(train, held)


def check_stream(stream: TaskStream) -> None:
    """Check that the parts of a stream are consistent; traced values are not checked.

    Args:
        stream: the tasks.

    Raises:
        DataError: they are not; the message is one line that names the part.

    Examples:
        >>> check_stream(split(load_labelled("glyphs", "train"), load_labelled("glyphs", "test")))
    """
    height, width, _ = _check_pair(stream.train, stream.test)
    for name, indices, low, end, wanted in (
        ("train_members", stream.train_members, 0, len(stream.train.images), None),
        ("test_members", stream.test_members, 0, len(stream.test.images), None),
        ("pixel_maps", stream.pixel_maps, -1, height * width, height * width),
    ):
        if indices is not None:
            _check_indices(f"stream.{name}", indices, low, end, (stream.num_tasks, wanted))


def _check_indices(name, indices, low, end, wanted):
    tasks, length = wanted
    shape = np.shape(indices)
    if len(shape) != 2 or 0 in shape or shape[0] != tasks or length not in (None, shape[1]):
        raise DataError(f"{name} must be [{tasks}, {length or 'images'}], got {list(shape)}")
    check_range(name, indices, low, end - 1)


def draw_schedule(
    key: jax.Array, stream: TaskStream, samples_per_task: int | None, joint: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Draw the training images of a run and their order.

    For each task, n of its images are drawn independently: uniformly, without replacement, in
    random order. Joint training sees the same T n pairs (task, image), shuffled over the stream.

    Pure; works under jit, vmap and scan, with `stream` traced and the other arguments static.

    Args:
        key: a jax.random key.
        stream: T tasks.
        samples_per_task: n; None: all images of a task.
        joint: shuffle over the whole stream; then a row of the result mixes all tasks.

    Returns:
        (tasks, indices), int32 [T, n] each; a row has the arguments of `train_rows`.

    Raises:
        DataError: n is below 1 or above the number of images of a task, or the parts of the stream
            are not consistent.

    Examples:
        >>> stream = split(load_labelled("glyphs", "train"), load_labelled("glyphs", "test"))
        >>> tasks, indices = draw_schedule(jax.random.key(0), stream, 100)
        >>> tasks.shape, tasks[:, 0].tolist()
        ((5, 100), [0, 1, 2, 3, 4])
    """
    check_stream(stream)
    members = stream.train_members
    available = len(stream.train.labels) if members is None else members.shape[1]
    count = available if samples_per_task is None else samples_per_task
    check_count("samples_per_task", count)
    if count > available:
        raise DataError(
            f"samples_per_task must be at most {available}, the images of a task; got {count}"
        )
    draw_key, joint_key = jax.random.split(key)
    shape = (stream.num_tasks, count)
    tasks = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    indices = choose(draw_key, jnp.ones((stream.num_tasks, available), bool), count)
    if members is not None:
        indices = jnp.take_along_axis(jnp.asarray(members), indices, 1)
    if joint:
        order = jax.random.permutation(joint_key, tasks.size)
        tasks, indices = (x.ravel()[order].reshape(shape) for x in (tasks, indices))
    return tasks, indices


def train_rows(
    stream: TaskStream, tasks: jax.Array, indices: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Look up training images and apply the pixel maps of their tasks.

    Args:
        stream: T tasks.
        tasks: int32 [b], from 0 to T - 1.
        indices: int32 [b], positions in `stream.train`.

    Returns:
        (images uint8 [b, h, w, c], labels int32 [b]).

    Raises:
        DataError: `tasks` and `indices` do not have the same shape [b].

    Examples:
        >>> stream = rotations(load_labelled("glyphs", "train"), load_labelled("glyphs", "test"))
        >>> images, labels = train_rows(stream, jnp.array([0, 19]), jnp.array([5, 5]))
        >>> images.shape
        (2, 28, 28, 1)
    """
    if jnp.ndim(tasks) != 1 or jnp.shape(tasks) != jnp.shape(indices):
        raise DataError(
            f"tasks and indices must have one shape [b], got {list(jnp.shape(tasks))} and "
            f"{list(jnp.shape(indices))}"
        )
    images = _rows(stream.train.images, indices)
    if stream.pixel_maps is not None:
        maps = _rows(stream.pixel_maps, tasks)
        flat = images.reshape(len(images), -1, images.shape[-1])
        seen = jnp.take_along_axis(flat, maps[..., None], 1, mode="clip")
        images = jnp.where(maps[..., None] < 0, jnp.uint8(0), seen).reshape(images.shape)
    return images, _rows(stream.train.labels, indices)


def test_rows(stream: TaskStream, task: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All test images of one task, with its pixel map applied.

    Args:
        stream: T tasks.
        task: int32 scalar, from 0 to T - 1; may be traced.

    Returns:
        (images uint8 [m, h, w, c], labels int32 [m]).

    Examples:
        >>> stream = split(load_labelled("glyphs", "train"), load_labelled("glyphs", "test"))
        >>> images, labels = test_rows(stream, 1)
        >>> images.shape, sorted(set(labels.tolist()))
        ((200, 28, 28, 1), [2, 3])
    """
    images, labels = jnp.asarray(stream.test.images), jnp.asarray(stream.test.labels)
    if stream.test_members is not None:
        members = _rows(stream.test_members, task)
        images, labels = _rows(images, members), _rows(labels, members)
    if stream.pixel_maps is not None:
        pixels = _rows(stream.pixel_maps, task)
        flat = images.reshape(len(images), -1, images.shape[-1])
        seen = jnp.take(flat, pixels, axis=1, mode="clip")
        images = jnp.where(pixels[:, None] < 0, jnp.uint8(0), seen).reshape(images.shape)
    return images, labels


def _rotation_map(height: int, width: int, degrees: float) -> np.ndarray:
    """The source of each pixel of the rotated image, in row-major order: int32 [h w], -1: none."""
    # Rotate an image of pixel numbers. They start at 1, because PIL fills corners with 0.
    numbers = np.arange(1, height * width + 1, dtype=np.int32).reshape(height, width)
    return np.asarray(Image.fromarray(numbers).rotate(degrees)).ravel() - 1


def _rows(array: Any, where: jax.Array) -> jax.Array:
    # The indices are in bounds; "promise_in_bounds" saves a masking pass.
    return jnp.asarray(array).at[where].get(mode="promise_in_bounds")


def _members(name: str, data: LabelledSet, groups: np.ndarray) -> np.ndarray:
    labels = np.asarray(data.labels)
    found = [np.flatnonzero(np.isin(labels, group)) for group in groups]
    fewest = min(map(len, found))
    if not fewest:
        raise DataError(f"{name}: there is a task without images")
    return np.stack([own[:fewest] for own in found]).astype(np.int32)


def _subset(data: LabelledSet, chosen: np.ndarray) -> LabelledSet:
    images, labels = np.asarray(data.images)[chosen], np.asarray(data.labels)[chosen]
    return LabelledSet(images, labels, data.mean, data.std, data.num_classes)


def _check_pair(train: LabelledSet, test: LabelledSet) -> tuple[int, int, int]:
    check_labelled("train", train)
    check_labelled("test", test)
    for what, one, other in (
        ("image shape", train.image_shape, test.image_shape),
        ("number of classes", train.num_classes, test.num_classes),
    ):
        if one != other:
            raise DataError(f"train and test must have one {what}, got {one} and {other}")
    return train.image_shape
