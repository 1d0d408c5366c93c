"""MNIST, Fashion-MNIST and CIFAR-10 as test domains of few-shot learning."""

from pathlib import Path

import numpy as np

from jaxsparse.data.classification import load_labelled
from jaxsparse.data.conversion import convert
from jaxsparse.data.images import ImageSet
from jaxsparse.errors import DataError

_CLASSES = {
    "mnist": "0,1,2,3,4,5,6,7,8,9",
    "fashion_mnist": "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot",
    "cifar10": "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck",
}


def load_ten_classes(
    name: str, split: str, data_dir: Path, image_size: int | None = None
) -> ImageSet:
    """Read the test images of "mnist", "fashion_mnist" or "cifar10"; there is no other split.

    Mean and std are those of `load_labelled`.
    """
    if split != "test":
        raise DataError(
            f"{name}: there is no split {split!r}: its 10 classes are only a test domain; train and"
            " validate on another dataset"
        )
    labelled = load_labelled(name, "test", data_dir)
    labels, names = np.asarray(labelled.labels), tuple(_CLASSES[name].split(","))
    counts = np.bincount(labels, minlength=len(names)).astype(np.int32)
    if not counts.all():
        missing = names[int(counts.argmin())]
        raise DataError(f"{name}: no test images of {missing} in {data_dir}; prepare it again")
    images = np.asarray(labelled.images)[np.argsort(labels, kind="stable")]
    data = ImageSet(images, counts, names, labelled.mean, labelled.std)
    height, width, channels = data.image_shape
    shape = (image_size or height, image_size or width, channels)
    return convert(data, shape, data.mean, data.std)
