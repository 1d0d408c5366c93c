"""The command: `python -m experiments.continual`."""

from experiments import continual

continual.main()
