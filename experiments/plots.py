"""The figures of a run, from its metrics.

python -m experiments.plots runs/fewshot/...
"""

import argparse
import contextlib
import importlib.util
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from experiments import cli, runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "python -m experiments.plots"
Rows = list[dict[str, Any]]

# Which panel of the sparsity figure a leaf belongs to: the paper's Figs. 1 and S1.
_PANELS = {
    "weights": lambda name: name.endswith("kernel"),
    "batch-norm gains": lambda name: name.endswith("scale"),
    "biases": lambda name: name.endswith("bias"),
}


def draw_run(
    path: Path, figures: "Mapping[str, Callable[..., Figure]]", rows: Rows, result: Any
) -> dict[str, str]:
    """Write the figures, file name -> `(rows, result) -> figure`, into the folder of a run.

    Returns:
      Why each that is missing could not be drawn, by its file's name.

    Raises:
      WriteError: one could not be written.
    """
    from jaxsparse.training.errors import one_line

    failed = {}
    for name, draw in figures.items():
        try:
            with own_style():
                picture = rendered(draw(rows, result))
        except Exception as error:  # the run is done; whatever this is, it must not end in it
            failed[name] = f"{type(error).__name__}, {one_line(error)}"
        else:
            write(picture, path / name)
    return failed


def rendered(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
    return buffer.getvalue()


def write(picture: bytes, path: Path) -> None:
    """Write a picture, whole or not at all.

    Raises:
      WriteError: it could not be written; what was there is as it was.
    """
    from jaxsparse.training import writing
    from jaxsparse.training.files import replacing

    with writing(path), replacing(path) as partial:
        partial.write_bytes(picture)


def is_whole(path: Path) -> bool:
    """Whether a PNG file is there, from its first byte to its last, as its check sums say.

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
    """Matplotlib as it comes: neither a matplotlibrc nor a notebook's backend has a say."""
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
    """The environment with these variables, without those that are None."""
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
    """A figure and its axes, as pyplot's `subplots`, without pyplot and its windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def draw_curves(rows: Rows, _: Any = None) -> "Figure":
    """Loss and accuracy over training, of training and validation tasks."""
    figure, axes = subplots(1, 2, figsize=(9, 3.4))
    for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for prefix, label in (("", "training tasks"), ("val_", "validation tasks")):
            trained = [row for row in rows if row["epoch"]]
            steps = [row["step"] for row in trained]
            band(axis, steps, [row[prefix + metric] for row in trained], label)
        axis.set(xlabel="meta-steps", ylabel=f"{metric} after adaptation")
    axes[0].legend(frameon=False)
    return figure


def draw_sparsity(rows: Rows, _: Any = None) -> "Figure":
    """Sparsity by layer over training, in percent: weights, batch-norm gains, biases."""
    names = [name for name in rows[0]["sparsity"] if name != "total"]
    panels = {
        title: [name for name in names if belongs(name)] for title, belongs in _PANELS.items()
    }
    panels = {title: members for title, members in panels.items() if members}
    figure, axes = subplots(
        1, len(panels), figsize=(4 * len(panels), 4.2), sharey=True, squeeze=False
    )
    for axis, (title, members) in zip(axes[0], panels.items(), strict=True):
        for name in members:
            values = [100 * np.asarray(row["sparsity"][name], float) for row in rows]
            band(axis, [row["step"] for row in rows], values, name.rsplit("/", 1)[0])
        axis.set(title=title, xlabel="meta-steps", ylim=(-2, 102))
        # Below the axes: lines end in every corner.
        axis.legend(
            frameon=False,
            fontsize="small",
            ncols=3,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
        )
    axes[0, 0].set_ylabel("sparsity [%]")
    return figure


def band(axis: Any, steps: Any, values: Any, label: str) -> None:
    """A line through the means over seeds, with one standard deviation around it."""
    from jaxsparse.training.statistics import mean_and_std

    by_seed = np.array([np.atleast_1d(value) for value in values], float)
    spreads = [mean_and_std(of_step) for of_step in by_seed]
    mean = np.array([spread["mean"] for spread in spreads])
    (line,) = axis.plot(steps, mean, label=label, marker="o", markersize=2.5)
    if by_seed.shape[1] > 1:
        std = np.array([spread["std"] for spread in spreads])
        axis.fill_between(steps, mean - std, mean + std, color=line.get_color(), alpha=0.2)


FIGURES = {"curves.png": draw_curves, "sparsity.png": draw_sparsity}


def main(args: Sequence[str] | None = None) -> None:
    """Draw the figures of the run folders that are named."""
    with cli.command():
        from jaxsparse.training import RunError

        for name in _paths(sys.argv[1:] if args is None else args):
            path = runs.user_path("RUN", name)
            figures, rows, result = _figures_of(path)
            for figure, why in draw_run(path, figures, rows, result).items():
                raise RunError(f"{path / figure} is not drawn: {why}")
            cli.say(f"{name}: {', '.join(figures)}")


def _paths(args: Sequence[str]) -> list[str]:
    """The folders that are named; what is no folder's name is refused."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            cli.fail(f"{message} ({PROG} --help says more)")

    for word in args:
        if not word:
            cli.fail("RUN must name the folder of a run, got ''")
    parser = Parser(prog=PROG, description="Draw the figures of runs.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    with cli.writing_output():
        return parser.parse_args(args).runs


def _figures_of(path: Path) -> tuple[Mapping[str, Any], Rows, Any]:
    """What a run is drawn as, its rows and its result."""
    from experiments import online_plots, stream_plots
    from jaxsparse.training import RunError, RunFolder

    folder = RunFolder.open(path)
    rows, result = folder.rows(), folder.result()
    units = {unit for row in rows for unit in ("epoch", "task", "interval") if row.get(unit)}
    if "epoch" in units:
        return FIGURES, rows, result
    if result is not None and units:
        families = {"task": stream_plots, "interval": online_plots}
        return families[units.pop()].FIGURES, rows, result
    raise RunError(f"{path} holds no metrics of any epoch, nor a stream's result")


if __name__ == "__main__":
    main()
