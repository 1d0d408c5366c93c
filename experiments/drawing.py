"""What all figures share: drawing lines with bands, and writing pictures atomically."""

import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.style import looks, own_style
from jaxsparse.training import writing
from jaxsparse.training.errors import one_line
from jaxsparse.training.files import replacing
from jaxsparse.training.statistics import mean_and_std

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
# The range of an axis of percentages, with room for lines at its ends.
SHARES = (-2, 102)
# About so many markers on a line.
_MARKERS = 12


class Shown(NamedTuple):
    """A run in a figure that compares runs.

    Attributes:
      label: what tells it from the others.
      rows: its metrics.
      result: the content of its result.json; None before its end.
      look: options of `axis.plot`.
    """

    label: str
    rows: Rows
    result: Any
    look: dict[str, Any]


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
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True)
    return small.getvalue()


def write(picture: bytes, path: Path, make_folder: bool = False) -> None:
    """Write a picture atomically; after a `WriteError` the old file is unchanged."""
    with writing(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
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


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any):
    """A figure and its axes, like `pyplot.subplots` but without opening windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize)
    return figure, figure.subplots(rows, columns, **options)


def band(axis: Any, steps: Any, values: Any, label: str, **look: Any) -> None:
    """A line through the means over seeds, with one standard deviation (N - 1) around it.

    Args:
      axis: matplotlib's axes.
      steps: [T] places on the x axis.
      values: [T] or [T, seeds] numbers; None is a gap.
      label: of the line, for the legend.
      **look: options of `axis.plot`; default: the next look of the style.
    """
    by_seed = np.array([np.atleast_1d(np.array(value, float)) for value in values])
    spreads = [mean_and_std(of_step) for of_step in by_seed]
    mean = np.array([spread["mean"] for spread in spreads])
    every = max(1, len(mean) // _MARKERS)
    (line,) = axis.plot(steps, mean, label=label, markevery=every, **look)
    if by_seed.shape[1] > 1:
        std = np.array([spread["std"] for spread in spreads])
        axis.fill_between(steps, mean - std, mean + std, color=line.get_color(), alpha=0.2, lw=0)


def layers(names: Iterable[str], ending: str) -> dict[str, str]:
    """Layer -> the name of its parameter with this ending."""
    return {name.rsplit("/", 1)[0]: name for name in names if name.endswith(ending)}


def draw_sparsities(
    axis: Any, rows: Rows, place: str, lines: Mapping[str, str], looks: Mapping[str, Any]
) -> None:
    """Plot sparsity in percent against an entry of the rows.

    Args:
      axis: matplotlib's axes.
      rows: the metrics of a run.
      place: the entry of the rows on the x axis.
      lines: label -> name of the parameter.
      looks: label -> options of `axis.plot`, see `style.looks`.
    """
    for label, name in lines.items():
        draw_sparsity(axis, rows, place, name, label, **looks[label])


def draw_sparsity(axis: Any, rows: Rows, place: str, name: str, label: str, **look: Any) -> None:
    """Plot the sparsity of one parameter in percent against an entry of the rows."""
    values = [100 * np.array(row["sparsity"][name], float, ndmin=1) for row in rows]
    band(axis, [row[place] for row in rows], values, label, **look)


def draw_layers(rows: Rows, place: str, xlabel: str, parts: Mapping[str, str]) -> "Figure":
    """Sparsity by layer in percent, a panel for each part of the network.

    Args:
      rows: the metrics of a run.
      place: the entry of the rows on the x axis.
      xlabel: the label of the x axis.
      parts: the title of a panel -> the ending of the names of its parameters; parts without
        parameters are left out.
    """
    of_parts = {title: layers(rows[0]["sparsity"], ending) for title, ending in parts.items()}
    panels = {title: lines for title, lines in of_parts.items() if lines}
    if not panels:
        return text_only("This method freezes no parameters.")
    figure, axes = subplots(
        1, len(panels), figsize=(0.6 + 3.6 * len(panels), 4.4), sharey=True, squeeze=False
    )
    of_layers = looks(layer for lines in panels.values() for layer in lines)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        draw_sparsities(axis, rows, place, lines, of_layers)
        axis.set(title=title, xlabel=xlabel, ylim=SHARES)
    axes[0, 0].set_ylabel("sparsity [%]")
    figure.suptitle("Sparsity by layer: parameters with a step size of 0")
    legend_below(figure, axes.flat, 3 * len(panels))
    return figure


def compare_layers(shown: Sequence[Shown], place: str, xlabel: str) -> "Figure":
    """Sparsity of several runs in percent: a panel for all parameters and each layer's weights.

    Args:
      shown: the runs.
      place: the entry of the rows on the x axis.
      xlabel: the label of the x axis.
    """
    names = dict.fromkeys(name for run in shown for name in run.rows[0]["sparsity"])
    panels = [name for name in names if name == "total" or name.endswith("kernel")]
    if not panels:
        return text_only("These methods freeze no parameters.")
    panels.sort(key="total".__ne__)  # it is shown first
    figure, axes = grid(len(panels), "Sparsity: parameters with a step size of 0", "sparsity [%]")
    for axis, name in zip(axes, panels, strict=True):
        for run in shown:
            if name in run.rows[0]["sparsity"]:
                draw_sparsity(axis, run.rows, place, name, run.label, **run.look)
        title = "all parameters" if name == "total" else f"weights of {name.rsplit('/', 1)[0]}"
        axis.set(title=title, xlabel=xlabel, ylim=SHARES)
    legend_of_runs(figure, axes)
    return figure


def grid(count: int, title: str, ylabel: str, **options: Any) -> tuple["Figure", list[Any]]:
    """A figure with `count` panels, two or three in a row, and its axes."""
    columns = 2 if count == 4 else min(count, 3)
    lines = -(-count // columns)
    figure, axes = subplots(
        lines, columns, figsize=(0.6 + 3.8 * columns, 1.4 + 3.2 * lines), sharex=True,
        squeeze=False, **{"sharey": True, **options},
    )  # fmt: skip
    for axis in axes.flat[count:]:
        axis.remove()
    for axis in axes.flat[:count]:
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    figure.suptitle(title)
    return figure, list(axes.flat[:count])


def text_only(text: str) -> "Figure":
    """A figure that says why there is nothing to draw."""
    figure, axis = subplots(figsize=(5, 1.6))
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
    return figure


def legend_below(figure: "Figure", axes: Iterable[Any], columns: int) -> None:
    """One legend below all panels, where it covers no line; each label has one look in all."""
    labelled = [axis.get_legend_handles_labels() for axis in axes]
    lines = {
        label: handle
        for handles, labels in labelled
        for handle, label in zip(handles, labels, strict=True)
    }
    if lines:
        figure.legend(lines.values(), lines, loc="outside lower center", ncols=columns)


def legend_of_runs(figure: "Figure", axes: Sequence[Any]) -> None:
    """One legend below all panels, with as many columns as its long labels leave room for."""
    longest = max(len(label) for axis in axes for label in axis.get_legend_handles_labels()[1])
    legend_below(figure, axes, max(1, int(11 * figure.get_figwidth() / (longest + 8))))


def literal(text: str) -> str:
    """Text for a figure in which a dollar sign does not begin a formula."""
    return text.replace("$", r"\$")


def whole_numbers(scale: Any) -> None:
    """Ticks of an axis only at whole numbers, for epochs or tasks."""
    from matplotlib.ticker import MaxNLocator

    scale.set_major_locator(MaxNLocator(integer=True))
