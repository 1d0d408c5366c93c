"""Made-up pictures in class folders, to train on where there is no data set.

python -m benchmarks.pictures FOLDER --size 84
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from experiments import cli

PROG = "python -m benchmarks.pictures"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Write train/, val/ and test/ for --dataset folder: for each class a picture with noise."""

    folder: Annotated[Path, tyro.conf.Positional]
    """where to write them"""
    size: int = 84
    """height and width"""
    classes: int = 20
    """classes of each split"""
    each: int = 30
    """pictures of each class"""


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags and write the pictures."""
    default = Flags(Path("pictures"))
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, default, PROG)
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label in range(flags.classes):
            folder = flags.folder / split / f"{split}-{label}"
            folder.mkdir(parents=True, exist_ok=True)
            write(folder, flags.size, flags.each, random)


def write(folder: Path, size: int, count: int, random: np.random.Generator) -> None:
    """Write the pictures of one class."""
    shape = (size, size, 3)
    prototype = random.integers(0, 128, shape)
    for index in range(count):
        picture = prototype + random.integers(0, 128, shape)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{index}.png")


if __name__ == "__main__":
    main()
