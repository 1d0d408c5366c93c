"""A labelled set that needs no download: digits in the fonts that matplotlib ships."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import features

from jaxsparse.data import glyphs
from jaxsparse.data.labelled import LabelledSet
from jaxsparse.errors import DataError
from jaxsparse.user_cache import cache_dir

VERSION = 1  # increase it whenever the same arguments would give other images
IMAGES_PER_CLASS = {"train": 600, "test": 100}
IMAGE_SIZE = 28  # pixels

# Milder than for letters: a 6 must not turn into a 9, nor a 1 into a 7.
DISTORTION = glyphs.Distortion(turn=0.3, shear=0.3, stretch=0.25, shift=0.12, bend=0.08)


def load_digits(
    split: str, folder: str | Path | None = None, images_per_class: int | None = None
) -> LabelledSet:
    """Digits 0 to 9, white on black, as a labelled set like MNIST.

    Each image is a digit in one of 16 font faces with a random rotation, shear, stretch, shift and
    elastic warp. Both splits use all faces; their distortions are independent. The labels are 0, 1,
    .., 9, 0, 1, .. The images depend only on the arguments and on the versions of the fonts and of
    FreeType. The first call renders them in some seconds and stores them in the cache folder.

    Args:
        split: "train" or "test".
        folder: where to store the images; None: `jaxsparse.user_cache.cache_dir()`.
        images_per_class: None: 600 in "train" and 100 in "test".

    Returns:
        LabelledSet with images uint8 [10 images_per_class, 28, 28, 1], mean 0 and std 1.

    Raises:
        DataError: an unknown split, fewer than one image per class, or missing fonts.

    Examples:
        >>> data = load_digits("test")
        >>> data.images.shape, data.labels[:12].tolist()
        ((1000, 28, 28, 1), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    """
    if split not in IMAGES_PER_CLASS:
        raise DataError(f"digits: split must be train or test, got {split!r}")
    count = IMAGES_PER_CLASS[split] if images_per_class is None else images_per_class
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DataError(f"digits: images_per_class must be a whole number >= 1, got {count!r}")
    file = (cache_dir() if folder is None else Path(folder)) / _file_name(split, count)
    found = glyphs._read(file)
    if found is None:
        found = _render(split, count)
        glyphs._write(file, *found)
    images, letters = found
    return LabelledSet(images, letters - ord("0"), (0.0,), (1.0,), 10)


def _render(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [10 count, 28, 28, 1] and their code points int32 [10 count]."""
    glyphs._charmaps()  # raises DataError if a font is missing
    side = 2 * IMAGE_SIZE
    fonts = [glyphs._font(face, side) for face in glyphs.FACES]
    classes = []
    for digit in range(10):
        rng = np.random.default_rng((VERSION, list(IMAGES_PER_CLASS).index(split), digit))
        stamps = np.stack([glyphs._stamp(font, str(digit), side) for font in fonts])
        faces = np.resize(rng.permutation(len(stamps)), count)
        classes.append(glyphs.distorted(rng, stamps[faces], DISTORTION))
    images = np.stack(classes, 1).reshape(10 * count, IMAGE_SIZE, IMAGE_SIZE, 1)
    return images, np.tile(np.arange(10, dtype=np.int32) + ord("0"), count)


def _file_name(split: str, count: int) -> str:
    """A name that depends on everything that the pixels depend on."""
    made_of = (
        *(VERSION, glyphs.FACES, glyphs.LETTER, glyphs.BEND_POINTS, DISTORTION, IMAGE_SIZE),
        *(glyphs.fonts()[1], features.version("freetype2")),
    )
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    return f"digits-v{VERSION}-{split}-{count}-{digest}.npz"
