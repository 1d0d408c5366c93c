"""Tables as lines of Markdown."""

from collections.abc import Sequence
from typing import Any

from experiments.tables.verdicts import t_interval

Lines = list[str]


def header(*names: str) -> Lines:
    """The first two lines of a table."""
    return [row(*names), "|" + "---|" * len(names)]


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def seeds(count: int) -> str:
    """The words for the seeds of a number."""
    return "seed 0" if count == 1 else f"mean +- std over seeds 0 to {count - 1}"


def comparison(
    label: str, measure: str, ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]
) -> str:
    """Compare two methods by a paired t-test over seeds; returns one item of a list.

    The difference is not significant if its 95% interval contains 0, and always with one seed.

    Args:
      label: for example "RA of sparse-lamaml is {} er's"; the verdict replaces the braces.
      measure: a key of each seed's result; its value is a share.
      ours: the results of the first method, one per seed.
      theirs: the results of the second method, for the same seeds.
    """
    pairs = zip(ours, theirs, strict=True)
    mean, error, reach = t_interval([one[measure] - other[measure] for one, other in pairs])
    same = "not significantly different from"
    word = "above" if mean > reach else "below" if mean < -reach else same
    error_of = f"standard error {error:.2f} over {len(ours)} seeds" if len(ours) > 1 else "one seed"
    return f"- {label.format(word)}: {mean:+.2f} points, {error_of}."
