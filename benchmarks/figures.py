"""Figures of the results."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file; closes the figure."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    plt.close(figure)
    return file.getvalue()


def draw_cases(results: Mapping[str, Any]) -> Figure:
    """Milliseconds per inner step by case and form."""
    entries = results["cases"]
    forms = list(dict.fromkeys(row["form"] for entry in entries for row in entry["rows"]))
    figure, axis = plt.subplots(figsize=(2.4 + 2.4 * len(entries), 3.8), layout="constrained")
    width = 0.8 / len(forms)
    for index, form in enumerate(forms):
        heights = [_ms(entry, form) for entry in entries]
        at = np.arange(len(entries)) + (index - (len(forms) - 1) / 2) * width
        bars = axis.bar(at, heights, width, label=form)
        labels = ["" if np.isnan(height) else f"{height:.3g}" for height in heights]
        axis.bar_label(bars, labels, fontsize="x-small")
    names = [entry["name"].replace(", ", "\n") for entry in entries]
    axis.set_xticks(np.arange(len(entries)), names, fontsize="small")
    axis.set(ylabel="ms per inner step", yscale="log" if len(entries) > 1 else "linear")
    figure.legend(frameon=False, fontsize="small", ncols=len(forms), loc="outside upper center")
    return figure


def _ms(entry: Mapping[str, Any], form: str) -> float:
    for row in entry["rows"]:
        if row["form"] == form and "failed" not in row:
            return row["ms_per_inner_step"]
    return np.nan


def draw_curves(results: Mapping[str, Any]) -> Figure:
    """Time (top row) and memory (bottom row) of a meta-step for each curve."""
    curves = results["curves"]
    figure, axes = plt.subplots(
        2, len(curves), figsize=(3 * len(curves), 5.4), layout="constrained", squeeze=False
    )
    for column, curve in enumerate(curves):
        for form in dict.fromkeys(point["form"] for point in curve["points"]):
            points = [p for p in curve["points"] if p["form"] == form]
            x = [p["x"] for p in points]
            ms = [1e3 * p["median_s"] for p in points]
            axes[0, column].plot(x, ms, "o-", markersize=3, label=form)
            if all("own_bytes" in p for p in points):
                mb = [p["own_bytes"] / 1e6 for p in points]
                axes[1, column].plot(x, mb, "o-", markersize=3, label=form)
        for axis in axes[:, column]:
            axis.set(xlabel=curve["label"], xscale="log")
            ticks = sorted({p["x"] for p in curve["points"]})
            axis.set_xticks(ticks, [str(t) for t in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
        axes[0, column].set_yscale("log")
        axes[1, column].set_ylim(bottom=0)
        axes[0, column].legend(frameon=False, fontsize="small")
    axes[0, 0].set_ylabel("ms per meta-step")
    axes[1, 0].set_ylabel("growth of memory, MB")
    return figure
