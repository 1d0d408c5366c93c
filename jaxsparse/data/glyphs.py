"""A few-shot image set that needs no download: letters in the fonts that matplotlib ships."""

import hashlib
import importlib.metadata
import importlib.util
import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from scipy import ndimage

from jaxsparse.data.files import open_file, put
from jaxsparse.data.images import ImageSet
from jaxsparse.errors import DataError
from jaxsparse.user_cache import cache_dir as default_cache_dir
from jaxsparse.user_cache import partial

VERSION = 1  # increase it whenever the same arguments would give other images
IMAGES_PER_CLASS = 20

# A split is a set of scripts, so the letters of "validation" and "test" come from alphabets
# never seen in training. A script is the first word of a letter's Unicode name.
SPLITS = {
    "train": ("LATIN", "CANADIAN", "LISU"),
    "validation": ("CYRILLIC", "ARABIC"),
    "test": ("GREEK", "COPTIC", "GEORGIAN", "ARMENIAN", "HEBREW", "LAO", "OLD"),
}

# Faces with complete alphabets. The other font files have symbols and accents, or (cm*) a custom
# encoding. Regular faces first: look-alikes are found with them.
UPRIGHT = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
FACES = (
    *UPRIGHT,
    *("DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique"),
    *("DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic"),
    *("STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic"),
)
FEWEST_FACES = 4  # with 8 only Latin, Greek, Cyrillic, Georgian, Armenian and Lao would remain

DOTS = (0x141D, 0x1427)  # Canadian syllabics that, cropped to their ink, are a white square

SAME = 0.925  # letters with a higher correlation in any regular face are the same class
COMPARED_SIDE = 20  # pixels
COMPARED_BLUR = 0.8  # pixels; a stroke shifted by half a pixel must not count as a new letter
COMPARED_TURNS = (-0.2, 0.0, 0.2)  # radians; a tilted stroke must not count as a new letter

# Distortions, in units of half the image side if no other unit is given.
LETTER = 0.68  # longer side of a letter / image side, before distortion
TURN = 0.5  # radians, in both directions
SHEAR = 0.5
STRETCH = 0.4  # natural log, for each axis
SHIFT = 0.15
BEND = 0.17  # standard deviation of a control point of the elastic warp
BEND_POINTS = 5  # control points per axis


class Distortion(NamedTuple):
    """The largest distortion of an image, in the units of the constants above."""

    turn: float
    shear: float
    stretch: float
    shift: float
    bend: float


def load_glyphs(split: str, cache_dir: str | Path | None = None, image_size: int = 28) -> ImageSet:
    """Letters of many scripts, white on black, as a few-shot set like Omniglot.

    The classes are the letters that at least four faces of matplotlib's fonts have. Look-alikes
    (c and C, Latin A and Greek Α) are one class. Each class has 20 images; each is one face with a
    random rotation, shear, stretch, shift and elastic warp. The three splits share no script. The
    images depend only on the arguments and on the versions of the fonts, of FreeType and of Unicode
    in Python.

    The first call renders the images in some seconds and stores them in the cache folder. If the
    cache cannot be read, they are rendered again; if it cannot be written, a warning is given.

    Args:
        split: "train" (Latin, Canadian syllabics, Lisu), "validation" (Cyrillic, Arabic) or
            "test" (Greek, Coptic, Georgian, Armenian, Hebrew, Lao, Old Italic and others).
        cache_dir: where to store the images; None: `jaxsparse.user_cache.cache_dir()`.
        image_size: height and width of the images in pixels, at least 8.

    Returns:
        ImageSet of JAX arrays: images uint8 [20 classes, image_size, image_size, 1], mean 0, std 1,
        and the Unicode names of the letters.

    Raises:
        DataError: an unknown split, an image size that is too small, or missing fonts.

    Examples:
        >>> data = load_glyphs("test")
        >>> data.image_shape, int(data.counts.min())
        ((28, 28, 1), 20)
    """
    if split not in SPLITS:
        raise DataError(f"glyphs: split must be one of {', '.join(SPLITS)}; got {split!r}")
    if not isinstance(image_size, int) or image_size < 8:
        raise DataError(f"glyphs: image_size must be a whole number >= 8, got {image_size!r}")
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    file = folder / _file_name(split, image_size)
    cached = _read(file)
    if cached is None:
        cached = _render(split, image_size)
        _write(file, *cached)
    images, letters = cached
    return ImageSet(
        images=jnp.asarray(images),
        counts=jnp.full(len(letters), images.shape[1], jnp.int32),
        names=tuple(unicodedata.name(chr(code)) for code in letters.tolist()),
        mean=(0.0,),
        std=(1.0,),
    )


def _render(split: str, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [classes, 20, side, side, 1] and code points int32 [classes] of a split."""
    letters = [code for code in _letters() if _script(code) in SPLITS[split]]
    # Drawn and warped at twice the size; the last step averages four samples per pixel.
    side = 2 * image_size
    fonts = {face: _font(face, side) for face in FACES}
    maps = _charmaps()
    images = []
    for code in letters:
        stamps = [_stamp(fonts[face], chr(code), side) for face in FACES if code in maps[face]]
        images.append(_draw_class(np.stack(stamps), code))
    return np.stack(images)[..., None], np.array(letters, np.int32)


def _draw_class(stamps: np.ndarray, code: int) -> np.ndarray:
    """Twenty distorted images of a letter: stamps [faces, 2 s, 2 s] -> uint8 [20, s, s]."""
    rng = np.random.default_rng((VERSION, code))
    faces = np.resize(rng.permutation(len(stamps)), IMAGES_PER_CLASS)
    return distorted(rng, stamps[faces], Distortion(TURN, SHEAR, STRETCH, SHIFT, BEND))


def distorted(rng: np.random.Generator, stamps: np.ndarray, limits: Distortion) -> np.ndarray:
    """Distort each stamp at random and halve its size: [n, 2 s, 2 s] -> uint8 [n, s, s]."""
    n, side = len(stamps), stamps.shape[-1]
    turn = rng.uniform(-limits.turn, limits.turn, n)
    shear = rng.uniform(-limits.shear, limits.shear, n)
    stretch = np.exp(rng.uniform(-limits.stretch, limits.stretch, (2, n)))
    shift = rng.uniform(-limits.shift, limits.shift, (2, n, 1, 1))
    bend = rng.normal(0.0, limits.bend, (2, n, BEND_POINTS, BEND_POINTS))
    rows, columns = _turned(turn, shear, stretch, side) + shift + _spread(bend, side)
    warped = _sample(stamps, rows, columns)
    fine = warped.reshape(n, side // 2, 2, side // 2, 2)
    return np.rint(fine.mean((2, 4))).astype(np.uint8)


def _turned(turn: np.ndarray, shear: np.ndarray, stretch: np.ndarray, side: int) -> np.ndarray:
    """The source position of each pixel of n affine images: [2, n, side, side], from -1 to 1."""
    axis = (2 * np.arange(side) + 1) / side - 1
    y, x = axis[:, None], axis[None, :]
    cos, sin, slant = (a[:, None, None] for a in (np.cos(turn), np.sin(turn), shear))
    turned_y, turned_x = cos * y - sin * x, sin * y + cos * x
    rows, columns = turned_y, turned_x + slant * turned_y
    return np.stack([rows, columns]) * stretch[..., None, None]


def _spread(control: np.ndarray, side: int) -> np.ndarray:
    """Interpolate control points [..., p, p] to [..., side, side] with cubic B-splines."""
    points = control.shape[-1]
    at = np.linspace(0, points - 1, side)
    distance = np.abs(at[:, None] - np.arange(points))
    near = 2 / 3 - distance**2 + distance**3 / 2
    basis = np.where(distance < 1, near, np.clip(2 - distance, 0, None) ** 3 / 6)
    return basis @ control @ basis.T


def _sample(stamps: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sample stamps [n, side, side] bilinearly at rows, columns in [-1, 1]; 0 outside."""
    side = stamps.shape[-1]
    at = (np.stack([rows, columns], 1) + 1) * side / 2 - 0.5
    pairs = zip(stamps.astype(np.float64), at, strict=True)
    return np.stack([ndimage.map_coordinates(stamp, where, order=1) for stamp, where in pairs])


@lru_cache
def _letters() -> tuple[int, ...]:
    """Code points of all classes, ascending: letters in enough faces, without look-alikes."""
    maps = _charmaps()
    scripts = {script for split in SPLITS.values() for script in split}
    drawn = sorted(frozenset().union(*maps.values()))
    codes = [
        code
        for code in drawn
        if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt", "Lo")
        # no compatibility forms (ligatures, superscripts, script capitals): restyled other letters
        and unicodedata.normalize("NFKC", chr(code)) == chr(code)
        and _script(code) in scripts
        and code not in DOTS
        and sum(code in maps[face] for face in FACES) >= FEWEST_FACES
    ]
    alike = _alike(codes)
    kept: list[int] = []
    for i in range(len(codes)):
        if not alike[i, kept].any():
            kept.append(i)
    return tuple(codes[i] for i in kept)


def _alike(codes: list[int]) -> np.ndarray:
    """Which letters look the same, bool [n, n]: their correlation in a regular face > SAME."""
    side, maps = COMPARED_SIDE, _charmaps()
    alike = np.zeros((len(codes), len(codes)), bool)
    for face in UPRIGHT:
        font = _font(face, 2 * side)
        here = np.array([i for i, code in enumerate(codes) if code in maps[face]])
        stamps = np.stack([_stamp(font, chr(codes[i]), side) for i in here])
        straight = _unit(stamps)
        for turn in COMPARED_TURNS:
            angle, zero = np.full(len(here), turn), np.zeros(len(here))
            where = _turned(angle, zero, np.ones((2, len(here))), side)
            same = _unit(_sample(stamps, *where)) @ straight.T > SAME
            alike[np.ix_(here, here)] |= same | same.T
    return alike


def _unit(stamps: np.ndarray) -> np.ndarray:
    """Blurred, centred images as unit vectors [n, pixels]; their products are correlations."""
    flat = ndimage.gaussian_filter(stamps.astype(np.float64), (0, COMPARED_BLUR, COMPARED_BLUR))
    flat = flat.reshape(len(stamps), -1)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _stamp(font: ImageFont.FreeTypeFont, letter: str, side: int) -> np.ndarray:
    """A letter cropped to its ink, scaled to LETTER * side and centred: uint8 [side, side]."""
    left, top, right, bottom = (round(edge) for edge in font.getbbox(letter))
    canvas = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), letter, fill=255, font=font)
    ink = canvas.crop(canvas.getbbox())
    scale = LETTER * side / max(ink.size)
    width, height = (max(1, round(scale * length)) for length in ink.size)
    stamp = Image.new("L", (side, side))
    small = ink.resize((width, height), Image.Resampling.BILINEAR)
    stamp.paste(small, ((side - width) // 2, (side - height) // 2))
    return np.asarray(stamp)


@lru_cache
def fonts() -> tuple[Path, str]:
    """The folder of matplotlib's fonts, and matplotlib's version.

    Matplotlib is not imported, because that is slow and fails if MPLBACKEND names a missing
    backend, as in processes started from a notebook.
    """
    try:
        found = importlib.util.find_spec("matplotlib")
        version = importlib.metadata.version("matplotlib")
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise DataError("glyphs: matplotlib is not installed; its fonts are needed")
    return Path(found.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf", version


def _font_file(face: str) -> Path:
    return fonts()[0] / f"{face}.ttf"


def _font(face: str, pixels: int) -> ImageFont.FreeTypeFont:
    # The basic layout does no text shaping; that would depend on whether Raqm is installed.
    layout = ImageFont.Layout.BASIC
    return ImageFont.truetype(_font_file(face), 2 * pixels, layout_engine=layout)


@lru_cache
def _charmaps() -> dict[str, frozenset[int]]:
    """The code points of each face."""
    for face in FACES:
        if not _font_file(face).is_file():
            raise DataError(f"glyphs: {_font_file(face)} is missing; reinstall matplotlib")
    from fontTools.ttLib import TTFont  # only needed to fill the cache

    maps = {}
    for face in FACES:
        with TTFont(_font_file(face), lazy=True) as font:
            maps[face] = frozenset(font.getBestCmap())
    return maps


def _script(code: int) -> str:
    return unicodedata.name(chr(code), "").split(" ")[0]


def _file_name(split: str, image_size: int) -> str:
    """A name that depends on everything that the pixels depend on."""
    made_of = (
        *(VERSION, IMAGES_PER_CLASS, SPLITS, FACES, FEWEST_FACES, DOTS, SAME, COMPARED_SIDE),
        *(
            COMPARED_BLUR,
            COMPARED_TURNS,
            LETTER,
            TURN,
            SHEAR,
            STRETCH,
            SHIFT,
            BEND,
            BEND_POINTS,
            image_size,
        ),
        *(fonts()[1], features.version("freetype2"), unicodedata.unidata_version),
    )
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    return f"glyphs-v{VERSION}-{split}-{image_size}-{digest}.npz"


def _read(file: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The arrays of a cache file; None if it is missing or damaged (zip has checksums)."""
    try:
        # Opened here, because np.load leaves a damaged zip file open.
        with open_file(file) as opened, np.load(opened, allow_pickle=False) as arrays:
            return arrays["images"], arrays["letters"]
    except Exception:  # a damaged zip file raises many types of errors
        return None


def _write(file: Path, images: np.ndarray, letters: np.ndarray) -> None:
    """Write a cache file atomically; several processes may do so at once."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial(file) as new:
            with new.open("wb") as out:
                np.savez_compressed(out, images=images, letters=letters)
            put(new, file)
    except OSError as error:
        reason = error.strerror or error
        warnings.warn(f"glyphs: not cached ({reason}); set JAXSPARSE_CACHE", stacklevel=3)
