"""Draw the figures and the report of a run again, or compare runs of one family.

python -m experiments.plots runs/fewshot/...
python -m experiments.plots runs/fewshot/ONE runs/fewshot/OTHER --out comparison
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from experiments import cli, runs
from experiments.comparison import Run, compare, labels_of, read_run
from experiments.drawing import draw_run
from experiments.page import NAME, write_page
from jaxsparse.training import RunError
from jaxsparse.training.errors import trusting

PROG = "python -m experiments.plots"


def main(args: Sequence[str] | None = None) -> None:
    """Draw the figures of one run in its folder, or the figures that compare several runs."""
    with cli.command():
        flags = _flags(sys.argv[1:] if args is None else args)
        found = [read_run(name, runs.user_path("RUN", name)) for name in flags.runs]
        if len(found) == 1:
            _draw(found[0])
            return
        with trusting(found[0].folder.path.parent):
            labels = labels_of(found)
            out = None if flags.out is None else runs.user_path("--out", flags.out)
            paths = compare(found, out)
        for run, label in zip(found, labels, strict=True):
            cli.say(f"{label}: {_headline(run)}")
        cli.say(f"figures: {', '.join(map(str, paths))}")


def _flags(args: Sequence[str]) -> argparse.Namespace:
    """Parse the names of the run folders, and where figures go."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            cli.fail(f"{message} (see {PROG} --help)")

    parser = Parser(prog=PROG, description=main.__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--out",
        help="with several runs: a folder for the figures, or a .png file for all of them;"
        " default: a folder under runs/plots",
    )
    with cli.writing_output():
        flags = parser.parse_args(args)
    for name in flags.runs:
        if not name:
            cli.fail("RUN must be the folder of a run, got ''")
    if flags.out is not None and len(flags.runs) == 1:
        cli.fail("--out is read only with several runs; figures of one run are in its folder")
    if flags.out == "":
        cli.fail("--out must be a folder or a .png file, got ''")
    return flags


def _draw(run: Run) -> None:
    """Draw the figures of a run in its folder, and write its report if it is finished."""
    path, figures = run.folder.path, run.family.FIGURES
    for figure, why in draw_run(path, figures, run.rows, run.result).items():
        raise RunError(f"{path / figure} is not drawn: {why}")
    names = list(figures)
    if run.result is not None:
        write_page(run.family, run.folder, run.result)
        names.append(NAME)
    cli.say(f"{run.name}: {', '.join(names)}")


def _headline(run: Run) -> str:
    """The result of a run in one line."""
    if run.result is None:
        return "not finished"
    with trusting(run.folder.path / "result.json"):
        config = runs.stored_config(run.family, run.folder)
        return run.family.Report(config, run.folder.path).headline(run.result)


if __name__ == "__main__":
    main()
