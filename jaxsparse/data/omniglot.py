"""Omniglot for few-shot learning: 28x28, bright strokes, training characters also rotated."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from jaxsparse.data.cache import Rows, cached
from jaxsparse.data.images import ImageSet
from jaxsparse.data.locations import not_prepared
from jaxsparse.data.pictures import opened
from jaxsparse.data.prepared import prepared_files, records
from jaxsparse.errors import DataError

_BACKGROUND = """
    Alphabet_of_the_Magi Anglo-Saxon_Futhorc Arcadian Armenian Asomtavruli_(Georgian) Balinese
    Bengali Blackfoot_(Canadian_Aboriginal_Syllabics) Braille Burmese_(Myanmar) Cyrillic
    Early_Aramaic Futurama Grantha Greek Gujarati Hebrew Inuktitut_(Canadian_Aboriginal_Syllabics)
    Japanese_(hiragana) Japanese_(katakana) Korean Latin Malay_(Jawi_-_Arabic) Mkhedruli_(Georgian)
    N_Ko Ojibwe_(Canadian_Aboriginal_Syllabics) Sanskrit Syriac_(Estrangelo) Tagalog Tifinagh
"""
_EVALUATION = """
    Angelic Atemayar_Qelisayer Atlantean Aurek-Besh Avesta Ge_ez Glagolitic Gurmukhi Kannada Keble
    Malayalam Manipuri Mongolian Old_Church_Slavonic_(Cyrillic) Oriya Sylheti Syriac_(Serto)
    Tengwar Tibetan ULOG
"""
BACKGROUND, EVALUATION = tuple(_BACKGROUND.split()), tuple(_EVALUATION.split())
VALIDATION = BACKGROUND[5::6]  # 5 of the 30 alphabets, 158 of the 964 characters
_ALPHABETS = sorted(BACKGROUND + EVALUATION)  # in the order of TFDS's labels
_CHARACTERS = 1623
_DRAWERS = 20


def load_omniglot(
    split: str, data_dir: Path, image_size: int | None = None, mixed: bool = False
) -> ImageSet:
    """Read one split of Omniglot, 20 drawings of every character.

    By default the splits share no alphabet: test has the 659 characters of the 20 evaluation
    alphabets, validation 5 of the 30 background alphabets (158 characters), and train the other 25
    (806 characters). Many papers instead choose 1,200 of all 1,623 characters for training, so most
    test characters are from training alphabets. `mixed` gives this easier split: 1,100 train, 100
    validation and 423 test characters, in an order given by a hash of their names. In both cases
    each training character rotated by 90, 180 and 270 degrees counts as three more classes. Images
    are resized by area averaging and inverted: ink is 255.

    Args:
        split: "train", "validation" or "test".
        data_dir: TFDS's data folder, with Omniglot prepared in the array_record format.
        image_size: height and width in pixels; default: 28.
        mixed: use the split that mixes alphabets.

    Returns:
        An ImageSet on the host, images uint8 [20 classes, size, size, 1].

    Raises:
        DataError: Omniglot is not prepared in `data_dir`, or its records are incomplete.

    Examples:
        >>> load_omniglot("test", Path("~/tensorflow_datasets").expanduser()).images.shape
        (13180, 28, 28, 1)
    """
    size = image_size or 28
    key = prepared_files("omniglot", data_dir)
    if not key:
        raise not_prepared("omniglot", data_dir)
    data = cached(f"omniglot-{size}", key, lambda: _rows(data_dir, size))
    members = _members(data.names, split, mixed)
    chosen = data.take([i for i, name in enumerate(data.names) if name in members])
    if split != "train":
        return chosen
    images = np.concatenate([np.rot90(chosen.images, turn, axes=(1, 2)) for turn in range(4)])
    names = tuple(f"{name}/rot{90 * turn:03d}" for turn in range(4) for name in chosen.names)
    return ImageSet(images, np.tile(chosen.counts, 4), names, data.mean, data.std)


def _members(names: Sequence[str], split: str, mixed: bool) -> set[str]:
    if mixed:
        # A hash, because no random generator guarantees the same order in all versions.
        order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        parts = {"train": order[:1100], "validation": order[1100:1200], "test": order[1200:]}
        return set(parts[split])
    train = set(BACKGROUND) - set(VALIDATION)
    alphabets = {"train": train, "validation": set(VALIDATION), "test": set(EVALUATION)}[split]
    return {name for name in names if name.split("/")[0] in alphabets}


def _rows(data_dir: Path, size: int) -> Rows:
    drawings = defaultdict(list)
    for split in ("train", "test"):
        for record in records("omniglot", split, data_dir):
            alphabet, character = int(record["alphabet"]), int(record["alphabet_char_id"])
            name = f"{_ALPHABETS[alphabet]}/character{character + 1:02d}"
            drawings[name].append(record["image"])
    counts = [len(images) for images in drawings.values()]
    if counts != [_DRAWERS] * _CHARACTERS:
        raise DataError(
            f"omniglot: {data_dir} holds {sum(counts)} drawings of {len(counts)} characters,"
            f" not {_DRAWERS} of each of {_CHARACTERS}; prepare it again"
        )
    names = sorted(drawings)
    where = f"omniglot: an image in {data_dir}"
    images = (
        opened(lambda image: _shrink(image, size), io.BytesIO(png), where)
        for name in names
        for png in drawings[name]
    )
    return Rows(names, [_DRAWERS] * _CHARACTERS, (size, size, 1), images)


def _shrink(image: Image.Image, size: int) -> np.ndarray:
    ink = 255.0 - np.asarray(image.convert("L"))
    rows, columns = (_area_weights(length, size) for length in ink.shape)
    return np.rint(rows @ ink @ columns.T).astype(np.uint8)[..., None]


@cache
def _area_weights(length: int, size: int) -> np.ndarray:
    # [size, length]: the fraction of output pixel i that input pixel j covers; rows sum to 1
    edges = np.arange(size + 1) * (length / size)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(0) * (size / length)
