"""Image files of every kind against pixels from NumPy, and files that are no images."""

import os
import socket
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxsparse.data import DataError, check_not_blank, load
from jaxsparse.data.pictures import fit, is_grey, read_image

GREY = 4 * np.arange(64, dtype=np.uint8).reshape(8, 8)
ALPHA = np.tile(np.array([0, 0, 64, 128, 200, 255, 255, 255], np.uint8), (8, 1))
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
INDICES = RNG.integers(0, 4, (8, 8), dtype=np.uint8)
PALETTE = np.array([[9, 8, 7], [250, 0, 0], [0, 120, 0], [3, 60, 255]], np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))


def png(pixels, depth, kind, transparent=None, palette=None):
    """A PNG written by hand; kind 0 is grey, 2 colour, 3 palette, 4 grey with alpha."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    height, width = pixels.shape[:2]
    dtype = ">u2" if depth == 16 else "u1"
    if depth < 8:  # several pixels per byte, the first one in the highest bits
        shifts = np.arange(8 - depth, -1, -depth)
        pixels = (pixels.reshape(height, -1, 8 // depth) << shifts).sum(-1)
    rows = b"".join(b"\0" + row.astype(dtype).tobytes() for row in pixels)
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    if palette is not None:
        content += chunk(b"PLTE", palette.tobytes())
    if transparent is not None:
        content += chunk(b"tRNS", transparent)
    return (
        b"\x89PNG\r\n\x1a\n" + content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def on_white(colour, alpha):
    """The colours of pixels with this opacity (0 to 255) over white, as floats."""
    share = np.broadcast_to(alpha[..., None] if colour.ndim == 3 else alpha, colour.shape) / 255
    return colour * share + 255 * (1 - share)


def luma(colour):
    """ITU-R 601-2, as Pillow documents it."""
    return colour @ np.array([299, 587, 114]) / 1000


def saved(image, **options):
    def write(path):
        image.save(path, **options)

    return write


def written(content):
    return lambda path: path.write_bytes(content)


clear = np.where(GREY == 40, 255, GREY)
wide = GREY.astype(np.uint16) * 257
some_clear = np.where((COLOUR[0, 0] == COLOUR).all(-1, keepdims=True), 255, COLOUR)
with_alpha = np.dstack([COLOUR, ALPHA])
half_clear = np.where(INDICES[..., None] == 1, 255, PALETTE[INDICES])
nibbles = GREY // 4 % 16
pairs = nibbles % 4
# 300 has the high byte 1.
deep = np.where(GREY > 90, 30_000, 300)
palette_image = Image.frombytes("P", (8, 8), INDICES.tobytes())
palette_image.putpalette(PALETTE.tobytes())

# name -> (file name, how it is written, wanted pixels, tolerance)
KINDS = {
    "1": ("a.png", saved(Image.fromarray(GREY > 90)), np.where(GREY > 90, 255, 0), 0),
    "L": ("a.png", saved(Image.fromarray(GREY)), GREY, 0),
    "LA": ("a.png", saved(Image.fromarray(np.dstack([GREY, ALPHA]))), on_white(GREY, ALPHA), 1),
    "LA, opaque": ("a.png", saved(Image.fromarray(np.dstack([GREY, 0 * GREY + 255]))), GREY, 0),
    "L, one value clear": ("a.png", written(png(GREY, 8, 0, b"\0\x28")), clear, 0),
    "L of 4 bits, one value clear": (
        "a.png",
        written(png(nibbles, 4, 0, b"\0\7")),
        np.where(nibbles == 7, 255, 17 * nibbles),
        0,
    ),
    "L of 2 bits, one value clear": (
        "a.png",
        written(png(pairs, 2, 0, b"\0\1")),
        np.where(pairs == 1, 255, 85 * pairs),
        0,
    ),
    "1, black clear": ("a.png", written(png(pairs // 2, 1, 0, b"\0\0")), 255 + 0 * pairs, 0),
    "1, white clear": ("a.png", written(png(pairs // 2, 1, 0, b"\0\1")), 255 * (pairs // 2), 0),
    "I;16": ("a.png", written(png(wide, 16, 0)), GREY, 0),
    "I;16, one value clear": ("a.png", written(png(wide, 16, 0, b"\x28\x28")), clear, 0),
    "I;16B": (
        "a.tif",
        saved(Image.frombytes("I;16B", (8, 8), wide.astype(">u2").tobytes())),
        GREY,
        0,
    ),
    "LA, 16 bits": (
        "a.png",
        written(png(np.dstack([wide, ALPHA * np.uint16(257)]), 16, 4)),
        on_white(GREY, ALPHA),
        1,
    ),
    "I of PGM, 16 bits": (
        "a.pgm",
        written(b"P5 8 8 65535\n" + wide.astype(">u2").tobytes()),
        GREY,
        0,
    ),
    "I of PGM, dark": (
        "a.pgm",
        written(b"P5 8 8 65535\n" + GREY.astype(">u2").tobytes()),
        0 * GREY,
        0,
    ),
    "I of PGM, to 1020": (
        "a.pgm",
        written(b"P5 8 8 1020\n" + (GREY * np.uint16(4)).astype(">u2").tobytes()),
        GREY,
        1,
    ),
    "I, 0 to 255": ("a.tif", saved(Image.fromarray(GREY.astype(np.int32))), GREY, 0),
    "I, 0 and 1": (
        "a.tif",
        saved(Image.fromarray((GREY > 90).astype(np.int32))),
        255 * (GREY > 90),
        0,
    ),
    "I, 0 to 65535": ("a.tif", saved(Image.fromarray(wide.astype(np.int32))), GREY, 0),
    "I, signed": (
        "a.tif",
        saved(Image.fromarray(GREY.astype(np.int32) - 100)),
        GREY * (255 / 252),
        0.5,
    ),
    "I, large": (
        "a.tif",
        saved(Image.fromarray(GREY.astype(np.int32) << 20)),
        GREY * (255 / 252),
        0.5,
    ),
    "F, 0 to 1": ("a.tif", saved(Image.fromarray(GREY.astype(np.float32) / 255)), GREY, 0),
    "F, 0 to 255": ("a.tif", saved(Image.fromarray(GREY.astype(np.float32))), GREY, 0),
    "F of PPM, 0 to 1": (  # its rows go from bottom to top
        "a.ppm",
        written(b"Pf 8 8 -1.0\n" + (GREY[::-1].astype("<f4") / 255).tobytes()),
        GREY,
        0,
    ),
    "F, -1 to 1": (
        "a.tif",
        saved(Image.fromarray(GREY.astype(np.float32) / 126 - 1)),
        GREY * (255 / 252),
        0.5,
    ),
    "RGB": ("a.png", saved(Image.fromarray(COLOUR)), COLOUR, 0),
    "RGB, one colour clear": (
        "a.png",
        written(png(COLOUR, 8, 2, COLOUR[0, 0].astype(">u2").tobytes())),
        some_clear,
        0,
    ),
    "RGB, 16 bits": ("a.png", written(png(COLOUR * np.uint16(257), 16, 2)), COLOUR, 0),
    "RGB, 16 bits, one colour clear": (
        "a.png",
        written(png(deep[..., None].repeat(3, 2), 16, 2, b"\x01\x2c" * 3)),
        np.where(deep == 300, 255, 30_000 // 256)[..., None].repeat(3, 2),
        0,
    ),
    "RGBA": ("a.png", saved(Image.fromarray(with_alpha)), on_white(COLOUR, ALPHA), 1),
    "RGBA of WebP": (
        "a.webp",
        saved(Image.fromarray(with_alpha), lossless=True, exact=True),
        on_white(COLOUR, ALPHA),
        1,
    ),
    "P": ("a.png", saved(palette_image), PALETTE[INDICES], 0),
    "P, one colour clear": ("a.gif", saved(palette_image, transparency=1), half_clear, 0),
    "P, a colour half clear": (
        "a.png",
        written(png(INDICES, 8, 3, b"\xff\x80", PALETTE)),
        on_white(PALETTE[INDICES], np.where(INDICES == 1, 128, 255)),
        1,
    ),
    "CMYK": ("a.tif", saved(Image.fromarray(COLOUR).convert("CMYK")), COLOUR, 0),
    "YCbCr": ("a.tif", saved(Image.fromarray(COLOUR).convert("YCbCr")), COLOUR, 3),
    "first frame of GIF": (
        "a.gif",
        saved(Image.fromarray(GREY), save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        GREY,
        0,
    ),
    "first frame of PNG": (
        "a.png",
        saved(
            Image.fromarray(COLOUR), save_all=True, append_images=[Image.fromarray(255 - COLOUR)]
        ),
        COLOUR,
        0,
    ),
    "first frame of WebP": (
        "a.webp",
        saved(
            Image.fromarray(COLOUR),
            save_all=True,
            append_images=[Image.fromarray(255 - COLOUR)],
            lossless=True,
        ),
        COLOUR,
        0,
    ),
    "first page of TIFF": (
        "a.tif",
        saved(Image.fromarray(GREY), save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        GREY,
        0,
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_every_kind(tmp_path, kind):
    name, write, wanted, off = KINDS[kind]
    write(tmp_path / name)
    wanted = np.asarray(wanted, float)
    colour = wanted.ndim == 3
    got = read_image(tmp_path / name, (8, 8, 3)).astype(float)
    np.testing.assert_allclose(got, wanted if colour else wanted[..., None].repeat(3, 2), atol=off)
    got = read_image(tmp_path / name, (8, 8, 1)).astype(float)
    np.testing.assert_allclose(got[..., 0], luma(wanted) if colour else wanted, atol=off + colour)


def test_modes_with_alpha_that_no_file_has():
    grey = Image.fromarray(np.dstack([GREY, ALPHA]))
    np.testing.assert_allclose(
        fit(grey.convert("La"), (8, 8, 1))[..., 0], on_white(GREY, ALPHA), atol=2
    )
    np.testing.assert_allclose(
        fit(Image.fromarray(with_alpha).convert("RGBa"), (8, 8, 3)),
        on_white(COLOUR, ALPHA),
        atol=2,
    )
    palette = palette_image.copy()
    palette.putalpha(Image.fromarray(ALPHA))
    assert palette.mode == "PA"
    np.testing.assert_allclose(fit(palette, (8, 8, 3)), on_white(PALETTE[INDICES], ALPHA), atol=1)


def test_lab_is_brought_to_colours():
    white, black = (Image.new("LAB", (2, 2), (light, 128, 128)) for light in (255, 0))
    assert fit(white, (2, 2, 3)).min() > 250 and fit(black, (2, 2, 3)).max() < 5


def test_which_images_are_grey(tmp_path):
    for kind, (name, write, wanted, _) in KINDS.items():
        if kind not in ("LA, 16 bits", "first frame of GIF"):  # which Pillow opens as colours
            write(tmp_path / name)
            assert is_grey(tmp_path / name) == (np.ndim(wanted) == 2), kind


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_pixels_are_refused(tmp_path, value):
    pixels = GREY.astype(np.float32)
    pixels[3, 4] = value
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(
        DataError, match=r"a\.tif: not a readable image: pixels that are NaN or inf"
    ):
        read_image(tmp_path / "a.tif", (8, 8, 1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_exif_says(tmp_path, orientation, suffix):
    # What a viewer shows: dark at the top left, brighter to the right, brightest at the bottom.
    seen = np.array([[0, 80], [160, 240]], np.uint8).repeat(16, 0).repeat(16, 1)[:24]
    back = {
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: np.transpose,
        6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x, 2).T, 8: lambda x: np.rot90(x, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(np.ascontiguousarray(back(seen))).save(
        tmp_path / f"a.{suffix}", exif=exif, **options
    )
    got = read_image(tmp_path / f"a.{suffix}", (24, 32, 1))[..., 0].astype(int)
    assert np.abs(got - seen).mean() < 3


def test_damaged_exif_data_do_not_matter(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", (8, 8, 1))[..., 0], GREY)


# --- files that are no images ---


def bomb(width, height):
    return png(np.zeros((1, 1), np.uint8), 8, 0).replace(
        struct.pack(">II", 1, 1), struct.pack(">II", width, height)
    )


def _fix_checksum(content):
    start = content.index(b"IHDR")
    check = struct.pack(">I", zlib.crc32(content[start : start + 17]))
    return content[: start + 17] + check + content[start + 21 :]


def _socket(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(path))  # absolute ones may be longer than a socket's name


NO_IMAGES = {
    "huge": (written(_fix_checksum(bomb(2**31 - 1, 2**31 - 1))), "pixels"),
    "large": (written(_fix_checksum(bomb(9_500, 9_500))), "pixels"),
    "huge in TIFF": (
        lambda path: path.write_bytes(
            b"II*\0\x08\0\0\0\2\0"
            + struct.pack("<HHIIHHII", 256, 4, 1, 2**31 - 1, 257, 4, 1, 2**31 - 1)
        ),
        "",
    ),
    "pipe": (os.mkfifo, "it is a named pipe, not a file"),
    "socket": (_socket, "it is a socket, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "folder": (Path.mkdir, "it is a folder, not a file"),
    "PostScript": (
        written(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
        "cannot identify",
    ),
    "cut short": (lambda p: p.write_bytes(png(COLOUR, 8, 2)[:120]), ""),
}


@pytest.mark.filterwarnings("default")  # as users run: a bomb must not depend on -W error
@pytest.mark.parametrize("through", ["folder", "file"])
@pytest.mark.parametrize("kind", NO_IMAGES)
def test_files_that_are_no_images_are_refused_at_once_in_one_line(
    tmp_path, monkeypatch, kind, through
):
    make, reason = NO_IMAGES[kind]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train" / "a" / "x.png"
    path.parent.mkdir(parents=True)
    make(path)
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        load("folder", "train", tmp_path) if through == "folder" else read_image(path, (8, 8, 3))
    assert time.monotonic() - began < 20
    message = str(caught.value)
    assert message.startswith(f"{path}: not a readable image: ") and reason in message
    assert "\n" not in message


def test_thousands_of_frames_cost_no_more_than_one(tmp_path):
    frames = [Image.new("L", (8, 8), i % 256) for i in range(2000)]
    Image.fromarray(GREY).save(tmp_path / "a.tif", save_all=True, append_images=frames)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", (8, 8, 1))[..., 0], GREY)


# --- classes in which there is nothing to be seen ---


def class_of(tmp_path, name, images):
    folder = tmp_path / "train" / name
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")


def test_a_class_that_is_blank_on_white_is_refused(tmp_path):
    white = np.dstack([np.full((8, 8), 255, np.uint8), ALPHA])  # white on transparent
    class_of(tmp_path, "good", [Image.fromarray(GREY)])
    class_of(tmp_path, "ghosts", [Image.fromarray(white), Image.fromarray(white[::-1].copy())])
    with pytest.raises(
        DataError, match=r"ghosts: on white, .* every image of class ghosts is blank"
    ):
        load("folder", "train", tmp_path, image_size=8)
    assert list((tmp_path / "cache").iterdir()) == []
    Image.fromarray(GREY).save(tmp_path / "train" / "ghosts" / "seen.png")
    load("folder", "train", tmp_path, image_size=8)  # one image that is not blank is enough


def test_a_class_of_blank_files_is_named_before_a_run(tmp_path):
    class_of(tmp_path, "good", [Image.new("L", (8, 8)), Image.fromarray(GREY)])
    class_of(tmp_path, "void", [Image.new("L", (8, 8), 9), Image.new("L", (8, 8), 200)])
    data = load("folder", "train", tmp_path, image_size=8)
    with pytest.raises(DataError, match=r"^class 'void': all its images are blank"):
        check_not_blank(data)
    check_not_blank(data.take([0]))


def test_images_of_one_class_may_be_of_different_kinds(tmp_path):
    grey = Image.fromarray(GREY)
    class_of(tmp_path, "a", [grey, Image.fromarray(np.dstack([GREY, ALPHA])), grey.convert("1")])
    data = load("folder", "train", tmp_path, image_size=8)
    assert data.image_shape == (8, 8, 1)
    np.testing.assert_allclose(data.images[1, ..., 0], on_white(GREY, ALPHA), atol=1)
    class_of(tmp_path, "b", [Image.fromarray(COLOUR), Image.fromarray(with_alpha)])
    data = load("folder", "train", tmp_path, image_size=8)
    np.testing.assert_array_equal(data.images[0], GREY[..., None].repeat(3, 2))
    np.testing.assert_allclose(data.images[4], on_white(COLOUR, ALPHA), atol=1)
