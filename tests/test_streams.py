"""Task streams: rotations against PIL, draws against counts, look-ups against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from jaxsparse.data import (
    DataError,
    LabelledSet,
    TaskStream,
    augmentation,
    digits,
    streams,
    switching,
)

KEY = jax.random.key(0)


def labelled(counts, shape=(6, 5, 2), seed=0):
    """Random images, `counts[c]` of class c, in mixed order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    images = rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    channels = shape[-1]
    return LabelledSet(images, labels, (0.5,) * channels, (0.2,) * channels, len(counts))


@pytest.fixture(scope="module")
def pair():
    return labelled([9, 7, 8, 12]), labelled([3, 5, 4, 6], seed=1)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Images with strokes and empty corners, as those of MNIST."""
    return digits.load_digits("test", tmp_path_factory.mktemp("digits"), images_per_class=2)


def fails(match, call, *args, **kwargs):
    with pytest.raises(DataError, match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


# --- what the tasks are ---


@pytest.mark.parametrize("degrees", [0.0, 3.7, 45.0, 89.99, 90.0, 121.3, 179.999])
def test_rotated_images_match_pil(rendered, degrees):
    pixels = streams._rotation_map(28, 28, degrees)
    stream = TaskStream(rendered, rendered, pixel_maps=pixels[None])
    got, _ = streams.test_rows(stream, 0)
    want = [np.asarray(Image.fromarray(x[..., 0]).rotate(degrees)) for x in rendered.images]
    np.testing.assert_array_equal(np.asarray(got)[..., 0], want)


def test_turning_keeps_the_canvas_of_oblong_images():
    image = np.random.default_rng(0).integers(1, 256, (9, 14), dtype=np.uint8)
    pixels = streams._rotation_map(9, 14, 33.0)
    want = np.asarray(Image.fromarray(image).rotate(33.0)).ravel()
    np.testing.assert_array_equal(np.where(pixels < 0, 0, image.ravel()[pixels]), want)
    assert (pixels == -1).any()


def angle(pixels, side):
    """The rotation angle of a map in degrees, fitted to the source positions of all pixels."""
    at = np.stack(np.divmod(np.arange(side * side), side)) - (side - 1) / 2
    source = np.stack(np.divmod(pixels, side)) - (side - 1) / 2
    (y, x), (v, u) = at[:, pixels >= 0], source[:, pixels >= 0]
    # Counter-clockwise on a canvas whose y points down: u = x cos - y sin, v = x sin + y cos.
    return np.degrees(np.arctan2(np.sum(x * v - y * u), np.sum(x * u + y * v)))


def test_angles_grow_within_their_strata():
    images = labelled([2, 2], (64, 64, 1))
    maps = streams.rotations(images, images, tasks=20).pixel_maps
    assert maps.shape == (20, 64 * 64) and maps.dtype == np.int32
    angles = np.array([angle(pixels, 64) for pixels in maps])
    assert (np.abs(angles - (9 * np.arange(20) + 4.5)) < 4.5 + 0.1).all()
    # Uniform within the stratum, and not always its middle or its edge.
    assert np.ptp(angles - 9 * np.arange(20)) > 5
    other = streams.rotations(images, images, tasks=20, data_seed=1).pixel_maps
    assert (other != maps).any(1).all()
    np.testing.assert_array_equal(streams.rotations(images, images).pixel_maps, maps)
    three = streams.rotations(images, images, tasks=3).pixel_maps
    assert [int(angle(pixels, 64) // 60) for pixels in three] == [0, 1, 2]


def test_permutations_are_valid_and_all_different(pair):
    maps = streams.permutations(*pair, tasks=7).pixel_maps
    assert maps.shape == (7, 30) and maps.dtype == np.int32
    np.testing.assert_array_equal(np.sort(maps, 1), np.tile(np.arange(30), (7, 1)))
    assert len(np.unique(maps, axis=0)) == 7
    assert (maps[0] != np.arange(30)).any()
    np.testing.assert_array_equal(streams.permutations(*pair, tasks=7).pixel_maps, maps)
    assert (streams.permutations(*pair, tasks=7, data_seed=1).pixel_maps != maps).any(1).all()


def test_split_takes_classes_in_order_and_cuts_to_the_smallest_task(pair):
    stream = streams.split(*pair, classes_per_task=2)
    assert stream.num_tasks == 2
    assert stream.train_members.shape == (2, 16)  # 9 + 7 images, of 8 + 12
    assert stream.test_members.shape == (2, 8)  # 3 + 5, of 4 + 6
    for members, data in zip((stream.train_members, stream.test_members), pair, strict=True):
        assert members.dtype == np.int32
        for task, own in enumerate(members):
            belongs = [i for i, label in enumerate(data.labels) if label // 2 == task]
            assert own.tolist() == belongs[: len(own)]
    assert streams.split(*pair, classes_per_task=4).num_tasks == 1
    assert streams.split(*pair, classes_per_task=1).train_members.shape == (4, 7)


def test_hold_out_takes_the_last_of_each_class():
    labels = np.array([0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 1], np.int32)  # six of each
    images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    data = LabelledSet(images, labels, (0.1,), (0.3,), 2)
    rest, held = streams.hold_out(data)
    assert held.images.ravel().tolist() == [9, 11] and held.labels.tolist() == [0, 1]
    assert rest.images.ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert (held.mean, held.std, held.num_classes) == ((0.1,), (0.3,), 2)
    _, half = streams.hold_out(data, 0.5)
    assert half.images.ravel().tolist() == [5, 7, 8, 9, 10, 11]
    for fraction in (0.0, 0.01, 1.0, -0.5, np.nan, None, "half"):
        fails("fraction must leave images of every class", streams.hold_out, data, fraction)


# --- what a run sees of them ---


@pytest.fixture(scope="module")
def many():
    """Schedules for 4000 keys: three tasks with five of twelve images each."""
    stream = streams.permutations(labelled([12]), labelled([2]), tasks=3)
    draw = jax.jit(jax.vmap(lambda key: streams.draw_schedule(key, stream, 5)))
    return [np.asarray(x) for x in draw(jax.random.split(KEY, 4000))]


def test_a_task_sees_no_image_twice(many):
    tasks, indices = many
    assert tasks.shape == indices.shape == (4000, 3, 5)
    assert tasks.dtype == indices.dtype == np.int32
    assert (tasks == np.arange(3)[:, None]).all()
    assert indices.min() == 0 and indices.max() == 11
    assert (np.diff(np.sort(indices, -1), axis=-1) > 0).all()


def test_every_image_is_as_likely_at_every_place_in_every_task(many):
    indices = many[1]
    for task in range(3):
        for place in range(5):
            counts = np.bincount(indices[:, task, place], minlength=12)
            assert stats.chisquare(counts).pvalue > 1e-4
        pairs = np.bincount(12 * indices[:, task, 0] + indices[:, task, 1], minlength=144)
        pairs = pairs.reshape(12, 12)[~np.eye(12, dtype=bool)]
        assert stats.chisquare(pairs).pvalue > 1e-4


def test_tasks_draw_independently(many):
    indices = many[1]
    same = (indices[:, 0, 0] == indices[:, 1, 0]).sum()
    assert stats.binomtest(int(same), 4000, 1 / 12).pvalue > 1e-4


def test_members_bound_the_draw_and_none_means_all(pair):
    stream = streams.split(*pair)
    tasks, indices = streams.draw_schedule(KEY, stream, None)
    assert indices.shape == (2, 16)
    np.testing.assert_array_equal(np.sort(indices, 1), stream.train_members)
    assert (np.diff(indices, axis=1) < 0).any()  # shuffled
    np.testing.assert_array_equal(pair[0].labels[indices] // 2, tasks)
    _, few = streams.draw_schedule(KEY, stream, 3)
    assert all(set(np.asarray(a)) <= set(b) for a, b in zip(few, stream.train_members, strict=True))
    _, everything = streams.draw_schedule(KEY, streams.permutations(*pair, tasks=2), None)
    np.testing.assert_array_equal(np.sort(everything, 1), np.tile(np.arange(36), (2, 1)))


def test_joint_training_sees_the_same_pairs_shuffled(pair):
    stream = streams.split(*pair)
    alone = streams.draw_schedule(KEY, stream, 12)
    joint = streams.draw_schedule(KEY, stream, 12, joint=True)
    listed = [sorted(zip(*(np.asarray(x).ravel() for x in s), strict=True)) for s in (alone, joint)]
    assert listed[0] == listed[1]
    assert joint[0].shape == (2, 12)
    assert all(set(row) == {0, 1} for row in np.asarray(joint[0]).tolist())


def test_same_key_same_schedule(pair):
    stream = streams.permutations(*pair, tasks=3)
    draw = jax.jit(streams.draw_schedule, static_argnums=(2, 3))
    one, two = (draw(KEY, jax.device_put(stream), 9, True) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, streams.draw_schedule(KEY, stream, 9, True))
    assert (np.asarray(draw(jax.random.key(1), stream, 9, True)) != np.asarray(one)).any()


def by_hand(stream, data, task, indices):
    """The images, computed by loops over pixels."""
    images = data.images[indices]
    if stream.pixel_maps is None:
        return images
    n, h, w, c = images.shape
    out = np.zeros((n, h * w, c), np.uint8)
    for to, source in enumerate(stream.pixel_maps[task]):
        if source >= 0:
            out[:, to] = images[:, source // w, source % w]
    return out.reshape(n, h, w, c)


@pytest.mark.parametrize("build", [streams.rotations, streams.permutations, streams.split])
def test_rows_are_looked_up_under_their_tasks_map(pair, build):
    stream = build(*pair, 2)
    tasks, indices = np.array([1, 0, 1, 1]), np.array([35, 0, 7, 0])
    images, labels = jax.jit(streams.train_rows)(stream, tasks, indices)
    want = [by_hand(stream, pair[0], t, [i])[0] for t, i in zip(tasks, indices, strict=True)]
    assert images.dtype == jnp.uint8 and labels.dtype == jnp.int32
    np.testing.assert_array_equal(images, want)
    np.testing.assert_array_equal(labels, pair[0].labels[indices])
    for task in range(2):
        members = range(18) if stream.test_members is None else stream.test_members[task]
        images, labels = jax.jit(streams.test_rows)(stream, task)
        assert images.dtype == jnp.uint8 and labels.dtype == jnp.int32
        np.testing.assert_array_equal(images, by_hand(stream, pair[1], task, list(members)))
        np.testing.assert_array_equal(labels, pair[1].labels[list(members)])


def test_rows_inside_loops_and_over_seeds(pair):
    stream = jax.device_put(streams.rotations(*pair, 3))

    def run(key, stream):
        schedule = streams.draw_schedule(key, stream, 4)
        _, batches = lax.scan(lambda _, rows: (0, streams.train_rows(stream, *rows)), 0, schedule)
        tested = lax.map(lambda task: streams.test_rows(stream, task), jnp.arange(3))
        return schedule, batches, tested

    keys = jax.random.split(KEY, 2)
    schedule, batches, tested = jax.jit(jax.vmap(run, (0, None)))(keys, stream)
    for seed in range(2):
        for task in range(3):
            rows = [x[seed, task] for x in schedule]
            one = streams.train_rows(stream, *rows)
            jax.tree.map(np.testing.assert_array_equal, [x[seed, task] for x in batches], list(one))
            test = streams.test_rows(stream, task)
            jax.tree.map(np.testing.assert_array_equal, [x[seed, task] for x in tested], list(test))


# --- augmentation ---


def test_brightness_matches_pil_for_every_value():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    factors = np.linspace(1 - 63 / 255, 1 + 63 / 255, 301).astype(np.float32)
    got = augmentation._brightened(jnp.asarray(values.repeat(301, 0)), jnp.asarray(factors))
    image = Image.fromarray(values[0])
    want = [np.asarray(ImageEnhance.Brightness(image).enhance(float(f))) for f in factors]
    np.testing.assert_array_equal(got, want)


def test_crop_and_mirror_match_pil():
    images = np.random.default_rng(0).integers(0, 256, (162, 32, 32, 3), dtype=np.uint8)
    places = np.stack(np.divmod(np.arange(162) % 81, 9), 1)
    flips = np.arange(162) >= 81
    got = augmentation._shifted(jnp.asarray(images), jnp.asarray(places), jnp.asarray(flips))
    for i, (y, x) in enumerate(places):
        whole = ImageOps.expand(Image.fromarray(images[i]), border=4)
        want = whole.crop((x, y, x + 32, y + 32))
        want = want.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips[i] else want
        np.testing.assert_array_equal(got[i], np.asarray(want))


def test_augmentation_draws_for_each_image_separately():
    """Two marks show where an image was moved, whether it was mirrored, and its brightness."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[16, 12], image[16, 20] = 100, 200
    out = np.asarray(jax.jit(streams.augment)(KEY, jnp.asarray(np.tile(image, (6000, 1, 1, 1)))))
    assert out.dtype == np.uint8 and out.shape == (6000, 32, 32, 3)
    flat = out[..., 0].reshape(6000, -1)
    bright = flat.argmax(1)
    assert ((flat > 0).sum(1) == 2).all()
    dark = np.where(np.arange(1024) == bright[:, None], 0, flat).argmax(1)
    mirrored = bright % 32 < dark % 32
    assert (bright // 32 == dark // 32).all() and (np.abs(bright % 32 - dark % 32) == 8).all()
    down = bright // 32 - 16
    across = np.where(mirrored, 31 - dark % 32, dark % 32) - 12
    light = flat.max(1)
    assert (down.min(), down.max(), across.min(), across.max()) == (-4, 4, -4, 4)
    table = np.histogramdd((down, across, mirrored), (9, 9, 2))[0]
    assert stats.chisquare(table.ravel()).pvalue > 1e-4
    # 200 x [1 - 63/255, 1 + 63/255], rounded down
    assert light.min() == 150 and light.max() == 249
    assert stats.chisquare(np.histogram(light, np.arange(151, 250))[0]).pvalue > 1e-4
    assert abs(np.corrcoef([down, across, mirrored, light]) - np.eye(4)).max() < 0.06
    again = jax.jit(streams.augment)(KEY, jnp.asarray(np.tile(image, (6000, 1, 1, 1))))
    np.testing.assert_array_equal(again, out)


# --- what does not go together ---


def test_bad_arguments_are_named(pair):
    train, test = pair
    fails(r"tasks must be a whole number >= 1, got 0", streams.rotations, *pair, tasks=0)
    fails(r"tasks must be a whole number >= 1, got 2.0", streams.permutations, *pair, tasks=2.0)
    fails(r"classes_per_task must divide the 4 classes, got 3", streams.split, *pair, 3)
    fails(r"one image shape, got \(6, 5, 2\) and", streams.split, train, labelled([1], (6, 6, 2)))
    fails("one number of classes, got 4 and 1", streams.rotations, train, labelled([1]))
    fails("test: there is a task without images", streams.split, train, labelled([2, 1, 0, 0]))
    floats = LabelledSet(train.images / 255, train.labels, train.mean, train.std, 4)
    fails(r"train.images must be uint8 \[n, h, w, c\], got float64", streams.split, floats, test)
    short = LabelledSet(test.images, test.labels[1:], test.mean, test.std, 4)
    fails(r"test.labels must be \[18\], got \[17\]", streams.permutations, train, short)


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_outside_the_classes_are_refused(pair, label):
    train, test = pair
    wrong = dataclasses.replace(test, labels=np.where(np.arange(18) == 5, label, test.labels))
    for build in (streams.rotations, streams.permutations, streams.split):
        fails(rf"test.labels must lie in 0 .. 3, got {label}", build, train, wrong, 2)
    fails(rf"train.labels must lie in 0 .. 3, got {label}", streams.hold_out, wrong)
    fails(rf"data.labels must lie in 0 .. 3, got {label}", switching.by_class, wrong)
    fails(rf"test.labels must .* got {label}", streams.check_stream, TaskStream(train, wrong))
    floats = dataclasses.replace(test, labels=test.labels / 1.0)
    fails("test.labels must be whole numbers, got float64", streams.split, train, floats)
    bad_scale = dataclasses.replace(test, std=(1.0,))
    fails("test.std must have 2 values, one per channel", streams.split, train, bad_scale)
    for part, scale in (("mean", (0.0, np.inf)), ("std", (1.0, 0.0)), ("std", (1.0, np.nan))):
        bad_scale = dataclasses.replace(test, **{part: scale})
        fails(f"test.{part} must be finite", streams.split, train, bad_scale)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"train_members": [[0, 1], [2, 36]]}, r"train_members must lie in 0 .. 35, got 36"),
        ({"test_members": [[0, 1], [-1, 3]]}, r"test_members must lie in 0 .. 17, got -1"),
        ({"train_members": [[0, 1]]}, r"test_members must be \[1, images\], got \[2, 8\]"),
        ({"test_members": [0, 1]}, r"test_members must be \[2, images\], got \[2\]"),
        ({"train_members": [[], []]}, r"train_members must be \[2, images\], got \[2, 0\]"),
        ({"pixel_maps": np.full((2, 30), 30)}, r"pixel_maps must lie in -1 .. 29, got 30"),
        ({"pixel_maps": np.full((2, 30), -2)}, r"pixel_maps must lie in -1 .. 29, got -2"),
        ({"pixel_maps": np.zeros((2, 29), int)}, r"pixel_maps must be \[2, 30\], got \[2, 29\]"),
        ({"pixel_maps": np.zeros((2, 30))}, "pixel_maps must be whole numbers, got float64"),
    ],
)
def test_streams_whose_parts_do_not_go_together_are_refused(pair, change, match):
    change = {name: np.asarray(value) for name, value in change.items()}
    wrong = dataclasses.replace(streams.split(*pair), **change)
    fails(rf"^stream.{match}", streams.check_stream, wrong)
    fails(rf"^stream.{match}", streams.draw_schedule, KEY, wrong, None)


def test_impossible_draws_and_look_ups_are_refused(pair):
    stream = streams.permutations(*pair, tasks=2)
    for count, match in ((37, "at most 36, .*; got 37"), (0, "whole number >= 1, got 0")):
        fails(
            f"samples_per_task must be {match}|{match}", streams.draw_schedule, KEY, stream, count
        )
    fails("at most 16", streams.draw_schedule, KEY, streams.split(*pair), 17)
    ones = jnp.zeros(2, jnp.int32)
    fails(r"one shape \[b\], got \[2\] and \[1\]", streams.train_rows, stream, ones, ones[:1])
    fails(r"one shape \[b\], got \[\] and \[\]", streams.train_rows, stream, ones[0], ones[0])
    fails(r"uint8 \[b, h, w, c\], got float32", streams.augment, KEY, jnp.zeros((2, 32, 32, 3)))
    fails(
        r"uint8 \[b, h, w, c\], got uint8 \[32", streams.augment, KEY, jnp.zeros((32, 32, 3), "u1")
    )


def test_stream_is_a_tree_that_compiled_functions_take(pair):
    stream = streams.split(*pair)
    assert len(jax.tree.leaves(stream)) == 6 and stream.num_tasks == 2
    moved = jax.device_put(stream)
    assert moved.train.mean == (0.5, 0.5) and moved.train.num_classes == 4
    assert TaskStream(*pair).num_tasks == 1
