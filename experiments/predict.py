"""Adapt a finished few-shot run to a few images of each class, and predict others.

python -m experiments.predict runs/fewshot/NAME --support pets/few --query pets/new
"""

import csv
import dataclasses
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from experiments import cli, fewshot, runs
from experiments.drawing import literal, rendered, write
from experiments.style import WARNING, own_style
from jaxsparse.data import DataError
from jaxsparse.data.folder import SUFFIXES, scan_classes
from jaxsparse.data.pictures import read_image
from jaxsparse.training import ConfigError, writing
from jaxsparse.training.environment import use_threads_of
from jaxsparse.training.errors import reading
from jaxsparse.training.fewshot.tested import finished
from jaxsparse.training.fewshot.trained import learner_of
from jaxsparse.training.files import replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "python -m experiments.predict"
MOST_SHOWN = 60  # images on the contact sheet
COLUMNS = 6


@dataclasses.dataclass(frozen=True)
class Flags:
    """Adapt a finished few-shot run to a few images of each class, and predict others."""

    run: tyro.conf.Positional[Path]
    """folder of the run, a file of weights, or the name of weights that come with jaxsparse"""
    support: Path
    """folder with a folder of images for each class, at most as many as the network has outputs"""
    query: tuple[Path, ...]
    """images to predict, or folders of them"""
    steps: int | None = None
    """K; default: the number of inner steps in the run's test"""
    seed: int | None = None
    """which of the run's seeds; default: the first"""
    out: Path = Path("predictions")
    """new folder for predictions.csv and predictions.png"""


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, adapt, predict, write and print."""
    with cli.command():
        words = list(sys.argv[1:] if args is None else args)
        flags = cli.parse(Flags, words, _DEFAULTS, PROG)
        if flags.steps is not None and flags.steps < 0:
            cli.fail(f"--steps must be 0 or more, got {flags.steps}")
        path, out = runs.user_path("RUN", flags.run), runs.new_path("--out", flags.out)
        run = finished(path)
        support = scan_classes(runs.user_path("--support", flags.support))
        if len(support) > run.config.ways:
            raise ConfigError(
                f"--support has {len(support)} classes, the network has {run.config.ways} outputs"
            )
        files = query_files([runs.user_path("--query", place) for place in flags.query])
        use_threads_of(run.record)
        cli.use_cores(fewshot.cores(run.config))
        cli.use_compilation_cache()
        cli.start_backend()
        learner = learner_of(run, flags.seed)
        labelled = [(name, file.path) for name, own in support.items() for file in own]
        shown = _read([path for _, path in labelled], learner.image_shape)
        adapted = learner.adapt(shown, [name for name, _ in labelled], flags.steps)
        images = _read(files, learner.image_shape)
        probabilities = adapted.predict(images)
        rows = table(files, adapted.classes, probabilities)
        with own_style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # in the names of files
            sheet = rendered(contact_sheet(images, files, adapted.classes, probabilities))
        with writing(out):
            out.mkdir(parents=True)
            replace_text(out / "predictions.csv", rows)
        write(sheet, out / "predictions.png")
        for line in summary(adapted.classes, probabilities):
            cli.say(line)
        cli.say(f"predictions: {out / 'predictions.csv'}, {out / 'predictions.png'}")


_DEFAULTS: Any = Flags(tyro.MISSING, tyro.MISSING, tyro.MISSING)


def query_files(places: Sequence[Path]) -> list[Path]:
    """The images that --query names: files as they stand, folders searched for images.

    Raises:
      DataError: a path is not there, or a folder holds no image.
    """
    files: list[Path] = []
    for place in places:
        with reading(place):
            if place.is_dir():
                found = _images_under(place)
            elif place.exists():
                found = [place]
            else:
                raise DataError(f"--query: {place} is not there")
        if not found:
            raise DataError(f"--query: {place} holds no images ({' '.join(SUFFIXES)})")
        files += found
    return files


def _images_under(folder: Path) -> list[Path]:
    """The images in a folder and its folders, also linked ones, without hidden ones."""
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        own = os.path.realpath(parent)  # a link may lead back
        folders[:] = [] if own in seen else [name for name in folders if not name.startswith(".")]
        if own not in seen:
            shown = (name for name in names if not name.startswith("."))
            found += [Path(parent, name) for name in shown if name.lower().endswith(SUFFIXES)]
        seen.add(own)
    return sorted(found)


def _read(files: Sequence[Any], shape: tuple[int, int, int]) -> np.ndarray:
    return np.stack([read_image(file, shape) for file in files])


def table(files: Sequence[Path], classes: Sequence[str], probabilities: np.ndarray) -> str:
    """A CSV with a row for each image: file, prediction, and the probability of each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "prediction", *classes])
    for file, row in zip(files, probabilities, strict=True):
        writer.writerow([_text(file), classes[row.argmax()], *(f"{value:.4f}" for value in row)])
    return text.getvalue()


def _text(file: Path) -> str:
    """The path as UTF-8, which not every file name is."""
    return str(file).encode(errors="backslashreplace").decode()


def summary(classes: Sequence[str], probabilities: np.ndarray) -> list[str]:
    """How many images were predicted as each class, and how sure the predictions are."""
    best = probabilities.argmax(1)
    lines = []
    for i, name in enumerate(classes):
        own = probabilities[best == i, i]
        sure = f", mean probability {own.mean():.2f}" if len(own) else ""
        lines.append(f"{name}: {len(own)} of {len(best)} images{sure}")
    return lines


def contact_sheet(
    images: np.ndarray, files: Sequence[Path], classes: Sequence[str], probabilities: np.ndarray
) -> "Figure":
    """The first images with their predictions; uncertain ones in another colour."""
    from matplotlib.figure import Figure

    count = min(len(images), MOST_SHOWN)
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(1.6 * COLUMNS, 1.9 * rows + 0.4))
    for i, axes in enumerate(figure.subplots(rows, COLUMNS, squeeze=False).flat):
        axes.set_axis_off()
        if i >= count:
            continue
        best = probabilities[i].argmax()
        picture = images[i][..., 0] if images.shape[-1] == 1 else images[i]
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        sure = probabilities[i, best] >= 0.5
        title = f"{classes[best]} {probabilities[i, best]:.2f}\n{_text(files[i])}"
        axes.set_title(literal(title), fontsize=8, color="black" if sure else WARNING)
    more = f", the first {count} of {len(images)}" if count < len(images) else ""
    figure.suptitle(f"predictions and their probabilities{more}")
    return figure


if __name__ == "__main__":
    main()
