"""The command: `python -m experiments.online`."""

from experiments import online

online.main()
