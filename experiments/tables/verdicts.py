"""Intervals over seeds, and what they say about a claim."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy import stats

from jaxsparse.training.statistics import mean_and_std

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"


class Interval(NamedTuple):
    """A mean over seeds and its 95% interval, in percent or points.

    Attributes:
      label: what was measured.
      mean: the mean over the seeds.
      low: the lower end of Student's t-interval; -inf with one seed.
      high: the upper end.
      seeds: number of seeds.
    """

    label: str
    mean: float
    low: float
    high: float
    seeds: int

    def of_several(self, count: int) -> "Interval":
        """Wider: `count` such intervals together contain their values with 95% (Bonferroni)."""
        if self.seeds == 1:
            return self
        one, all_ = (float(stats.t.ppf(1 - 0.025 / n, self.seeds - 1)) for n in (1, count))
        low, high = (self.mean + (end - self.mean) * all_ / one for end in (self.low, self.high))
        return self._replace(low=low, high=high)

    def __str__(self) -> str:
        reach = "" if self.seeds == 1 else f" [{_text(self.low)}, {_text(self.high)}]"
        return f"{self.label}: {_text(self.mean)}{reach} (n = {self.seeds})"


class Wanted(NamedTuple):
    """The values for which a claim holds: those between `low` and `high`, in percent or points."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}"
        return f"below {self.high:g}" if math.isinf(self.low) else f"{self.low:g} to {self.high:g}"


POSITIVE = Wanted(low=0.0)


def _text(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # never -0.00


def t_interval(shares: Sequence[float]) -> tuple[float, float, float]:
    """The mean of shares in percent, its standard error, and half the width of its 95% interval.

    The last two are infinite for one share.
    """
    count = len(shares)
    found: Any = mean_and_std([100 * share for share in shares])
    if count == 1:
        return found["mean"], math.inf, math.inf
    error = found["std"] / math.sqrt(count)
    return found["mean"], error, float(stats.t.ppf(0.975, count - 1)) * error


def interval(label: str, shares: Sequence[float]) -> Interval:
    """The interval of shares, one for each seed."""
    mean, _, reach = t_interval(shares)
    return Interval(label, mean, mean - reach, mean + reach, len(shares))


def difference(label: str, ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The interval of ours - theirs, seed by seed; seeds that only one of them has are left out."""
    return interval(label, [a - b for a, b in zip(ours, theirs, strict=False)])


def verdict(intervals: Sequence[Interval], wanted: Wanted) -> str:
    """Whether a claim holds.

    It holds if every interval lies inside `wanted`. It does not hold if one lies outside: one of
    several may do so by chance, so each is taken as one of several. Else it is undecided: also
    without runs, and with one seed.
    """
    wider = [x.of_several(len(intervals)) for x in intervals]
    if any(x.high < wanted.low or x.low > wanted.high for x in wider):
        return FAILS
    inside = [wanted.low < x.low and x.high < wanted.high for x in intervals]
    return HOLDS if inside and all(inside) else UNDECIDED
