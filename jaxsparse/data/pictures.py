"""Decode an image file to 8-bit pixels."""

import os
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from jaxsparse.data.files import one_line, open_file
from jaxsparse.errors import DataError

# Accepted formats, whatever the file is called. Some other formats of Pillow run external programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 89_478_485  # per image; above it Pillow warns of decompression bombs

_GREY = ("1", "L", "LA", "La", "F")  # and all modes that begin with I
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_ORIENTATION = 0x0112  # the EXIF tag
_SCALES = (1, 255, 65535)  # usual highest values of integer and float pixels wider than 8 bits
_FIXED_RANGE = ("PNG", "PPM")  # formats whose wide integers Pillow scales to 0 .. 65535
# How Pillow converts the pixels of PNG files to 8 bits. It does not convert the transparent value.
_TO_8_BITS = {
    "L;2": lambda value: value * 85,
    "L;4": lambda value: value * 17,
    "RGB;16B": lambda value: tuple(x >> 8 for x in value),
}


def read_image(
    file: str | os.PathLike[str] | BinaryIO, shape: tuple[int, int, int], name: str | None = None
) -> np.ndarray:
    """Decode an image to uint8 of this shape; see `fit`.

    DataError if it is not an image, truncated, or too large (a decompression bomb). `name` is its
    name in the message; default: the path.
    """
    return opened(lambda image: fit(image, shape), file, name)


def is_grey(file: str | os.PathLike[str]) -> bool:
    """Whether an image file is greyscale, by its mode, not by its pixels."""
    return opened(lambda image: image.mode in _GREY or image.mode.startswith("I"), file)


def has_content(file: str | os.PathLike[str]) -> bool:
    """Whether the pixels of an image file differ in colour or transparency."""

    def differ(image: Image.Image) -> bool:
        pixels = np.asarray(image)
        return bool((pixels != pixels[:1, :1]).any())

    return opened(differ, file)


def opened(
    use: Callable[[Image.Image], Any],
    file: str | os.PathLike[str] | BinaryIO,
    name: str | None = None,
) -> Any:
    """`use(image)` for an image file; any error becomes a one-line DataError."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of unusual images, which we handle, and of decompression bombs.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(file, str | os.PathLike):
                with open_file(file) as content:
                    return _use(use, content)
            return _use(use, file)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        called = name or one_line(str(file) if not isinstance(file, str | os.PathLike) else file)
        raise DataError(
            f"{called}: not a readable image: {reason or type(error).__name__}"
        ) from error


def _use(use: Callable[[Image.Image], Any], file: BinaryIO) -> Any:
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, at most {MOST_PIXELS}")
        return use(image)


def fit(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Convert an image to uint8 of shape (height, width, channels), with 1 or 3 channels.

    - It is resized with an antialiased bilinear filter.
    - It is rotated as its EXIF data say; of several frames the first is used.
    - Transparent parts become white.
    - 16-bit pixels are scaled from 0 .. 65535. Wider integers and floats have no fixed range: if
      all values are in [0, 1], [0, 255] or [0, 65535], the first such range is scaled to 0 .. 255;
      else the range from the lowest to the highest value.

    Raises:
        ValueError: a pixel is NaN or infinite, or the mode has no known colours.
    """
    height, width, channels = shape
    _scale_clear_value(image)
    image.load()
    is_16_bit = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in _FIXED_RANGE
    )
    image = _opaque(_eight_bits(_upright(image), is_16_bit))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)


def _scale_clear_value(image: Image.Image) -> None:
    """Scale the transparent value of a PNG file in the same way as Pillow scales its pixels."""
    tiles = getattr(image, "tile", None)
    scale = _TO_8_BITS.get(str(tiles[0][3])) if tiles else None
    if scale is not None and image.format == "PNG" and "transparency" in image.info:
        image.info["transparency"] = scale(image.info["transparency"])


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # ignore damaged EXIF data; the pixels are fine
        return image


def _eight_bits(image: Image.Image, is_16_bit: bool) -> Image.Image:
    """Convert wide greyscale pixels to 8 bits, and LAB (which Pillow does not convert) to RGB."""
    if image.mode == "LAB":
        return _from_lab(image)
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    grey = _scaled(pixels, is_16_bit)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # the transparent value of a PNG file
        grey = np.where(pixels == clear, np.uint8(255), grey)
    return Image.fromarray(grey)


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
    converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    assert converted is not None  # None only with inPlace=True
    return converted


def _scaled(pixels: np.ndarray, is_16_bit: bool) -> np.ndarray:
    if is_16_bit:
        return (pixels // 257).clip(0, 255).astype(np.uint8)
    if not np.isfinite(pixels).all():
        raise ValueError("pixels that are NaN or infinite")
    wide = pixels.astype(np.float64)
    low, high = wide.min(), wide.max()
    scales = [scale for scale in _SCALES if low >= 0 and high <= scale]
    if not scales:
        return np.rint((wide - low) * (255 / ((high - low) or 1))).astype(np.uint8)
    return np.rint(wide * (255 / scales[0])).astype(np.uint8)


def _opaque(image: Image.Image) -> Image.Image:
    """The image on a white background."""
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image  # opaque everywhere; dropping alpha changes no colour
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
