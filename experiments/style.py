"""The look of all figures: colours, line styles, font sizes."""

import contextlib
import importlib.util
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Colours that colour-blind readers can tell apart; without the yellow, which is pale on white.
# Source: Okabe and Ito, Color Universal Design (2008), https://jfly.uni-koeln.de/color/
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
WARNING = PALETTE[1]
NEUTRAL = "0.6"
DPI = 150

# Legible when a figure is shown at half its size.
SETTINGS: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "figure.titlesize": 13,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,  # inches
    "figure.constrained_layout.h_pad": 0.06,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2,
    "image.cmap": "viridis",
    "savefig.dpi": DPI,
}


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Our style, whatever the user's matplotlibrc or a notebook's backend.

    Examples:
      >>> with own_style():
      ...     picture = rendered(draw(rows, result))
    """
    home = importlib.util.find_spec("matplotlib")
    assert home is not None and home.origin is not None
    ours = {"MATPLOTLIBRC": str(Path(home.origin).parent / "mpl-data" / "matplotlibrc")}
    with _environment(MPLBACKEND=None, **ours):
        import matplotlib
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**SETTINGS, "axes.prop_cycle": lines()})
        yield


def lines() -> Any:
    """The looks of the lines of a figure: each colour has its marker, each seven lines a dash."""
    from cycler import cycler

    return cycler(linestyle=DASHES) * (cycler(color=PALETTE) + cycler(marker=MARKERS))


def looks(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The look of the line of each label, so that it is the same in all panels of a figure.

    Examples:
      >>> looks(["conv1", "conv2"])["conv2"]
      {'linestyle': '-', 'color': '#D55E00', 'marker': 's'}
    """
    return dict(zip(dict.fromkeys(labels), itertools.cycle(lines()), strict=False))


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
