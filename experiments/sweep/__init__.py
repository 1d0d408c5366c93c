"""Search for the settings of a run on held-out data with Optuna, then test the best once.

python -m experiments.sweep continual --space inner_lr=0.03:0.5:log glances=5,10 --trials 64
python -m experiments.sweep fewshot --shots=5 --space inner_lr=0.05:0.5:log --trials 16

Any number of workers, on one or many machines, may run the same command on one study.
"""

import importlib.util
import sys
from collections.abc import Sequence

from experiments import cli


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, work on the study until it is done, run the winner, and report."""
    with cli.command():
        words = list(sys.argv[1:] if args is None else args)
        check_installed("experiments.sweep")
        from experiments.sweep import command

        command.run(words)


def check_installed(what: str) -> None:
    """End with one line if Optuna, which `what` needs, is not installed."""
    if importlib.util.find_spec("optuna") is None:
        cli.fail(f"{what} needs Optuna; install it with: pip install -e '.[sweep]'")
