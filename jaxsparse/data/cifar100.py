"""CIFAR-100 for few-shot learning: CIFAR-FS, a random split, and FC100, split by superclass."""

from pathlib import Path

from jaxsparse.data.images import ImageSet
from jaxsparse.data.prepared import load_prepared

# In the order of the coarse labels. The fine labels number all classes in alphabetical order.
SUPERCLASSES = {
    superclass: tuple(classes.split())
    for superclass, classes in {
        "aquatic_mammals": "beaver dolphin otter seal whale",
        "fish": "aquarium_fish flatfish ray shark trout",
        "flowers": "orchid poppy rose sunflower tulip",
        "food_containers": "bottle bowl can cup plate",
        "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
        "household_electrical_devices": "clock keyboard lamp telephone television",
        "household_furniture": "bed chair couch table wardrobe",
        "insects": "bee beetle butterfly caterpillar cockroach",
        "large_carnivores": "bear leopard lion tiger wolf",
        "large_man-made_outdoor_things": "bridge castle house road skyscraper",
        "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
        "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
        "medium_mammals": "fox porcupine possum raccoon skunk",
        "non-insect_invertebrates": "crab lobster snail spider worm",
        "people": "baby boy girl man woman",
        "reptiles": "crocodile dinosaur lizard snake turtle",
        "small_mammals": "hamster mouse rabbit shrew squirrel",
        "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
        "vehicles_1": "bicycle bus motorcycle pickup_truck train",
        "vehicles_2": "lawn_mower rocket streetcar tank tractor",
    }.items()
}
CLASSES = tuple(sorted(name for names in SUPERCLASSES.values() for name in names))

_CIFAR_FS = {
    "validation": """
        beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle
        otter sea shark television tractor
    """,
    "test": """
        baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail
        sweet_pepper table telephone wardrobe whale woman worm
    """,
}
_FC100 = {
    "validation": """
        large_carnivores large_omnivores_and_herbivores non-insect_invertebrates small_mammals
    """,
    "test": "aquatic_mammals insects medium_mammals people",
}


def load_cifar_fs(split: str, data_dir: Path, image_size: int | None = None) -> ImageSet:
    """Read one split of CIFAR-FS: CIFAR-100, 64 / 16 / 20 classes chosen at random.

    The train and test images of CIFAR-100 are used together: 600 per class. They have 32x32 pixels
    unless `image_size` is given.

    Source: Bertinetto et al. 2019, Meta-learning with differentiable closed-form solvers. The lists
        are the same as Torchmeta's (torchmeta/datasets/assets/cifar100/cifar-fs).
    """
    return _load("cifar_fs", split, data_dir, image_size)


def load_fc100(split: str, data_dir: Path, image_size: int | None = None) -> ImageSet:
    """Read one split of FC100: CIFAR-100, 60 / 20 / 20 classes, no superclass in two splits.

    The images are those of `load_cifar_fs`.

    Source: Oreshkin et al. 2018, TADAM: Task dependent adaptive metric for improved few-shot
        learning, supplement. The lists are the same as Torchmeta's
        (torchmeta/datasets/assets/cifar100/fc100).
    """
    return _load("fc100", split, data_dir, image_size)


def members(name: str, split: str) -> frozenset[str]:
    """The CIFAR-100 names of the classes in a split of "cifar_fs" or "fc100".

    Examples:
        >>> [len(members("cifar_fs", split)) for split in ("train", "validation", "test")]
        [64, 16, 20]
        >>> sorted(members("fc100", "test"))[:3]
        ['baby', 'beaver', 'bee']
    """
    if split == "train":
        held_out = members(name, "validation") | members(name, "test")
        return frozenset(CLASSES) - held_out
    if name == "cifar_fs":
        return frozenset(_CIFAR_FS[split].split())
    return frozenset(c for superclass in _FC100[split].split() for c in SUPERCLASSES[superclass])


def _load(name: str, split: str, data_dir: Path, image_size: int | None) -> ImageSet:
    size, own = image_size or 32, members(name, split)
    chosen = {i: called for i, called in enumerate(CLASSES) if called in own}
    return load_prepared(
        f"{name}-{split}-{size}",
        "cifar100",
        data_dir,
        (size, size, 3),
        lambda record: chosen.get(int(record["label"])),
        len(chosen),
    )
