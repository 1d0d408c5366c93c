"""What a claim is, and where the results that decide it come from."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from experiments.tables import saved
from experiments.tables.flags import Flags
from experiments.tables.runner import Runner
from experiments.tables.verdicts import Interval, Wanted

Intervals = Iterator[Interval | None]  # None for what was not run
LESS = "difference of the sparsities"


class Table(NamedTuple):
    """The saved runs of a table or figure, with the flags that they were saved with."""

    flags: Flags
    runner: Runner


class Evidence:
    """The results files, each read once; a missing one holds no runs."""

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}

    def table(self, name: str) -> Table:
        """The saved runs of a table or figure, for example "table S5"."""
        if name not in self._tables:
            file = saved.read_or_empty(name)
            flags = dataclasses.replace(Flags(), **file.flags)
            self._tables[name] = Table(flags, Runner(file.path, False, "", [file]))
        return self._tables[name]


class Claim(NamedTuple):
    """A claim of the paper that our runs can decide.

    Attributes:
      text: the claim.
      source: where the paper makes it.
      runs: the data and network of our runs.
      measured: the compared quantity, in percent or points.
      wanted: the values for which the claim holds.
      found: the intervals that the results give; None for what was not run.
    """

    text: str
    source: str
    runs: str
    measured: str
    wanted: Wanted
    found: Callable[[Evidence], Iterable[Interval | None]]

    def intervals(self, evidence: Evidence) -> Iterator[Interval]:
        """The intervals of what was run."""
        return (found for found in self.found(evidence) if found is not None)
