"""Command lines: runs of the three families, the paper's tables and figures."""

import sys

# Python is still resolving `python -m experiments.NAME`: nothing of ours runs earlier.
if sys.argv[:1] == ["-m"]:
    from experiments import signals

    signals.handle()
    signals.leave("stopped before the first step")

    from experiments import cli

    # Here a failure to import JAX is one line; in the modules below it would be a traceback.
    cli.import_jax()
