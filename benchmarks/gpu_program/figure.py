"""The roofline of the cases on the described GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures import plt
from benchmarks.gpu_program.account import PRECISIONS
from benchmarks.gpu_program.target import BANDWIDTH, NAME, RATES

_FACES = {"float32": "full", "tensorfloat32": "none"}
_MARKERS = "osD^vPX*"


def draw(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Operations per second within the bound, over operations per byte, by group of cases.

    Args:
      entries: results of `command.measure`.

    Returns:
      A figure; the lines are the bandwidth and the rates, filled markers float32, hollow ones
      TensorFloat-32.
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    x = np.geomspace(0.3, 1000, 200)
    for precision, style in zip(PRECISIONS, ("-", "--"), strict=True):
        roof = np.minimum(x * BANDWIDTH, RATES[precision])
        axis.plot(x, roof, style, color="0.6", linewidth=1, label=f"roof, {precision}")
    groups = list(dict.fromkeys(entry["group"] for entry in entries))
    for entry in entries:
        number = groups.index(entry["group"])
        for precision in PRECISIONS:
            axis.plot(
                entry["GFLOP"] / entry["GB"],
                1e12 * entry["GFLOP"] / entry["ms"][precision],
                _MARKERS[number % len(_MARKERS)],
                color=f"C{number}",
                fillstyle=_FACES[precision],
                markersize=5,
            )
    for number, group in enumerate(groups):
        axis.plot([], [], _MARKERS[number % len(_MARKERS)], color=f"C{number}", label=group)
    axis.set(
        title=f"{NAME}: bounds of compiled programs, nothing was run",
        xlabel="floating-point operations per byte",
        ylabel="floating-point operations per second",
        xscale="log",
        yscale="log",
    )
    axis.legend(frameon=False, fontsize="x-small")
    return figure
