"""Few-shot learning: train, validate, test, report.

python -m experiments.fewshot --shots=5
python -m experiments.fewshot --dataset omniglot --method fomaml --seeds 5
python -m experiments.fewshot --resume runs/fewshot/...
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import runs, unread
from experiments.distributed import ALONE, Processes
from experiments.fewshot import plots, presets
from experiments.fewshot.report import FewShotReport
from experiments.loggers import TENSORBOARD, LoggerFlags
from jaxsparse import data, machine, training
from jaxsparse.training import ConfigError, FewShotConfig, memory
from jaxsparse.training.fewshot.config import CHANNELS
from jaxsparse.training.fewshot.tested import theta_of

UNIT = "epoch"
HINTS: dict[str, Any] = {"preset": None, "dataset": None, "method": "sparse-maml", "shots": 5}
READS = unread.FEWSHOT
FIGURES = plots.FIGURES
CAPTIONS = plots.CAPTIONS
COMPARED = plots.COMPARED
Config = FewShotConfig
Report = FewShotReport
preset_config = presets.preset_config
describe = presets.describe
learn = training.run


@dataclasses.dataclass(frozen=True)
class Flags:  # no docstring: --help would begin with it
    config: FewShotConfig
    preset: str | None = None
    """settings to start from; listed below"""
    out: Path | None = None
    """folder for the run; default: a new one under runs/fewshot"""
    resume: Path | None = None
    """folder of a run to resume; its configuration is used"""
    hosts: Processes = ALONE
    loggers: LoggerFlags = TENSORBOARD


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run or resume, and report."""
    runs.main(__name__, args)


def label(config: FewShotConfig) -> str:
    """The start of the name of a new run's folder."""
    return f"{config.dataset}-{config.ways}way-{config.shots}shot-{config.method}"


def cores(config: FewShotConfig) -> int:
    """How many cores a run uses: the tasks of a meta-step are divided among them."""
    return training.largest_share(config, machine.cores())


def load_data(config: FewShotConfig) -> dict[str, Any]:
    """The three splits, checked for the size of the tasks and of the network."""
    splits = {}
    for split in ("train", "validation", "test"):
        splits[split] = data.load(
            config.dataset, split, data_dir=config.data_dir, image_size=config.image_size
        )
        data.check_episode(splits[split], config.ways, config.shots, config.query_shots)
        data.check_not_blank(splits[split])
    _check_size(config, splits["train"].image_shape)
    return splits


def record(config: FewShotConfig, images: dict[str, Any]) -> dict[str, Any]:
    """Entries of a new run's config.json: the format of its images, and the theta it starts from.

    Raises:
      ConfigError: that theta cannot be had.
    """
    train = images["train"]
    entries: dict[str, Any] = {"images": image_format(train)}
    if config.theta_from is not None:
        entries["theta"] = data.fingerprint(theta_of(config, train.image_shape))
    return entries


def image_format(images: data.ImageSet) -> dict[str, Any]:
    """The shape and normalisation of images, as JSON."""
    return {
        "shape": list(images.image_shape),
        "mean": [float(x) for x in images.mean],
        "std": [float(x) for x in images.std],
    }


def _check_size(config: FewShotConfig, image_shape: tuple[int, int, int]) -> None:
    """Refuse networks that cannot be built, and runs that do not fit into memory."""
    steps = config.epochs * config.steps_per_epoch
    if steps >= 2**31:
        raise ConfigError(f"epochs * steps_per_epoch must be below 2^31, got {steps}")
    images = config.meta_batch_size * config.ways * (config.shots + config.query_shots)
    images *= 4 * math.prod(image_shape)
    training.make_learner(config, image_shape)

    def state() -> int:
        init = training.make_program(config, image_shape).init
        return memory.bytes_of(jax.eval_shape(init, jax.random.key(config.seed)))

    conv4 = config.network == "conv4"
    width = config.width if conv4 else max(config.channels or CHANNELS[config.network])
    codes = config.embedding if config.method == "sparse-maml-plus" else 1
    memory.check_fits(
        config.seeds * (4000 * (width + 100) ** 2 * codes + images),
        lambda: config.seeds * (state() + images),
        f"seeds {config.seeds} of width {width} with meta_batch_size {config.meta_batch_size}",
    )
