"""Command lines: runs of the three families, the paper's tables and figures."""

import sys

# While Python looks for the module of `python -m experiments.NAME`: no moment is earlier.
if sys.argv[:1] == ["-m"]:
    from experiments import signals

    signals.handle()
    signals.leave("stopped before the first step")

    from experiments import cli

    cli.import_jax()  # what follows imports it, and knows no word for what is wrong
