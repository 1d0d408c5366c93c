"""Search for the settings of a run on held-out data with Optuna, then test the best once.

python -m experiments.sweep continual --space inner_lr=0.03:0.5:log glances=5,10 --trials 64
python -m experiments.sweep fewshot --shots=5 --space inner_lr=0.05:0.5:log --trials 16
python -m experiments.sweep online --p 0.9 --space inner_lr=0.05:0.5:log mask_lr=0.001:0.1:log

Any number of workers, on one or many machines, may run the same command on one study.
"""

import sys
from collections.abc import Sequence

from experiments import cli


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, work on the study until it is done, run the winner, and report."""
    with cli.command():
        words = list(sys.argv[1:] if args is None else args)
        cli.need_optuna("experiments.sweep")
        from experiments.sweep import flags, search

        sweep = flags.parse(words)
        cli.use_cores(sweep.tuned.family.cores(sweep.config))
        cli.use_compilation_cache()
        cli.start_backend()
        search.finish(sweep)
