"""Whole runs: configuration, the pure program, the host's loop, the run folder."""

from jaxsparse.training.config import ConfigError, FewShotConfig, make_gate, make_learner
from jaxsparse.training.errors import RunError, WriteError, writing
from jaxsparse.training.loop import Diverged, Hooks, Progress, Stopped, run
from jaxsparse.training.program import (
    Program,
    TrainState,
    largest_share,
    make_program,
    make_train,
    task_mesh,
)
from jaxsparse.training.run_folder import RunFolder

__all__ = [
    "ConfigError",
    "Diverged",
    "FewShotConfig",
    "Hooks",
    "Program",
    "Progress",
    "RunError",
    "RunFolder",
    "Stopped",
    "TrainState",
    "WriteError",
    "largest_share",
    "make_gate",
    "make_learner",
    "make_program",
    "make_train",
    "run",
    "task_mesh",
    "writing",
]
