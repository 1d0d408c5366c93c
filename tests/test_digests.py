"""The fingerprint of data: the same for the same content, another for any change."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest
from PIL import Image

from jaxsparse.data import ImageSet, LabelledSet, digests, fingerprint, load, streams, switching

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)


def image_set(**change):
    data = ImageSet(PIXELS, np.array([5, 7], np.int32), ("a", "b"), (0.1,) * 3, (0.5,) * 3)
    return dataclasses.replace(data, **change)


def labelled(**change):
    labels = np.arange(12, dtype=np.int32) % 4
    return dataclasses.replace(LabelledSet(PIXELS, labels, (0.1,) * 3, (0.5,) * 3, 4), **change)


def other(array):
    changed = np.array(array)
    changed.flat[-1] += 1
    return changed


SETS = {
    "splits": {"train": image_set(), "test": image_set()},
    "stream": streams.permutations(labelled(), labelled(), tasks=2),
    "split stream": streams.split(labelled(), labelled()),
    "switching": switching.side_by_side({"a": image_set(), "b": image_set()}),
}


@pytest.mark.parametrize("kind", SETS)
def test_the_fingerprint_depends_only_on_content(kind):
    data = SETS[kind]
    first = fingerprint(data)
    assert len(first) == 64 and int(first, 16) >= 0
    assert fingerprint(jax.tree.map(np.array, data)) == first
    assert fingerprint(jax.device_put(data)) == first
    assert fingerprint(jax.tree.map(np.asfortranarray, data)) == first
    others = {first}
    leaves, tree = jax.tree.flatten(data)
    for i, leaf in enumerate(leaves):
        changed = jax.tree.unflatten(tree, [*leaves[:i], other(leaf), *leaves[i + 1 :]])
        others.add(fingerprint(changed))
    assert len(others) == len(leaves) + 1


def test_names_scales_and_kinds_count():
    changes = [{}, {"names": ("a", "c")}, {"mean": (0.2,) * 3}, {"std": (0.4,) * 3}]
    data = [image_set(**change) for change in changes]
    data += [labelled(), labelled(num_classes=5), [image_set()], {"train": image_set()}]
    assert len({fingerprint(one) for one in data}) == len(data)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_the_fingerprint_is_the_same_on_every_machine():
    """A stored constant: if it changed, no existing run could be resumed."""
    wanted = "d83e4b6cd8c433fd54e87fb4cab6cab133a8aa219057d0cec90680c2c2397640"
    assert fingerprint({"train": image_set(), "test": labelled()}) == wanted


def test_a_digest_is_sha256_of_little_endian_rows():
    numbers = np.arange(6, dtype=">i4").reshape(2, 3)
    wanted = hashlib.sha256(b"".join(int(n).to_bytes(4, "little") for n in range(6))).hexdigest()
    assert digests.digest(numbers) == digests.digest(np.asfortranarray(numbers)) == wanted


def test_data_without_a_fingerprint_is_named():
    for thing in (object(), np.array(["a"]), {1, 2}):
        with pytest.raises(TypeError, match="a fingerprint cannot be taken of"):
            fingerprint(thing)


def test_cached_images_are_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    for i, pixels in enumerate(PIXELS):
        (tmp_path / "train" / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "train" / f"c{i % 2}" / f"{i}.png")
    data = load("folder", "train", tmp_path, image_size=4)
    copied = jax.tree.map(np.array, data)
    part = data.take([1])
    wanted = fingerprint(copied), fingerprint(jax.tree.map(np.array, part))
    assert fingerprint(data) == wanted[0]
    read = []
    monkeypatch.setattr(digests, "digest", lambda array: read.append(array.dtype) or "x")
    fingerprint(data)
    assert np.uint8 not in read
    monkeypatch.undo()
    # A part of the file and a reversed view do not have the digest of the file.
    assert fingerprint(part) == wanted[1]
    part = dataclasses.replace(data, images=data.images[:6])
    assert fingerprint(part) == fingerprint(jax.tree.map(np.array, part))
    turned = dataclasses.replace(data, images=data.images[::-1])
    assert fingerprint(turned) == fingerprint(jax.tree.map(np.array, turned)) != wanted[0]
    (meta,) = (tmp_path / "cache").rglob("meta.json")
    meta.unlink()
    assert fingerprint(data) == wanted[0]
