"""Few-shot tasks, sampled on the device inside compiled code."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.data.images import ImageSet, check_count, check_images
from jaxsparse.draws import choose
from jaxsparse.errors import DataError


class Task(NamedTuple):
    """A few-shot task, or a batch of tasks.

    Attributes:
        support: the batch of the inner loop, any tree of arrays.
        query: the batch of the outer loss, a tree like `support`.

    Examples:
        >>> Task(support=(1.0, 2), query=(3.0, 4)).query
        (3.0, 4)
    """

    support: Any
    query: Any


def sample_tasks(
    key: jax.Array, data: ImageSet, tasks: int, ways: int, shots: int, query_shots: int
) -> Task:
    """Sample few-shot classification tasks.

    For each task it samples `ways` classes without replacement; the i-th class gets label i. For
    each class it samples `shots + query_shots` images without replacement; the first `shots` are
    the support images. Pixels become (x / 255 - mean) / std.

    Pure; works under jit, vmap and scan, with `data` traced and the four numbers static. Batches
    are ordered by label. If `data.counts` is traced, the number of images can only be checked
    against the largest class: call `check_episode` before compiling.

    Args:
        key: a jax.random key.
        data: the classes to sample from.
        tasks: number of tasks.
        ways: classes per task.
        shots: support images per class.
        query_shots: query images per class.

    Returns:
        A Task of two batches (images, labels). Support: images float32
        [tasks, ways * shots, h, w, c] and labels int32 [tasks, ways * shots]; query: the same with
        `query_shots`.

    Raises:
        DataError: a number is below 1, or the data have too few classes or images.

    Examples:
        >>> draw = jax.jit(sample_tasks, static_argnums=(2, 3, 4, 5))
        >>> images, labels = draw(jax.random.key(0), load_glyphs("train"), 4, 5, 1, 15).support
        >>> images.shape, labels[0].tolist()
        ((4, 5, 28, 28, 1), [0, 1, 2, 3, 4])
    """
    check_count("tasks", tasks)
    check_episode(data, ways, shots, query_shots)
    class_key, image_key = jax.random.split(key)
    present = jnp.ones((tasks, data.num_classes), bool)
    classes = choose(class_key, present, ways)
    images = choose(image_key, _valid(data, classes), shots + query_shots)
    support = _batch(data, classes, images[..., :shots])
    query = _batch(data, classes, images[..., shots:])
    return Task(support, query)


def check_episode(data: ImageSet, ways: int, shots: int, query_shots: int) -> None:
    """Check that tasks of this size can be sampled from a dataset.

    ``ways <= classes,  shots + query_shots <= images of the smallest class``

    Args:
        data: the classes to sample from.
        ways: classes per task.
        shots: support images per class.
        query_shots: query images per class.

    Raises:
        DataError: the data have too few classes or images; the message is one line.

    Examples:
        >>> check_episode(load_glyphs("test"), ways=5, shots=5, query_shots=15)
        >>> check_episode(load_glyphs("test"), ways=5, shots=5, query_shots=16)
        Traceback (most recent call last):
        ...
        jaxsparse.errors.DataError: shots + query_shots must be at most 20, ...
    """
    for name, value in (("ways", ways), ("shots", shots), ("query_shots", query_shots)):
        check_count(name, value)
    check_images(data)
    if ways > data.num_classes:
        raise DataError(f"ways must be at most {data.num_classes}, the classes; got {ways}")
    wanted = shots + query_shots
    if isinstance(data.counts, jax.core.Tracer):
        fewest, where = data.largest, "the images of the largest class"
    else:
        counts = np.asarray(data.counts)
        fewest, smallest = int(counts.min()), int(counts.argmin())
        where = f"the images of the smallest class, {data.names[smallest]!r}"
    if wanted > fewest:
        raise DataError(
            f"shots + query_shots must be at most {fewest}, {where}; "
            f"got {shots} + {query_shots} = {wanted}"
        )


def _valid(data: ImageSet, classes: jax.Array) -> jax.Array:
    """Which image numbers exist in each sampled class, bool [tasks, ways, largest]."""
    position = jax.lax.broadcasted_iota(jnp.int32, (*classes.shape, data.largest), 2)
    return position < jnp.asarray(data.counts, jnp.int32)[classes][..., None]


def _batch(data: ImageSet, classes: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scaled pixels [tasks, ways * n, h, w, c] and labels of images [tasks, ways, n]."""
    tasks, ways, shots = images.shape
    # The indices are in bounds; "promise_in_bounds" saves a masking pass over every pixel.
    places = jnp.asarray(data.starts, jnp.int32)[classes][..., None] + images
    where = jnp.asarray(data.images).at[places]
    pixels = where.get(mode="promise_in_bounds").reshape(tasks, ways * shots, *data.image_shape)
    mean, std = (
        jnp.broadcast_to(jnp.array(value, jnp.float32), pixels.shape)
        for value in (data.mean, data.std)
    )
    labels = jax.lax.broadcasted_iota(jnp.int32, (tasks, ways, shots), 1)
    scaled = (pixels.astype(jnp.float32) / 255 - mean) / std
    return scaled, labels.reshape(tasks, ways * shots)
