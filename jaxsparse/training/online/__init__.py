"""Whole runs on switching streams: configuration, learners, pure program, host loop."""

from jaxsparse.training.online.config import CMAML_METHODS, OnlineConfig
from jaxsparse.training.online.learners import make_learner
from jaxsparse.training.online.pretrain import pretrain
from jaxsparse.training.online.program import RunState, Trace, check, make_online, make_program
from jaxsparse.training.online.run import run_online

__all__ = [
    "CMAML_METHODS",
    "OnlineConfig",
    "RunState",
    "Trace",
    "check",
    "make_learner",
    "make_online",
    "make_program",
    "pretrain",
    "run_online",
]
