"""The command: `python -m experiments.sweep`."""

from experiments import sweep

sweep.main()
