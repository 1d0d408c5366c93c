"""Continual learning on a stream of tasks: learn, measure after every task, report.

python -m experiments.continual --stream rotations --method sparse-lamaml --seeds 5
python -m experiments.continual --stream permutations --method er --data glyphs
python -m experiments.continual --stream rotations --scan
python -m experiments.continual --resume runs/continual/...
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import runs, unread
from experiments.continual import plots, presets, scan
from experiments.continual.load import load_stream
from experiments.continual.report import StreamReport
from experiments.distributed import ALONE, Processes
from experiments.loggers import TENSORBOARD, LoggerFlags
from jaxsparse import machine
from jaxsparse.training.continual import ContinualConfig, run_stream

UNIT = "task"
HINTS: dict[str, Any] = {
    "stream": "rotations",
    "method": "sparse-lamaml",
    "data": None,
    "memories": 0,
}
READS = unread.CONTINUAL
FIGURES = plots.FIGURES
CAPTIONS = plots.CAPTIONS
COMPARED = plots.COMPARED
Config = ContinualConfig
Report = StreamReport
preset_config = presets.preset_config
describe = presets.describe
load_data = load_stream
learn = run_stream


@dataclasses.dataclass(frozen=True)
class Flags:  # no docstring: --help would begin with it
    config: ContinualConfig
    out: Path | None = None
    """folder for the run; default: a new one under runs/continual"""
    resume: Path | None = None
    """folder of a run to resume; its configuration is used"""
    hosts: Processes = ALONE
    loggers: LoggerFlags = TENSORBOARD
    scan: bool = False
    """first choose rates and glances on held-out training images, by a sweep over a grid (see
    experiments.sweep) in a folder next to the run's"""
    grid_inner_lr: tuple[float, ...] = ()
    """values of alpha_0 to scan. Without any --grid flag, the settings that the method uses are
    scanned: alpha_0 0.05 0.1 0.15, gamma_m 0.3 0.75 1.7, theta_lr times 0.3 1 3, glances 5 10"""
    grid_mask_lr: tuple[float, ...] = ()
    """values of gamma_m to scan"""
    grid_theta_lr: tuple[float, ...] = ()
    """values of theta_lr to scan"""
    grid_glances: tuple[int, ...] = ()
    """numbers of glances to scan"""


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run or resume, and report."""
    runs.main(__name__, args, scan.choose)


def label(config: ContinualConfig) -> str:
    """The start of the name of a new run's folder."""
    return f"{config.stream}-{config.data}-{config.method}"


def cores(config: ContinualConfig) -> int:
    """How many cores a run uses: seeds are divided among them."""
    return machine.cores()
