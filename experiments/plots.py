"""Draw the figures of runs again.

python -m experiments.plots runs/fewshot/...
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from experiments import cli, continual, fewshot, online, runs
from experiments.drawing import Rows, draw_run
from jaxsparse.training import RunError, RunFolder

PROG = "python -m experiments.plots"


def main(args: Sequence[str] | None = None) -> None:
    """Draw the figures of the given run folders."""
    with cli.command():
        for name in _paths(sys.argv[1:] if args is None else args):
            path = runs.user_path("RUN", name)
            figures, rows, result = _figures_of(path)
            for figure, why in draw_run(path, figures, rows, result).items():
                raise RunError(f"{path / figure} is not drawn: {why}")
            cli.say(f"{name}: {', '.join(figures)}")


def _paths(args: Sequence[str]) -> list[str]:
    """Parse the names of the run folders."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            cli.fail(f"{message} (see {PROG} --help)")

    for word in args:
        if not word:
            cli.fail("RUN must be the folder of a run, got ''")
    parser = Parser(prog=PROG, description="Draw the figures of runs.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    with cli.writing_output():
        return parser.parse_args(args).runs


def _figures_of(path: Path) -> tuple[Mapping[str, Any], Rows, Any]:
    """The figures of the family of a run, and its rows and result."""
    folder = RunFolder.open(path)
    rows, result = folder.rows(), folder.result()
    units = {unit for row in rows for unit in ("epoch", "task", "interval") if row.get(unit)}
    if fewshot.UNIT in units:
        return fewshot.FIGURES, rows, result
    if result is not None and units:
        streams = {family.UNIT: family for family in (continual, online)}
        return streams[units.pop()].FIGURES, rows, result
    raise RunError(f"{path} has neither metrics of an epoch nor the result of a stream")


if __name__ == "__main__":
    main()
