"""Online learning on a switching stream: predict each batch, learn from it, report.

python -m experiments.online --p 0.98 --method sparse-cmaml --seeds 5
python -m experiments.online --p 0.9 --method online-adam --data glyphs
python -m experiments.online --resume runs/online/...
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import runs, unread
from experiments.distributed import ALONE, Processes
from experiments.loggers import TENSORBOARD, LoggerFlags
from experiments.online import plots, presets
from experiments.online.report import OnlineReport
from jaxsparse import machine
from jaxsparse.data import SwitchingData
from jaxsparse.data.switching import load_switching
from jaxsparse.training import memory
from jaxsparse.training.online import OnlineConfig, check, make_program, run_online
from jaxsparse.training.online.config import PRETRAINED_METHODS
from jaxsparse.training.online.pretrain import make_pretraining

UNIT = "interval"
HINTS: dict[str, Any] = {"p": "0.98", "method": "sparse-cmaml", "data": "real"}
READS = unread.ONLINE
FIGURES = plots.FIGURES
CAPTIONS = plots.CAPTIONS
COMPARED = plots.COMPARED
Config = OnlineConfig
Report = OnlineReport
preset_config = presets.preset_config
describe = presets.describe
learn = run_online

_STREAMS = {"real": "omniglot-mnist-fashion", "glyphs": "glyphs"}


@dataclasses.dataclass(frozen=True)
class Flags:  # no docstring: --help would begin with it
    config: OnlineConfig
    out: Path | None = None
    """folder for the run; default: a new one under runs/online"""
    resume: Path | None = None
    """folder of a run to resume; its configuration is used"""
    hosts: Processes = ALONE
    loggers: LoggerFlags = TENSORBOARD


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run or resume, and report."""
    runs.main(__name__, args)


def label(config: OnlineConfig) -> str:
    """The start of the name of a new run's folder."""
    return f"p{config.p:g}-{config.data}-{config.method}"


def cores(config: OnlineConfig) -> int:
    """How many cores a run uses: seeds are divided among them."""
    return machine.cores()


def load_data(config: OnlineConfig) -> SwitchingData:
    """The datasets of a configuration, checked for the size of its tasks."""
    data = load_switching(_STREAMS[config.data], config.data_dir)
    check(config, data)
    _check_size(config, data)
    return data


def _check_size(config: OnlineConfig, data: SwitchingData) -> None:
    """Refuse runs that do not fit into memory."""

    def state() -> int:
        key, pretrained = jax.random.key(config.seed), ()
        if config.method in PRETRAINED_METHODS:
            pretrained = jax.eval_shape(make_pretraining(config, data).init, key).best
        return memory.bytes_of(jax.eval_shape(make_program(config, data).init, key, pretrained))

    batch = 8 * config.ways * config.shots * math.prod(data.images.shape[1:])
    memory.check_fits(
        config.seeds
        * (4000 * (config.width + 100) ** 2 + 20 * config.timesteps + config.capacity * batch),
        lambda: config.seeds * state(),
        f"seeds {config.seeds} of width {config.width} with timesteps {config.timesteps} and"
        f" capacity {config.capacity}",
    )
