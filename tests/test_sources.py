"""Datasets by name: made-up trees in a temporary folder, and real data if TFDS has it."""

import json
import os
import pickle
import shutil
import sys
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_up import fails, manual_folder, pixels, tree
from PIL import Image

from jaxsparse import user_cache
from jaxsparse.data import DataError, cache, fingerprint, load, omniglot, pictures

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _own_cache(request, tmp_path, monkeypatch):
    if "real" not in request.fixturenames:
        monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def real():
    """Find a real dataset in the TFDS folder, or skip."""

    def find(name):
        root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        places = {"omniglot": "omniglot", "mini_imagenet": "downloads/manual/mini_imagenet"}
        if not (root / places[name]).is_dir():
            pytest.skip(f"{name} is not in {root}")
        return root

    return find


# --- your own folder ---


def test_folder_holds_every_image_under_its_class(tmp_path):
    written = tree(tmp_path, {"train": {"b": 2, "a": 3}, "val": {"c": 1}, "test": {"d": 2}})
    data = load("folder", "train", tmp_path, image_size=10)
    assert data.names == ("a", "b")
    assert data.images.shape == (5, 10, 10, 3) and data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.counts, [3, 2])
    assert data.counts.dtype == np.int32
    for c, name in enumerate(data.names):
        for i in range(data.counts[c]):
            np.testing.assert_array_equal(data.of_class(c)[i], written["train", name, i])
    assert load("folder", "validation", tmp_path).names == ("c",)
    assert load("folder", "test", str(tmp_path)).names == ("d",)


def test_folder_validation_may_be_spelt_out(tmp_path):
    tree(tmp_path, {"train": {"a": 1}, "validation": {"b": 1}})
    assert load("folder", "validation", tmp_path).names == ("b",)


def test_folder_resizes_to_a_square(tmp_path):
    tree(tmp_path, {"train": {"a": 1}}, size=(30, 50))
    (tmp_path / "train" / "a" / "0.png").unlink()
    half = np.zeros((30, 50, 3), np.uint8)
    half[:, 25:] = (200, 100, 50)
    Image.fromarray(half).save(tmp_path / "train" / "a" / "wide.jpeg", quality=95)
    image = load("folder", "train", tmp_path).images[0].astype(int)
    assert image.shape == (84, 84, 3)
    assert image[:, :38].max() < 8
    assert abs(image[:, 46:] - (200, 100, 50)).max() < 8
    assert load("folder", "train", tmp_path, image_size=20).image_shape == (20, 20, 3)


def test_folder_shrinks_without_aliasing(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    chequered = np.uint8(255) * (np.indices((40, 40)).sum(0) % 2).astype(np.uint8)
    Image.fromarray(chequered).save(tmp_path / "train" / "a" / "0.png")
    image = load("folder", "train", tmp_path, image_size=20).images[0].astype(int)
    assert abs(image[1:-1, 1:-1] - 127).max() < 8


def test_folder_is_grey_only_where_all_training_images_are(tmp_path):
    tree(tmp_path, {"train": {"a": 2}, "test": {"b": 1}}, channels=1)
    tree(tmp_path, {"val": {"c": 1}}, channels=3)
    for split in SPLITS:
        data = load("folder", split, tmp_path)
        assert data.image_shape == (84, 84, 1)
        assert (data.mean, data.std) == ((0.0,), (1.0,))
    Image.fromarray(pixels(0, 9, 9)).save(tmp_path / "train" / "a" / "colour.png")
    for split in SPLITS:
        data = load("folder", split, tmp_path)
        assert data.image_shape == (84, 84, 3)
        assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_folder_may_hold_a_test_split_alone(tmp_path):
    tree(tmp_path, {"test": {"b": 1}}, channels=1)
    assert load("folder", "test", tmp_path).image_shape == (84, 84, 1)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    ramp = (np.arange(100, dtype=np.uint16) * 655).reshape(10, 10)
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(ramp).save(tmp_path / "train" / "a" / "0.png")
    image = load("folder", "train", tmp_path, image_size=10).images[0, :, :, 0]
    np.testing.assert_array_equal(image, ramp // 257)


def test_hidden_files_and_other_files_are_passed_over(tmp_path):
    tree(tmp_path, {"train": {"a": 1}})
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "README.txt").write_text("no class")
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    data = load("folder", "train", tmp_path)
    assert data.names == ("a",) and data.counts.tolist() == [1]


# --- what can be wrong with it ---


def test_unknown_names_are_answered_with_the_known_ones():
    fails(
        "no dataset 'imagenet'; there are: glyphs, omniglot, .*mini_imagenet", "imagenet", "train"
    )
    fails("no split 'val'; there are: train, validation, test", "glyphs", "val")
    fails("image_size must be a whole number of pixels, got 2.5", "glyphs", "train", image_size=2.5)
    fails("image_size must be a whole number of pixels, got '9'", "glyphs", "train", image_size="9")
    fails("image_size must be at least 1 pixel, got 0", "folder", "train", ".", image_size=0)


def test_a_missing_or_odd_data_dir_is_named(tmp_path):
    fails("'folder' needs data_dir", "folder", "train")
    fails("nowhere: there is no such folder", "folder", "train", tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    fails("file: is a file, not a folder", "omniglot", "train", tmp_path / "file")
    fails("no folder val or validation in it", "folder", "validation", tmp_path)


def test_data_that_are_not_prepared_say_what_to_do(tmp_path, monkeypatch):
    fails("omniglot: not prepared in .*download_and_prepare", "omniglot", "train", tmp_path)
    fails(r"mini_imagenet: not found in .*manual; put ", "mini_imagenet", "train", tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    fails(f"{tmp_path / 'tfds'}: there is no such folder", "omniglot", "train")


def test_records_that_are_no_records_are_a_data_error(tmp_path):
    (tmp_path / "omniglot" / "3.0.0").mkdir(parents=True)
    (tmp_path / "omniglot" / "3.0.0" / "omniglot-train.array_record-0-of-1").write_bytes(b"x")
    fails("omniglot: TFDS cannot read it in ", "omniglot", "train", tmp_path)


def test_a_damaged_omniglot_image_is_named(tmp_path, monkeypatch):
    record = {"alphabet": 0, "alphabet_char_id": 0, "image": b"x"}
    monkeypatch.setattr(omniglot, "_CHARACTERS", 1)
    monkeypatch.setattr(omniglot, "records", lambda name, split, folder: 10 * [record])
    with pytest.raises(DataError, match=f"omniglot: an image in {tmp_path}: not a readable image"):
        list(omniglot._rows(tmp_path, 28).images)


def test_empty_folders_are_named(tmp_path):
    (tmp_path / "train").mkdir()
    fails("train: there are no class folders in it", "folder", "train", tmp_path)
    tree(tmp_path, {"train": {"a": 1, "b": 0}})
    fails("train/b: a class folder without images", "folder", "train", tmp_path)


def _truncated(path):
    Image.fromarray(pixels(0, 64, 64)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])


def _bomb(path):
    Image.new("1", (10_000, 10_000)).save(path)  # a whole image in 12 kB


BROKEN = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image"),
    "truncated": _truncated,
    "bomb": _bomb,
    "dangling link": lambda path: path.symlink_to("nowhere.png"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.filterwarnings("default")  # as users run: a bomb must not depend on -W error
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_named(tmp_path, kind):
    tree(tmp_path, {"train": {"a": 2}})
    BROKEN[kind](tmp_path / "train" / "a" / "bad.png")
    fails(r"train/a/bad\.png: (not a readable image|cannot be read)", "folder", "train", tmp_path)
    assert not [p for p in (tmp_path / "cache").glob("*") if p.name[0] != "."]
    assert not list((tmp_path / "cache").glob(".*")), "half-written caches stay behind"


def test_links_that_loop_end(tmp_path):
    tree(tmp_path, {"train": {"a": 1}})
    (tmp_path / "train" / "a" / "up").symlink_to(tmp_path / "train")
    assert load("folder", "train", tmp_path).names == ("a",)
    (tmp_path / "train" / "loop").symlink_to("loop")
    fails("train/loop: cannot be read", "folder", "train", tmp_path)


def test_no_class_may_be_in_two_splits(tmp_path):
    tree(tmp_path, {"train": {"a": 1, "b": 1}, "val": {"c": 1}, "test": {"d": 1}})
    for split in SPLITS:
        load("folder", split, tmp_path)
    tree(tmp_path, {"test": {"b": 1}})
    fails("train/b and .*test/b: one class in two splits", "folder", "train", tmp_path)
    fails("test/b and .*train/b: one class in two splits", "folder", "test", tmp_path)
    load("folder", "validation", tmp_path)
    shutil.rmtree(tmp_path / "test" / "b")
    (tmp_path / "test" / "e").symlink_to(tmp_path / "val" / "c")
    fails("val/c and .*test/e: one class in two splits", "folder", "validation", tmp_path)


def test_splits_with_numbered_classes_give_a_warning(tmp_path):
    names = {"0": 2, "1": 2}
    tree(tmp_path, {"train": names, "val": names, "test": names})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for split in SPLITS:
            assert load("folder", split, tmp_path).names == ("0", "1")
    (line,) = (str(warning.message) for warning in told)
    assert "the classes of train and test have the same names" in line and "\n" not in line
    shutil.copy(tmp_path / "train" / "1" / "1.png", tmp_path / "val" / "1" / "1.png")
    fails("val/1 and .*train/1: one class in two splits", "folder", "validation", tmp_path)
    fails("train/1 and .*val/1: one class in two splits", "folder", "train", tmp_path)


def test_no_file_may_be_there_twice(tmp_path):
    tree(tmp_path, {"train": {"a": 1, "b": 1}, "test": {"c": 1}})
    image = tmp_path / "train" / "a" / "0.png"
    for other in ("train/a/1.png", "train/b/1.png", "test/c/1.png"):
        for link in (os.symlink, os.link):
            link(image, tmp_path / other)
            fails("one file under two names", "folder", other.split("/")[0], tmp_path)
            (tmp_path / other).unlink()
    (tmp_path / "train" / "z").symlink_to(tmp_path / "train" / "b")
    fails("train/z/0.png and .*train/b/0.png: one file under two", "folder", "train", tmp_path)


def test_links_to_other_folders_and_files_are_followed(tmp_path):
    tree(tmp_path / "elsewhere", {"x": {"a": 2}, "y": {"0": 1}})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere" / "x")
    image = tmp_path / "elsewhere" / "y" / "0" / "0.png"
    (tmp_path / "elsewhere" / "x" / "a" / "linked.png").symlink_to(image)
    assert load("folder", "train", tmp_path / "data").counts.tolist() == [3]


@pytest.mark.parametrize(
    "name", [b"two\nlines", b"no utf-8 \xff", b"bell\a", "line\u2028".encode()]
)
def test_class_folders_must_have_names_to_print(tmp_path, name):
    tree(tmp_path, {"train": {"a": 1}})
    (tmp_path / "train" / "a").rename(tmp_path / "train" / os.fsdecode(name))
    fails("train: the class folder '.*' must have a name", "folder", "train", tmp_path)
    written = str(tmp_path / "train")
    with pytest.raises(DataError) as caught:
        load("folder", "train", tmp_path)
    assert str(caught.value).startswith(written) and str(caught.value).isprintable()


def test_names_of_all_languages_and_odd_file_names_are_read(tmp_path):
    names = (
        "kirja \u0915\u094d\u200d\u0937",
        "\U0001f468\u200d\U0001f469",
        "[a*?]",
        "'quoted' \"name\"",
    )
    tree(tmp_path, {"train": dict.fromkeys(names, 1)})
    odd = tmp_path / "train" / "[a*?]" / os.fsdecode(b"\xff\n0.png")
    odd.with_name("0.png").rename(odd)
    data = load("folder", "train", tmp_path)
    assert set(data.names) == set(names)
    odd.write_bytes(b"")
    fails(r"0\.png.*: not a readable image", "folder", "train", tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "nul\0", "~nosuchuser/data"])
def test_a_data_dir_that_no_folder_can_have_is_named(name):
    fails(
        "folder: data_dir .*: (there is no such folder|cannot be read: File name|has no home)",
        "folder",
        "train",
        name,
    )
    fails(
        "omniglot: data_dir .*: (there is no such folder|cannot be read: File name|has no home)",
        "omniglot",
        "test",
        name,
    )


@pytest.mark.parametrize("where", ["", "train", "train/a", "train/a/0.png"])
def test_what_may_not_be_read_is_named(tmp_path, monkeypatch, where):
    tree(tmp_path, {"train": {"a": 1}})
    closed = str(tmp_path / where)

    def refusing(function):
        def refuse(path=".", *args, **kwargs):
            if isinstance(path, str | Path) and str(path).startswith(closed):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *args, **kwargs)

        return refuse

    for module, name in ((os, "scandir"), (os, "stat"), (os, "open"), (Path, "stat")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name)))
    fails("(cannot be read|not a readable image): Permission denied", "folder", "train", tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_an_unreadable_folder_is_named(tmp_path):
    tree(tmp_path, {"train": {"a": 1}})
    (tmp_path / "train" / "a").chmod(0)
    fails("train/a: cannot be read: Permission denied", "folder", "train", tmp_path)


# --- the cache ---


def no_decoding(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(pictures, "fit", fail)


def test_unequal_classes_take_no_more_room_than_their_images(tmp_path):
    written = tree(tmp_path, {"train": {"large": 60, "a": 2, "z": 1}})
    data = load("folder", "train", tmp_path, image_size=10)
    assert data.images.shape == (63, 10, 10, 3) and data.counts.tolist() == [2, 60, 1]
    np.testing.assert_array_equal(data.of_class(1)[59], written["train", "large", 9])
    np.testing.assert_array_equal(data.of_class(2)[0], written["train", "z", 0])
    (file,) = (tmp_path / "cache").rglob("images.npy")
    assert file.stat().st_size < 63 * 300 + 200
    np.testing.assert_array_equal(np.load(file), data.images)


@pytest.mark.parametrize("what", ["disk", "memory"])
def test_images_that_find_no_room_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, what
):
    tree(tmp_path, {"train": {"a": 3}})
    if what == "disk":
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage)
    else:
        monkeypatch.setattr(cache.machine, "memory", lambda: 1000)
    no_decoding(monkeypatch)
    match = r"^3 x 84 x 84 x 3 bytes of pixels are 6.35e-05 GB, there are 1e-06 GB (free|memory)"
    fails(match, "folder", "train", tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_path_to_the_data_does_not_matter(tmp_path, monkeypatch):
    tree(tmp_path / "data", {"train": {"a": 3}, "test": {"b": 1}})
    (tmp_path / "link").symlink_to(tmp_path / "data")
    first = load("folder", "train", tmp_path / "data"), load("folder", "test", tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    no_decoding(monkeypatch)
    for way in (".", "../data", "../link", tmp_path / "link", f"{tmp_path}/data/"):
        again = load("folder", "train", way), load("folder", "test", way)
        assert fingerprint(again) == fingerprint(first)
    monkeypatch.undo()
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = load("folder", "train", tmp_path / "moved"), load("folder", "test", tmp_path / "moved")
    assert fingerprint(moved) == fingerprint(first)


def test_the_second_load_decodes_nothing(tmp_path, monkeypatch):
    tree(tmp_path, {"train": {"a": 3, "b": 2}})
    first = load("folder", "train", tmp_path)
    no_decoding(monkeypatch)
    second = load("folder", "train", tmp_path)
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.counts, second.counts)
    assert (first.names, first.mean, first.std) == (second.names, second.mean, second.std)
    assert not second.images.flags.owndata, "read into memory, not mapped"


def test_changed_images_are_decoded_again(tmp_path):
    tree(tmp_path, {"train": {"a": 1}})
    load("folder", "train", tmp_path, image_size=10)
    new = pixels(99, 10, 10)
    Image.fromarray(new).save(tmp_path / "train" / "a" / "0.png")
    os.utime(tmp_path / "train" / "a" / "0.png", ns=(1, 1))
    np.testing.assert_array_equal(load("folder", "train", tmp_path, image_size=10).images[0], new)


def _cut(path):
    with (path / "images.npy").open("r+b") as file:
        file.truncate(1000)


def _zero(path):
    with (path / "images.npy").open("r+b") as file:
        file.seek(20_000)
        file.write(bytes(500))


def _rename_class(path):
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"names": ["z", "y"]}))


DAMAGE = {
    "images cut short": _cut,
    "images overwritten": _zero,
    "images gone": lambda path: (path / "images.npy").unlink(),
    "images empty": lambda path: (path / "images.npy").write_bytes(b""),
    "meta cut short": lambda path: (path / "meta.json").write_text('{"names": ["a"'),
    "meta of another kind": lambda path: (path / "meta.json").write_text("[1]"),
    "meta changed": _rename_class,
}


def _instead(make):
    def replace(path):
        shutil.rmtree(path)
        make(path)

    return replace


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _folder(path):
    path.unlink()
    (path / "in it").mkdir(parents=True)


DAMAGE |= {
    "meta not UTF-8": lambda path: (path / "meta.json").write_bytes(b'{"names": "\xff"}'),
    "meta deep": lambda path: (path / "meta.json").write_bytes(b"[" * 100_000),
    "meta a pipe": lambda path: _pipe(path / "meta.json"),
    "meta a folder": lambda path: _folder(path / "meta.json"),
    "meta empty": lambda path: (path / "meta.json").write_bytes(b""),
    "images a pipe": lambda path: _pipe(path / "images.npy"),
    "images a folder": lambda path: _folder(path / "images.npy"),
    "a file in its place": _instead(lambda path: path.write_text("x")),
    "a pipe in its place": _instead(os.mkfifo),
    "an empty folder in its place": _instead(Path.mkdir),
    "a link to itself in its place": _instead(lambda path: path.symlink_to(path.name)),
}


@pytest.mark.parametrize("whole", [2**26, 0], ids=["checked whole", "checked in samples"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again(tmp_path, damage, whole, monkeypatch):
    monkeypatch.setattr(cache, "_WHOLE", whole)
    tree(tmp_path, {"train": {"a": 3, "b": 2}})
    first = load("folder", "train", tmp_path)
    expected = np.array(first.images)
    del first
    (path,) = (tmp_path / "cache").iterdir()
    DAMAGE[damage](path)
    for _ in range(2):
        data = load("folder", "train", tmp_path)
        np.testing.assert_array_equal(data.images, expected)
        assert data.names == ("a", "b")
        no_decoding(monkeypatch)  # the second time the cache must be whole again


def test_a_changed_byte_is_detected(tmp_path, monkeypatch):
    tree(tmp_path, {"train": {"a": 2}})
    expected = np.array(load("folder", "train", tmp_path, image_size=4).images)
    (entry,) = (tmp_path / "cache").iterdir()
    for name in ("meta.json", "images.npy"):
        whole = (entry / name).read_bytes()
        for at in range(len(whole)):
            for bit in (1, 128):
                changed = bytearray(whole)
                changed[at] ^= bit
                (entry / name).write_bytes(changed)
                found = cache._open(entry)
                same = found is not None and (found.images == expected).all()
                assert found is None or (same and found.names == ("a",)), (name, at)
        (entry / name).write_bytes(whole)
    assert cache._open(entry) is not None


def test_only_leftovers_of_dead_processes_are_removed(tmp_path):
    tree(tmp_path, {"train": {"a": 1}})
    load("folder", "train", tmp_path)
    (entry,) = (tmp_path / "cache").iterdir()
    shutil.rmtree(entry)
    with user_cache.partial(entry) as building:
        building.mkdir()
        left = building.with_name(building.name.replace(f"-{os.getpid()}-", "-4194304-"))
        left.mkdir()
        (left / "images.npy").write_bytes(b"half")
        load("folder", "train", tmp_path)
        assert building.is_dir() and not left.exists()
    assert list((tmp_path / "cache").iterdir()) == [entry]


def test_a_second_writer_of_the_cache_is_no_error(tmp_path, monkeypatch):
    tree(tmp_path, {"train": {"a": 1}})
    write = cache._write

    def slower(path, rows):
        write(path, rows)
        monkeypatch.setattr(cache, "_write", write)
        load("folder", "train", tmp_path)  # the other process finishes first

    monkeypatch.setattr(cache, "_write", slower)
    assert load("folder", "train", tmp_path).names == ("a",)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_that_another_process_has_just_written_is_kept(tmp_path, monkeypatch):
    """Its files may be mapped already; removing them would also hide them for a moment."""
    tree(tmp_path, {"train": {"a": 1}})
    put, numbers = cache.put, []

    def later(new, path):
        monkeypatch.setattr(cache, "put", put)
        load("folder", "train", tmp_path)  # the other process is faster by a moment
        numbers.append((path / "images.npy").stat().st_ino)
        put(new, path)

    monkeypatch.setattr(cache, "put", later)
    assert load("folder", "train", tmp_path).names == ("a",)
    (path,) = (tmp_path / "cache").iterdir()
    assert [(path / "images.npy").stat().st_ino] == numbers


def test_a_cache_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    tree(tmp_path, {"train": {"a": 1}})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "file"))
    fails("cannot write the cache: .*; set JAXSPARSE_CACHE", "folder", "train", tmp_path)


# --- miniImageNet, made up ---


def test_mini_imagenet_from_class_folders(tmp_path):
    layout = {"train": {"n1": 3, "n2": 3}, "val": {"n3": 2}, "test": {"n4": 1}}
    written = tree(manual_folder(tmp_path) / "mini_imagenet", layout, size=(84, 84))
    data = load("mini_imagenet", "train", tmp_path)
    assert data.names == ("n1", "n2") and data.images.shape == (6, 84, 84, 3)
    np.testing.assert_array_equal(data.of_class(1)[2], written["train", "n2", 2])
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert load("mini_imagenet", "validation", tmp_path).names == ("n3",)
    assert load("mini_imagenet", "test", tmp_path, image_size=32).image_shape == (32, 32, 3)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_mini_imagenet_from_pickles(tmp_path, protocol):
    images = np.stack([pixels(i, 84, 84) for i in range(5)])
    classes = {"n2": [np.int64(4), 0], "n1": np.array([1, 2, 3])}
    with (manual_folder(tmp_path) / "mini-imagenet-cache-val.pkl").open("wb") as file:
        pickle.dump({"image_data": images, "class_dict": classes}, file, protocol)
    data = load("mini_imagenet", "validation", tmp_path)
    assert data.names == ("n1", "n2")
    np.testing.assert_array_equal(data.counts, [3, 2])
    np.testing.assert_array_equal(data.images, images[[1, 2, 3, 4, 0]])


def test_pickles_cannot_run_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    with (manual_folder(tmp_path) / "mini-imagenet-cache-test.pkl").open("wb") as file:
        pickle.dump({"image_data": Attack(), "class_dict": {}}, file)
    fails("not a miniImageNet pickle: it asks for .*mkdir", "mini_imagenet", "test", tmp_path)
    assert not (tmp_path / "harm").exists()


IMAGES = np.zeros((2, 84, 84, 3), np.uint8)
BAD_PICKLES = {
    "cut short": pickle.dumps({"image_data": IMAGES, "class_dict": {"a": [0]}})[:-100],
    "of another kind": pickle.dumps([1, 2]),
    "without classes": pickle.dumps({"image_data": IMAGES, "class_dict": {}}),
    "of floats": pickle.dumps({"image_data": IMAGES / 2.0, "class_dict": {"a": [0]}}),
    "of grey images": pickle.dumps({"image_data": IMAGES[..., :1], "class_dict": {"a": [0]}}),
    "out of range": pickle.dumps({"image_data": IMAGES, "class_dict": {"a": [2]}}),
    "with an image in two classes": pickle.dumps(
        {"image_data": IMAGES, "class_dict": {"a": [0], "b": [1, 0]}}
    ),
    "without pixels": pickle.dumps({"image_data": IMAGES[:, :0], "class_dict": {"a": [0]}}),
    "with a class of two lines": pickle.dumps({"image_data": IMAGES, "class_dict": {"a\nb": [0]}}),
    "with a class that is no text": pickle.dumps({"image_data": IMAGES, "class_dict": {1: [0]}}),
    "with indices that are no numbers": pickle.dumps(
        {"image_data": IMAGES, "class_dict": {"a": ["0"]}}
    ),
    "with huge indices": pickle.dumps({"image_data": IMAGES, "class_dict": {"a": [2**70]}}),
    "with an empty class": pickle.dumps({"image_data": IMAGES, "class_dict": {"a": []}}),
}


@pytest.mark.parametrize("kind", BAD_PICKLES)
def test_bad_pickles_are_named(tmp_path, kind):
    (manual_folder(tmp_path) / "mini-imagenet-cache-test.pkl").write_bytes(BAD_PICKLES[kind])
    fails("mini-imagenet-cache-test.pkl: ", "mini_imagenet", "test", tmp_path)


# Warnings of packages that TFDS uses must not fail these tests.
@pytest.mark.filterwarnings("ignore")
def test_the_tfds_builder_gives_the_same_images(tmp_path):
    import tensorflow_datasets as tfds

    import jaxsparse.data.mini_imagenet_builder

    layout = {"train": {"n1": 3, "n2": 2}, "val": {"n3": 2}, "test": {"n4": 1}}
    written = tree(manual_folder(tmp_path) / "mini_imagenet", layout, size=(84, 84))
    builder = tfds.builder("mini_imagenet", data_dir=tmp_path, file_format="array_record")
    assert isinstance(builder, jaxsparse.data.mini_imagenet_builder.MiniImagenet)
    builder.download_and_prepare()
    assert "tensorflow" not in sys.modules

    examples = list(builder.as_data_source("train"))
    assert Counter(example["label"].decode() for example in examples) == layout["train"]
    expected = {image.tobytes() for (split, _, _), image in written.items() if split == "train"}
    assert {example["image"].tobytes() for example in examples} == expected

    from_folders = load("mini_imagenet", "train", tmp_path)
    (tmp_path / "downloads").rename(tmp_path / "elsewhere")
    from_records = load("mini_imagenet", "train", tmp_path)
    assert from_records.names == from_folders.names
    np.testing.assert_array_equal(from_records.counts, from_folders.counts)
    for c in range(2):
        one, other = (
            {i.tobytes() for i in data.of_class(c)} for data in (from_records, from_folders)
        )
        assert one == other


# --- Omniglot ---


def test_area_averages_are_exact():
    image = pixels(0, 105, 105, 1).astype(float)
    weights = omniglot._area_weights(105, 28)
    # 105/28 = 15/4: repeat every pixel 4 times, then blocks of 15 are one output pixel
    fine = np.kron(image, np.ones((4, 4)))
    expected = fine.reshape(28, 15, 28, 15).mean((1, 3))
    np.testing.assert_allclose(weights @ image @ weights.T, expected, rtol=1e-12)
    np.testing.assert_allclose(omniglot._area_weights(10, 30), np.kron(np.eye(10), np.ones((3, 1))))


def test_the_mixed_split_is_fixed():
    names = [f"alphabet/character{i}" for i in range(1623)]
    parts = [omniglot._members(names, split, True) for split in SPLITS]
    assert [len(p) for p in parts] == [1100, 100, 423]
    assert parts[0] | parts[1] | parts[2] == set(names)
    first = [int(name.split("character")[1]) for name in sorted(parts[1])[:3]]
    assert first == [0, 1001, 1010], "results on omniglot-1200 would no longer compare"
    assert omniglot._members(names[::-1], "validation", True) == parts[1]


@pytest.mark.slow
def test_omniglot_splits_share_no_alphabet(real):
    root = real("omniglot")
    sets = {split: load("omniglot", split, root) for split in SPLITS}
    assert {s: d.num_classes for s, d in sets.items()} == {
        "train": 4 * 806, "validation": 158, "test": 659,
    }  # fmt: skip
    alphabets = {s: {name.split("/")[0] for name in d.names} for s, d in sets.items()}
    assert {s: len(a) for s, a in alphabets.items()} == {"train": 25, "validation": 5, "test": 20}
    assert len(set.union(*alphabets.values())) == 50
    for split, data in sets.items():
        assert data.images.shape == (20 * len(data.names), 28, 28, 1)
        assert data.images.dtype == np.uint8 and (data.counts == 20).all()
        assert (data.mean, data.std) == ((0.0,), (1.0,))
        assert len(set(data.names)) == data.num_classes
        assert ("rot" in data.names[0]) == (split == "train")
        assert data.images.max() > 200 and data.images.mean() < 40, "strokes are not bright on 0"


def test_omniglot_images_are_those_of_tfds(real):
    import tensorflow_datasets as tfds

    root = real("omniglot")
    data = {split: load("omniglot", split, root) for split in SPLITS}
    for split, asked in {
        "test": {"ULOG/character05": (49, 4, "test")},
        "train": {
            "Latin/character01/rot000": (31, 0, "train"),
            "Tifinagh/character55": (48, 54, "validation"),
        },
    }.items():
        read = partial(tfds.data_source, "omniglot", split=split, data_dir=root, download=False)
        labels = read(decoders={"image": tfds.decode.SkipDecoding()})
        labels = [(int(x["alphabet"]), int(x["alphabet_char_id"])) for x in labels]
        images = read()
        for name, (alphabet, character, where) in asked.items():
            chosen = [i for i, label in enumerate(labels) if label == (alphabet, character)]
            ink = 255.0 - np.stack([images[i]["image"][..., 0] for i in chosen])
            fine = ink.repeat(4, 1).repeat(4, 2).reshape(20, 28, 15, 28, 15)
            ours = data[where].of_class(data[where].names.index(name))[..., 0]
            np.testing.assert_allclose(ours, fine.mean((2, 4)), atol=0.51)


def test_omniglot_training_characters_are_turned(real):
    data = load("omniglot", "train", real("omniglot"))
    upright = data.of_class(data.names.index("Greek/character03/rot000"))
    for turn in (1, 2, 3):
        turned = data.of_class(data.names.index(f"Greek/character03/rot{90 * turn:03d}"))
        for a, b in zip(upright, turned, strict=True):
            expected = Image.fromarray(a[..., 0]).rotate(90 * turn)
            np.testing.assert_array_equal(b[..., 0], np.asarray(expected))


def test_omniglot_1200_splits_characters(real):
    root = real("omniglot")
    sets = {split: load("omniglot-1200", split, root) for split in SPLITS}
    assert [d.num_classes for d in sets.values()] == [4400, 100, 423]
    names = {s: {"/".join(n.split("/")[:2]) for n in d.names} for s, d in sets.items()}
    assert len(set.union(*names.values())) == 1623


# --- real miniImageNet ---


@pytest.mark.slow
def test_mini_imagenet_is_complete(real, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path))
    root = real("mini_imagenet")
    sets = {split: load("mini_imagenet", split, root) for split in SPLITS}
    for (split, data), classes in zip(sets.items(), (64, 16, 20), strict=True):
        assert data.images.shape == (600 * classes, 84, 84, 3), split
        assert (data.counts == 600).all()
        start = time.perf_counter()
        load("mini_imagenet", split, root)
        assert time.perf_counter() - start < 2
    assert len({name for data in sets.values() for name in data.names}) == 100
    some = sets["test"].images[::100] / 255
    np.testing.assert_allclose(some.mean((0, 1, 2)), sets["test"].mean, atol=0.1)
    shutil.rmtree(tmp_path)  # pytest would keep 1.3 GB


def test_mini_imagenet_reads_the_jpegs(real, tmp_path, monkeypatch):
    root = real("mini_imagenet") / "downloads" / "manual" / "mini_imagenet" / "test"
    names = sorted(p.name for p in root.iterdir())
    assert len(names) == 20
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    manual = manual_folder(tmp_path) / "mini_imagenet" / "test"
    manual.mkdir(parents=True)
    (manual / names[0]).symlink_to(root / names[0])
    data = load("mini_imagenet", "test", tmp_path)
    files = sorted((root / names[0]).iterdir())
    assert data.counts.tolist() == [600] == [len(files)]
    for i in (0, 299, 599):
        with Image.open(files[i]) as image:
            np.testing.assert_array_equal(data.images[i], np.asarray(image))
