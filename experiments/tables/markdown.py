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
      An item of a list: above or below, or not told apart where the 95% interval of Student's t
      holds 0, as it always does with one seed.
    """
    pairs = zip(ours, theirs, strict=True)
    gaps = [100 * (a[measure] - b[measure]) for a, b in pairs]
    gap: Any = mean_and_std(gaps)
    mean, reach, error = gap["mean"], np.inf, np.inf
    if gap["std"] is not None:
        error = gap["std"] / len(gaps) ** 0.5
        reach = stats.t.ppf(0.975, len(gaps) - 1) * error
    word = "above" if mean > reach else "below" if mean < -reach else "not told apart from"
    return (
        f"- {label.format(word)}: {mean:+.2f} points, "
        f"standard error {error:.2f} over {len(gaps)} seeds."
    )
