"""Whole continual-learning runs: configuration, learners, pure program, host loop."""

from jaxsparse.training.continual.config import META_METHODS, ContinualConfig
from jaxsparse.training.continual.learners import (
    Rates,
    default_rates,
    make_learner,
    used_rates,
)
from jaxsparse.training.continual.program import StreamState, make_program, make_stream
from jaxsparse.training.continual.run import run_stream, scan_stream

__all__ = [
    "META_METHODS",
    "ContinualConfig",
    "Rates",
    "StreamState",
    "default_rates",
    "make_learner",
    "make_program",
    "make_stream",
    "run_stream",
    "scan_stream",
    "used_rates",
]
