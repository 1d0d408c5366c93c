"""miniImageNet for TensorFlow Datasets; importing this module registers `mini_imagenet`."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from jaxsparse.data.folder import SPLIT_FOLDERS
from jaxsparse.data.mini_imagenet_files import INSTRUCTIONS, manual_source


class MiniImagenet(tfds.core.GeneratorBasedBuilder):
    """The 60,000 images of miniImageNet, 84x84, in the split of Ravi & Larochelle.

    Each example is {"image": uint8 [84, 84, 3], "label": name of the class}; the splits share no
    class. `jaxsparse.data.load` does not need it: it can read the manual folder itself.

    Examples:
        >>> builder = tfds.builder("mini_imagenet", file_format="array_record")
        >>> builder.download_and_prepare()  # needs no TensorFlow
        >>> len(builder.as_data_source("test"))
        12000
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "First release."}  # noqa: RUF012  TFDS's own form
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    # TFDS 4.9.10 would find the path with importlib_resources, which it does not install.
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(84, 84, 3), encoding_format="png"),
            "label": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="100 classes of ImageNet, 600 images each, for few-shot learning.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://openreview.net/forum?id=rJY0-Kcll",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        manual = Path(dl_manager.manual_dir)
        return {split: self._generate_examples(manual, split) for split in SPLIT_FOLDERS}

    def _generate_examples(self, manual: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        _, open_rows = manual_source(manual, split)
        rows = open_rows()
        for name, count in zip(rows.names, rows.counts, strict=True):
            for i in range(count):
                yield f"{name}_{i:04d}", {"image": _png(next(rows.images)), "label": name}


def _png(image: np.ndarray) -> io.BytesIO:
    # TFDS also accepts arrays, but encodes them with TensorFlow.
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG", compress_level=1)
    encoded.seek(0)
    return encoded
