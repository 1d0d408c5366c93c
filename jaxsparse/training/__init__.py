"""Whole runs: configurations, pure programs, the host loop and run folders."""

from jaxsparse.training import continual, online
from jaxsparse.training.errors import (
    ConfigError,
    Diverged,
    RunError,
    Stopped,
    WriteError,
    writing,
)
from jaxsparse.training.fewshot.config import FewShotConfig, make_gate, make_learner
from jaxsparse.training.fewshot.program import (
    TrainState,
    largest_share,
    make_program,
    make_train,
    task_mesh,
)
from jaxsparse.training.fewshot.run import run
from jaxsparse.training.program import Program
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.runner import Hooks, Progress

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
    "continual",
    "largest_share",
    "make_gate",
    "make_learner",
    "make_program",
    "make_train",
    "online",
    "run",
    "task_mesh",
    "writing",
]
