"""MNIST, Fashion-MNIST and CIFAR-10 as domains to test few-shot learners on."""

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
    """Read the test images of a data set of ten classes.

    Args:
        name: "mnist", "fashion_mnist" or "cifar10".
        split: "test"; there are no classes to train or to validate on.
        data_dir: TFDS's data folder, with the data set prepared in the array_record format.
        image_size: height and width in pixels; default 28, and 32 for CIFAR-10.

    Returns:
        An ImageSet on the host, uint8 [10000, 28, 28, 1], or [10000, 32, 32, 3] for CIFAR-10, the
        images of a class in the order of their records. Mean and std as `load_labelled`.

    Raises:
        DataError: another split, or the data set is not prepared in `data_dir` or damaged.

    Example:
        >>> folder = Path("~/tensorflow_datasets").expanduser()
        >>> load_ten_classes("mnist", "test", folder).counts[:3].tolist()
        [980, 1135, 1032]
    """
    if split != "test":
        raise DataError(
            f"{name}: there is no split {split!r}: its 10 classes are a test domain only; train and"
            " validate on another data set"
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
