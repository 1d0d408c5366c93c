"""Tasks drawn on the device: counts, sets and statistics of the drawn images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsparse.data.episodes import Task, check_episode, sample_tasks
from jaxsparse.data.images import ImageSet
from jaxsparse.errors import DataError

STATIC = ("tasks", "ways", "shots", "query_shots")
draw = jax.jit(sample_tasks, static_argnames=STATIC)
COUNTS = (7, 4, 9, 5, 6, 12)
SIZES = (200, 4, 1, 3)  # one set of sizes for most tests, to compile once


def numbered(counts=COUNTS) -> ImageSet:
    """Images that encode their index: channel 0 the class, channel 1 the image, 255 for padding."""
    images = np.zeros((len(counts), max(counts), 2, 3, 2), np.uint8)
    images[..., 0] = np.arange(len(counts))[:, None, None, None]
    images[..., 1] = np.arange(max(counts))[:, None, None]
    for label, count in enumerate(counts):
        images[label, count:] = 255
    names = tuple(f"class {label}" for label in range(len(counts)))
    return ImageSet(images, np.array(counts, np.int32), names, (0.0, 0.0), (1.0, 1.0))


def drawn(batch, ways):
    """Classes and image numbers [tasks, ways, n] of a batch."""
    images, labels = (np.asarray(part) for part in batch)
    which = np.rint(images[:, :, 0, 0] * 255).astype(int).reshape(len(images), ways, -1, 2)
    assert np.array_equal(images * 255, np.broadcast_to(images[:, :, :1, :1] * 255, images.shape))
    shape = (len(images), ways, which.shape[2])
    np.testing.assert_array_equal(
        labels.reshape(shape), np.broadcast_to(np.arange(ways)[:, None], shape)
    )
    return which[..., 0], which[..., 1]


def flat(data) -> ImageSet:
    """The same set without padding."""
    return data.take(range(data.num_classes))


def test_padded_and_flat_sets_give_the_same_tasks_bit_for_bit():
    padded = numbered()
    images = np.concatenate([padded.of_class(c) for c in range(6)])
    alone = ImageSet(images, padded.counts, padded.names, padded.mean, padded.std)
    assert images.shape == (sum(COUNTS), 2, 3, 2) and (images != 255).all()
    assert alone.starts.tolist() == [0, 7, 11, 20, 25, 31] and alone.largest == 12
    for data in (alone, flat(padded), jax.device_put(alone)):
        jax.tree.map(
            np.testing.assert_array_equal,
            draw(jax.random.key(9), data, *SIZES),
            draw(jax.random.key(9), padded, *SIZES),
        )


# Drawn from a padded array: class and image of the support and of the query of two tasks.
DRAWN = (
    [[[[0, 1]], [[1, 3]], [[3, 3]]], [[[0, 0]], [[2, 1]], [[1, 2]]]],
    [
        [[[0, 0], [0, 3]], [[1, 1], [1, 2]], [[3, 4], [3, 1]]],
        [[[0, 3], [0, 4]], [[2, 0], [2, 4]], [[1, 3], [1, 4]]],
    ],
)


def test_draws_from_equal_classes_are_unchanged():
    task = draw(jax.random.key(7), flat(numbered((5, 5, 5, 5))), 2, 3, 1, 2)
    for batch, wanted in zip((task.support, task.query), DRAWN, strict=True):
        np.testing.assert_array_equal(np.stack(drawn(batch, 3), -1), wanted)


def test_sets_are_cut_by_class_and_stay_trees():
    data = numbered()
    some = data.take([4, 0])
    assert some.names == ("class 4", "class 0") and some.counts.tolist() == [6, 7]
    np.testing.assert_array_equal(some.images[:, 0, 0, 1], [*range(6), *range(7)])
    np.testing.assert_array_equal(some.of_class(1), data.of_class(0))
    back = jax.tree.map(lambda x: x, data)
    assert back == data or all(map(np.array_equal, jax.tree.leaves(back), jax.tree.leaves(data)))
    # A tree may have any leaves, and another axis is not mistaken for padding.
    assert jax.tree.map(jnp.shape, some).images == (13, 2, 3, 2)
    assert jax.tree.map(lambda x: x[None], some).images.shape == (1, 13, 2, 3, 2)


def test_shapes_and_dtypes():
    sample = functools.partial(sample_tasks, tasks=4, ways=3, shots=1, query_shots=2)
    task = jax.eval_shape(sample, jax.random.key(0), numbered())
    assert isinstance(task, Task)
    for (images, labels), shots in ((task.support, 1), (task.query, 2)):
        assert images.shape == (4, 3 * shots, 2, 3, 2) and images.dtype == jnp.float32
        assert labels.shape == (4, 3 * shots) and labels.dtype == jnp.int32


def test_every_draw_is_without_replacement_and_of_valid_images():
    tasks, ways, shots, query_shots = SIZES
    task = draw(jax.random.key(1), numbered(), *SIZES)
    classes, support = drawn(task.support, ways)
    query_classes, query = drawn(task.query, ways)
    picked = np.concatenate([support, query], 2)
    for t in range(tasks):
        assert len(set(classes[t, :, 0])) == ways
        for label in range(ways):
            c = classes[t, label, 0]
            assert set(query_classes[t, label]) == set(classes[t, label]) == {c}
            assert len(set(picked[t, label])) == shots + query_shots
            assert picked[t, label].max() < COUNTS[c]


def test_drawing_everything_draws_each_image_once():
    task = draw(jax.random.key(2), numbered((5, 5, 5)), 20, 3, 2, 3)
    images = np.concatenate([drawn(task.support, 3)[1], drawn(task.query, 3)[1]], 2)
    np.testing.assert_array_equal(np.sort(images, 2), np.broadcast_to(np.arange(5), (20, 3, 5)))
    assert set(np.sort(drawn(task.support, 3)[0][:, :, 0], 1).ravel()) == {0, 1, 2}


def uniform(values, categories):
    observed = np.bincount(np.asarray(values).ravel(), minlength=categories)
    assert observed.shape == (categories,)
    return stats.chisquare(observed).pvalue > 1e-3


def test_all_ordered_pairs_of_classes_are_equally_likely():
    """So for each label every class is equally likely, whatever the other labels are."""
    task = draw(jax.random.key(3), numbered(), 12_000, 2, 1, 1)
    first, second = drawn(task.support, 2)[0][..., 0].T
    assert uniform(first * 5 + second - (second > first), 30)


def test_all_ordered_pairs_of_a_class_s_images_are_equally_likely():
    task = draw(jax.random.key(4), numbered(), 24_000, 1, 1, 1)
    classes, support = (part.ravel() for part in drawn(task.support, 1))
    query = drawn(task.query, 1)[1].ravel()
    for label, count in enumerate(COUNTS):
        first, second = support[classes == label], query[classes == label]
        assert uniform(first * (count - 1) + second - (second > first), count * (count - 1))


def test_images_of_different_classes_and_tasks_are_independent():
    task = draw(jax.random.key(5), numbered((4, 4)), 6_400, 2, 1, 1)
    images = drawn(task.support, 2)[1][..., 0]
    assert uniform(images[:, 0] * 4 + images[:, 1], 16)
    assert uniform(images[::2, 0] * 4 + images[1::2, 0], 16)


def test_images_are_independent_of_the_classes():
    """One task per key, as many classes as images: one key for both draws would correlate them."""
    one = jax.jit(jax.vmap(lambda key: sample_tasks(key, numbered((4,) * 4), 1, 1, 1, 1)))
    images = np.rint(one(jax.random.split(jax.random.key(6), 3_200)).support[0] * 255)
    which = images[:, 0, 0, 0, 0].astype(int)
    assert uniform(which[:, 0] * 4 + which[:, 1], 16)


def test_pixels_are_scaled_by_mean_and_std_of_each_channel():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, 2, 4, 4, 3), np.uint8)
    mean, std = (0.5, 0.25, 0.125), (0.5, 2.0, 0.1)
    data = ImageSet(pixels, np.array([2], np.int32), ("one",), mean, std)
    task = draw(jax.random.key(0), data, 1, 1, 1, 1)
    got = np.concatenate([task.support[0][0], task.query[0][0]])
    wanted = (pixels[0] / 255.0 - np.array(mean)) / np.array(std)
    order = [0, 1] if np.allclose(got[0], wanted[0], atol=1e-5) else [1, 0]
    np.testing.assert_allclose(got, wanted[order], rtol=1e-5, atol=1e-6)


def test_the_key_determines_the_tasks():
    one, again, other = (draw(jax.random.key(k), numbered(), *SIZES) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one.support[0], other.support[0])


def test_vmap_and_scan_over_keys_equal_a_loop():
    data, keys = jax.device_put(numbered()), jax.random.split(jax.random.key(0), 3)
    looped = [draw(key, data, *SIZES) for key in keys]
    wanted = jax.tree.map(lambda *leaves: np.stack(leaves), *looped)
    mapped = jax.jit(jax.vmap(lambda key: sample_tasks(key, data, *SIZES)))(keys)
    jax.tree.map(np.testing.assert_array_equal, mapped, wanted)
    _, scanned = jax.lax.scan(lambda d, key: (d, sample_tasks(key, d, *SIZES)), data, keys)
    jax.tree.map(np.testing.assert_array_equal, scanned, wanted)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="names a kernel of XLA's CPU compiler")
def test_classes_and_images_are_chosen_without_sorting_them_all():
    """A full sort is ten times slower; XLA falls back to it for other types and fusions."""
    compiled = draw.lower(jax.random.key(0), numbered(), *SIZES).compile().as_text()
    assert "TopK" in compiled and " sort(" not in compiled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": 0}, "tasks must be a whole number >= 1, got 0"),
        ({"ways": -1}, "ways must be a whole number >= 1, got -1"),
        ({"ways": 7}, "ways must be at most 6, the classes; got 7"),
        ({"shots": 0}, "shots must be a whole number >= 1, got 0"),
        ({"shots": 1.0}, "shots must be a whole number >= 1, got 1.0"),
        ({"shots": True}, "shots must be a whole number >= 1, got True"),
        ({"query_shots": 0}, "query_shots must be a whole number >= 1, got 0"),
        (
            {"query_shots": 4},
            r"shots \+ query_shots must be at most 4, the images of the smallest class, "
            r"'class 1'; got 1 \+ 4 = 5",
        ),
    ],
)
def test_wrong_numbers_are_named(change, message):
    sizes = {"tasks": 2, "ways": 3, "shots": 1, "query_shots": 2} | change
    with pytest.raises(DataError, match=message):
        sample_tasks(jax.random.key(0), numbered(), **sizes)
    if "tasks" not in change:
        del sizes["tasks"]
        with pytest.raises(DataError, match=message):
            check_episode(numbered(), **sizes)


def test_largest_episode_passes_the_check():
    check_episode(numbered(), ways=6, shots=1, query_shots=3)


def test_traced_counts_are_checked_against_the_largest_class():
    draw(jax.random.key(0), numbered(), 1, 2, 6, 6)  # fits in 12, though not in the classes
    with pytest.raises(DataError, match="at most 12, the images of the largest class; got 6"):
        draw(jax.random.key(0), numbered(), 1, 2, 6, 7)


def test_numbers_that_are_traced_are_named():
    with pytest.raises(DataError, match="tasks determines shapes, so it must be static under jit"):
        jax.jit(sample_tasks)(jax.random.key(0), numbered(), 1, 2, 1, 1)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("images", np.zeros((6, 12, 2, 3, 2), np.float32), r"data.images must be uint8 \["),
        ("images", np.zeros((72, 2, 3), np.uint8), r"data.images must be uint8 \["),
        (
            "counts",
            np.ones(5, np.int32),
            r"data.counts must be \[6\], one for each name, got \[5\]",
        ),
        ("names", ("a",), r"data.counts must be \[1\], one for each name, got \[6\]"),
        ("counts", np.array([7, 0, 9, 5, 6, 12]), "class 'class 1' has no images"),
        ("counts", np.array([7, -4, 9, 5, 6, 12]), "class 'class 1' has no images"),
        ("counts", np.array([7, 4, 9, 5, 6, 13]), "class 'class 5' has more images than `largest`"),
        ("starts", np.arange(1, 7) * 12, "class 'class 5' ends beyond the 72 images"),
        ("starts", np.array([-1, 4, 9, 5, 6, 13]), "class 'class 0' ends beyond the 72 images"),
        ("mean", (0.0,), "data.mean must have 2 values"),
        ("std", (1.0, 1.0, 1.0), "data.std must have 2 values"),
        ("mean", (0.0, np.nan), "data.mean must be finite, got"),
        ("std", (1.0, 0.0), "data.std must be finite and not 0, got"),
    ],
)
def test_malformed_data_is_named(part, value, message):
    parts = {**vars(numbered()), part: value}
    with pytest.raises(DataError, match=message):
        check_episode(ImageSet(**parts), 2, 1, 1)
