"""The built-in letters: which there are, how they look, how they are cached."""

import hashlib
import os
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsparse.data import glyphs
from jaxsparse.data.episodes import sample_tasks
from jaxsparse.data.glyphs import load_glyphs
from jaxsparse.data.images import ImageSet
from jaxsparse.errors import DataError


@pytest.fixture(scope="module")
def letters() -> ImageSet:
    return load_glyphs("test")


@pytest.fixture
def few(monkeypatch):
    """Hebrew alone, to render quickly."""
    glyphs._letters()  # of all scripts; what it returns is kept
    monkeypatch.setattr(glyphs, "SPLITS", {"test": ("HEBREW",)})


def test_splits_hold_about_a_thousand_letters_of_different_scripts():
    codes = glyphs._letters()
    assert 950 <= len(codes) <= 1050 and list(codes) == sorted(set(codes))
    scripts = [set(scripts) for scripts in glyphs.SPLITS.values()]
    assert sum(map(len, scripts)) == len(set.union(*scripts))
    for split, share in (("train", 0.60), ("validation", 0.15), ("test", 0.25)):
        inside = [unicodedata.name(chr(c)).split()[0] in glyphs.SPLITS[split] for c in codes]
        assert abs(np.mean(inside) - share) < 0.02, split


def test_shapes_dtypes_and_scale(letters):
    assert letters.images.shape == (20 * len(letters.names), 28, 28, 1)
    assert letters.images.dtype == np.uint8 and letters.counts.dtype == np.int32
    assert np.all(np.asarray(letters.counts) == 20)
    assert (letters.mean, letters.std) == ((0.0,), (1.0,))
    assert len(set(letters.names)) == letters.num_classes
    assert {name.split()[0] for name in letters.names} == set(glyphs.SPLITS["test"])


def test_no_image_is_blank_or_filled_and_no_two_are_equal(letters):
    pixels = np.asarray(letters.images).reshape(-1, 28 * 28)
    ink = (pixels > 100).mean(1)
    assert ink.min() > 0.01 and ink.max() < 0.75
    assert pixels.max(1).min() > 150
    assert len(np.unique(pixels, axis=0)) == len(pixels)


def test_no_letter_is_the_box_of_a_missing_glyph():
    maps = glyphs._charmaps()
    for face in glyphs.FACES:
        font = glyphs._font(face, 28)
        missing = glyphs._stamp(font, "\U0010ff00", 28)
        for code in glyphs._letters():
            if code in maps[face]:
                assert not np.array_equal(glyphs._stamp(font, chr(code), 28), missing)


@pytest.mark.parametrize(
    "alike", ["Cc", "Oo\u039f\u03bf", "A\u0391\u0410", "Ss", "P\u03a1\u0420", "Vv", "H\u0397"]
)
def test_look_alikes_are_one_class(alike):
    codes = sorted(map(ord, alike))
    assert glyphs._alike(codes)[0].all()
    assert sum(code in glyphs._letters() for code in codes) <= 1


@pytest.mark.parametrize("different", ["Aa", "Ee", "EH", "TI", "bd", "pb", "QX", "\u0394\u03a9"])
def test_letters_that_differ_stay_apart(different):
    index = [ord(letter) for letter in different]
    assert not glyphs._alike(index)[0, 1]


def test_stamp_is_the_ink_scaled_and_centred():
    font = glyphs._font("DejaVuSans", 100)
    for letter in "Wl":
        stamp = glyphs._stamp(font, letter, 100)
        rows, columns = np.flatnonzero(stamp.any(1)), np.flatnonzero(stamp.any(0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 68
        assert abs(rows[0] + rows[-1] - 99) <= 1 and abs(columns[0] + columns[-1] - 99) <= 1


def test_turned_by_a_right_angle_is_rot90():
    # an empty rim, because rounding may step outside
    stamp = np.pad(np.arange(36.0).reshape(1, 6, 6), ((0, 0), (1, 1), (1, 1)))
    where = glyphs._turned(np.array([np.pi / 2]), np.zeros(1), np.ones((2, 1)), 8)
    turned = glyphs._sample(stamp, *where)
    np.testing.assert_allclose(turned[0], np.rot90(stamp[0], -1), atol=1e-9)


def test_stretch_and_shear_read_from_the_right_place():
    rows, columns = glyphs._turned(np.zeros(1), np.array([0.5]), np.array([[2.0], [3.0]]), 4)
    axis = np.array([-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(rows[0], np.repeat(2 * axis[:, None], 4, 1))
    np.testing.assert_allclose(columns[0], 3 * (axis[None, :] + 0.5 * axis[:, None]))


def test_elastic_field_is_a_uniform_cubic_spline():
    field = glyphs._spread(np.ones((5, 5)), 9)
    np.testing.assert_allclose(field[2:7, 2:7], 1.0)  # B-splines sum to one away from the rim
    peak = np.zeros((5, 5))
    peak[2, 2] = 1.0
    spread = glyphs._spread(peak, 9)[4]
    np.testing.assert_allclose(spread, np.array([0, 1, 8, 23, 32, 23, 8, 1, 0]) / 48 * 2 / 3)


def test_without_distortion_a_class_is_its_faces(monkeypatch):
    for name in ("TURN", "SHEAR", "STRETCH", "SHIFT", "BEND"):
        monkeypatch.setattr(glyphs, name, 0.0)
    stamps = np.stack([glyphs._stamp(glyphs._font(face, 56), "R", 56) for face in glyphs.FACES])
    images = glyphs._draw_class(stamps, ord("R"))
    wanted = np.rint(stamps.reshape(-1, 28, 2, 28, 2).mean((2, 4)))
    drawn = [int(np.abs(wanted - image).max((1, 2)).argmin()) for image in images]
    np.testing.assert_allclose(images, wanted[drawn], atol=1)  # halves round either way
    assert set(drawn) == set(range(len(glyphs.FACES)))  # 20 images use all 16 faces


def test_distortions_stay_legible_and_make_the_task_neither_trivial_nor_hopeless(letters):
    """5-way 5-shot by the nearest neighbour in pixels, at half the size: about 0.4."""
    draw = jax.jit(sample_tasks, static_argnums=(2, 3, 4, 5))
    task = draw(jax.random.key(0), letters, 200, 5, 5, 15)
    small = [
        np.asarray(images).reshape(200, -1, 14, 2, 14, 2).mean((3, 5)).reshape(200, -1, 196)
        for images in (task.support[0], task.query[0])
    ]
    cross = np.einsum("tqp,tsp->tqs", small[1], small[0], optimize=True)
    distance = (small[0] ** 2).sum(2)[:, None] - 2 * cross
    guess = np.take_along_axis(np.asarray(task.support[1]), distance.argmin(2), 1)
    assert 0.3 < (guess == np.asarray(task.query[1])).mean() < 0.5


def test_images_do_not_depend_on_other_classes_or_on_the_process(few):
    images, codes = glyphs._render("test", 28)
    faces = [face for face in glyphs.FACES if int(codes[-1]) in glyphs._charmaps()[face]]
    stamps = [glyphs._stamp(glyphs._font(face, 56), chr(codes[-1]), 56) for face in faces]
    alone = glyphs._draw_class(np.stack(stamps), int(codes[-1]))
    np.testing.assert_array_equal(alone, images[-1, ..., 0])
    program = (
        "import hashlib; from jaxsparse.data import glyphs; glyphs.SPLITS['test'] = ('HEBREW',);"
        "print(hashlib.sha256(glyphs._render('test', 28)[0].tobytes()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    root = Path(glyphs.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=root, capture_output=True, check=True
    )
    assert run.stdout.decode().strip() == hashlib.sha256(images.tobytes()).hexdigest()


def test_second_load_reads_the_cache(few, tmp_path, monkeypatch):
    first = load_glyphs("test", tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] == [".npz"]  # no partial file left
    monkeypatch.setattr(glyphs, "_render", None)
    second = load_glyphs("test", tmp_path)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.names == second.names


@pytest.mark.parametrize("damage", ["cut short", "emptied", "changed inside"])
def test_damaged_cache_is_rendered_again(few, tmp_path, damage):
    first = load_glyphs("test", tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    broken = {"cut short": whole[:middle], "emptied": b"", "changed inside": flipped}[damage]
    file.write_bytes(broken)
    np.testing.assert_array_equal(load_glyphs("test", tmp_path).images, first.images)
    assert file.read_bytes() == whole


def _pipe(file):
    file.unlink()
    os.mkfifo(file)


def _folder(file):
    file.unlink()
    (file / "in it").mkdir(parents=True)


@pytest.mark.parametrize("replace", [_pipe, _folder])
def test_other_entries_in_place_of_the_cache_file_are_replaced(few, tmp_path, replace):
    first = load_glyphs("test", tmp_path)
    (file,) = tmp_path.iterdir()
    replace(file)
    np.testing.assert_array_equal(load_glyphs("test", tmp_path).images, first.images)
    assert [file] == list(tmp_path.iterdir()) and file.is_file()


def test_a_changed_byte_is_detected_or_harmless(tmp_path):
    """A zip holds names, sizes and flags besides pixels: the changed byte may be in any of them."""
    images, letters = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4, 1), np.arange(2)
    file = tmp_path / "small.npz"
    glyphs._write(file, images, letters)
    whole = file.read_bytes()
    for at in range(len(whole)):
        for bit in (1, 8, 128):
            changed = bytearray(whole)
            changed[at] ^= bit
            file.write_bytes(changed)
            found = glyphs._read(file)
            if found is not None:
                np.testing.assert_array_equal(found[0], images)
                np.testing.assert_array_equal(found[1], letters)


def test_cache_that_cannot_be_written_only_warns(few, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="glyphs: not cached"):
        data = load_glyphs("test", tmp_path / "file")
    assert data.num_classes == len(data.names) > 20


def test_simultaneous_writers_leave_one_complete_file(tmp_path):
    images, letters = np.random.default_rng(0).integers(0, 255, (99, 999), np.uint8), np.arange(50)
    file = tmp_path / "new" / "images.npz"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: glyphs._write(file, images, letters), range(8)))
    assert list(file.parent.iterdir()) == [file]
    np.testing.assert_array_equal(glyphs._read(file)[0], images)


def test_file_name_changes_with_what_changes_the_pixels(monkeypatch):
    name = glyphs._file_name("test", 28)
    assert name != glyphs._file_name("test", 32) and name != glyphs._file_name("train", 28)
    monkeypatch.setattr(glyphs, "BEND", 0.01)
    assert name != glyphs._file_name("test", 28)
    monkeypatch.undo()
    monkeypatch.setattr(glyphs, "fonts", lambda: (Path(), "99"))
    assert name != glyphs._file_name("test", 28)


def test_other_image_sizes(few, tmp_path):
    assert load_glyphs("test", tmp_path, image_size=16).image_shape == (16, 16, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split must be one of train, validation, test; got 'dev'"),
        ({"split": "test", "image_size": 4}, "image_size must be a whole number >= 8, got 4"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(DataError, match=message):
        load_glyphs(**arguments)


def test_missing_fonts_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs, "fonts", lambda: (tmp_path, "3"))
    with pytest.raises(DataError, match=r"DejaVuSans.ttf is missing; reinstall matplotlib"):
        glyphs._charmaps.__wrapped__()
    monkeypatch.undo()
    monkeypatch.setattr(glyphs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="matplotlib is not installed; its fonts are needed"):
        glyphs.fonts.__wrapped__()


def test_fonts_and_letters_are_those_that_matplotlib_itself_names():
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder, version = glyphs.fonts()
    assert folder == Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    assert version == matplotlib.__version__
    for face, letters in glyphs._charmaps().items():
        assert letters == set(FT2Font(str(folder / f"{face}.ttf")).get_charmap())


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such"])
def test_the_backend_of_a_notebook_does_not_matter(few, tmp_path, backend):
    program = (
        "import sys; from jaxsparse.data import glyphs; glyphs.SPLITS['test'] = ('HEBREW',);"
        "print(glyphs.load_glyphs('test').num_classes, 'matplotlib' in sys.modules)"
    )
    env = {**os.environ, "MPLBACKEND": backend, "JAXSPARSE_CACHE": str(tmp_path)}
    root = Path(glyphs.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=root, capture_output=True, text=True
    )
    assert run.stdout.split() == [str(load_glyphs("test", tmp_path).num_classes), "False"]
