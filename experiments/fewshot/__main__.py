"""The command: `python -m experiments.fewshot`."""

from experiments import fewshot

fewshot.main()
