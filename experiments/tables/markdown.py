"""Tables as lines of Markdown."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from jaxsparse.training.statistics import mean_and_std

Lines = list[str]


def header(*names: str) -> Lines:
    """The first two lines of a table."""
    return [row(*names), "|" + "---|" * len(names)]


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def seeds(count: int) -> str:
    """Which seeds a figure is of."""
    return "seed 0" if count == 1 else f"mean +- std over seeds 0 to {count - 1}"


def gap(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The mean difference of paired shares in points, and its standard error; inf of one pair."""
    gaps = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    spread: Any = mean_and_std(gaps)
    error = np.inf if spread["std"] is None else spread["std"] / len(gaps) ** 0.5
    return spread["mean"], error


def comparison(
    label: str, measure: str, ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]
) -> str:
    """Whether a measure of ours is above theirs: the mean difference of paired seeds.

    Args:
      label: `"RA of sparse-lamaml is {} er's"`, with a place for the verdict.
      measure: a key of each seed's result, a share.
      ours: the results of each seed.
      theirs: likewise, of the same seeds.

    Returns:
      An item of a list: above or below, or not significantly different where the 95% interval of
      Student's t holds 0, as it always does with one seed.
    """
    count = len(ours)
    mean, error = gap([seed[measure] for seed in ours], [seed[measure] for seed in theirs])
    reach = stats.t.ppf(0.975, count - 1) * error if count > 1 else np.inf
    same = "not significantly different from"
    word = "above" if mean > reach else "below" if mean < -reach else same
    return (
        f"- {label.format(word)}: {mean:+.2f} points, "
        f"standard error {error:.2f} over {count} seeds."
    )
