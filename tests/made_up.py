"""Make datasets with random images in a temporary folder, in the layout of the real ones."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxsparse.data import DataError, load

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std


def pixels(seed, height, width, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tree(root, layout, size=(10, 10), channels=3, suffix="png"):
    """Write random images; layout is {split folder: {class: number of images}}."""
    written = {}
    for split, classes in layout.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = pixels(zlib.crc32(f"{split}{name}{i}".encode()), size[0], size[1], channels)
                Image.fromarray(image).save(root / split / name / f"{i}.{suffix}")
                written[split, name, i] = image
    return written


def fails(match, *args, **kwargs):
    with pytest.raises(DataError, match=match) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)


def manual_folder(tmp_path):
    path = tmp_path / "downloads" / "manual"
    path.mkdir(parents=True)
    return path


def png(image):
    """An image as a PNG file, in memory."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    encoded.seek(0)
    return encoded


def prepare(data_dir, name, splits):
    """Prepare records as TFDS does; `splits` is {TFDS's split: [dict of features]}."""
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core import registered

    base = type(tfds.builder(name, data_dir=data_dir))
    own = {
        "name": name,
        "_split_generators": lambda self, _: {s: enumerate(e) for s, e in splits.items()},
        # TFDS 4.9.10 would find these with importlib_resources, which it does not install.
        "code_path": epath.Path(__file__),
        "url_infos": {},
    }
    with registered.skip_registration():
        builder = type(base.__name__, (base,), own)
    builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
