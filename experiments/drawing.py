"""Draw figures with matplotlib's default style and write them atomically."""

import contextlib
import importlib.util
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsparse.training import writing
from jaxsparse.training.errors import one_line
from jaxsparse.training.files import replacing
from jaxsparse.training.statistics import mean_and_std

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]


def draw_run(
    path: Path, figures: "Mapping[str, Callable[..., Figure]]", rows: Rows, result: Any
) -> dict[str, str]:
    """Write figures (file name -> `(rows, result) -> figure`) into the folder of a run.

    Returns the names of the figures that could not be drawn, with the reasons. A figure that cannot
    be written is a `WriteError`.
    """
    failed = {}
    for name, draw in figures.items():
        try:
            with own_style():
                picture = rendered(draw(rows, result))
        except Exception as error:  # the run is finished: no error in a figure may fail it
            failed[name] = f"{type(error).__name__}, {one_line(error)}"
        else:
            write(picture, path / name)
    return failed


def rendered(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG file of 256 colours, which takes a third of the bytes."""
    from PIL import Image

    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True)
    return small.getvalue()


def write(picture: bytes, path: Path) -> None:
    """Write a picture atomically; after a `WriteError` the old file is unchanged."""
    with writing(path), replacing(path) as partial:
        partial.write_bytes(picture)


def is_whole(path: Path) -> bool:
    """Whether a PNG file exists and is complete, by the checksums of its chunks.

    Source: PNG (Portable Network Graphics) Specification, Third Edition, section 5.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return False
    place, kind = 8, b""
    if data[:place] != b"\x89PNG\r\n\x1a\n":
        return False
    while kind != b"IEND":
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        end = place + 12 + length
        if end > len(data):
            return False
        if zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            return False
        place = end
    return place == len(data)


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Matplotlib's defaults, whatever the user's matplotlibrc or a notebook's backend."""
    home = importlib.util.find_spec("matplotlib")
    assert home is not None and home.origin is not None
    ours = {"MATPLOTLIBRC": str(Path(home.origin).parent / "mpl-data" / "matplotlibrc")}
    with _environment(MPLBACKEND=None, **ours):
        import matplotlib
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@contextlib.contextmanager
def _environment(**variables: str | None) -> Iterator[None]:
    """Set these environment variables for a while; None unsets one."""
    before = {name: os.environ.get(name) for name in variables}

    def put(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(variables)
    try:
        yield
    finally:
        put(before)


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any):
    """A figure and its axes, like `pyplot.subplots` but without opening windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def band(axis: Any, steps: Any, values: Any, label: str) -> None:
    """A line through the means over seeds, with one standard deviation around it."""
    by_seed = np.array([np.atleast_1d(value) for value in values], float)
    spreads = [mean_and_std(of_step) for of_step in by_seed]
    mean = np.array([spread["mean"] for spread in spreads])
    (line,) = axis.plot(steps, mean, label=label, marker="o", markersize=2.5)
    if by_seed.shape[1] > 1:
        std = np.array([spread["std"] for spread in spreads])
        axis.fill_between(steps, mean - std, mean + std, color=line.get_color(), alpha=0.2)


def layers(names: Iterable[str], ending: str) -> dict[str, str]:
    """Layer -> the name of its parameter with this ending."""
    return {name.rsplit("/", 1)[0]: name for name in names if name.endswith(ending)}


def draw_sparsities(axis: Any, rows: Rows, place: str, lines: Mapping[str, str]) -> None:
    """Plot sparsity in percent against an entry of the rows; `lines` is label -> parameter."""
    for label, name in lines.items():
        values = [100 * np.array(row["sparsity"][name], float, ndmin=1) for row in rows]
        band(axis, [row[place] for row in rows], values, label)


def draw_stream_sparsity(rows: Rows, place: str, xlabel: str, without: str) -> "Figure":
    """Sparsity by layer over a stream, in percent: weights, biases.

    Args:
      rows: the metrics of a run.
      place: the entry of the rows on the x axis.
      xlabel: the label of the x axis.
      without: the text shown if there is no sparsity.
    """
    figure, axes = subplots(1, 2, figsize=(8, 3.6), sharey=True)
    for axis, (title, ending) in zip(
        axes, (("weights", "kernel"), ("biases", "bias")), strict=True
    ):
        lines = layers(rows[0]["sparsity"], ending)
        draw_sparsities(axis, rows, place, lines)
        axis.set(title=title, xlabel=xlabel, ylim=(-2, 102))
        if lines:
            axis.legend(frameon=False, fontsize="small")
        else:
            axis.text(0.5, 0.5, without, ha="center", transform=axis.transAxes)
    axes[0].set_ylabel("sparsity [%]")
    return figure
