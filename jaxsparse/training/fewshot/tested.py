"""The networks that finished runs tested, read from their folders."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse.training.checkpoints import Checkpoints
from jaxsparse.training.errors import ConfigError, RunError
from jaxsparse.training.fewshot.config import FewShotConfig, make_network
from jaxsparse.training.fewshot.program import make_program
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.seeds import Placement, seed_keys
from jaxsparse.training.settings import stored_config

Tree = Any
EXPERIMENT, UNIT = "fewshot", "epoch"


class Tested(NamedTuple):
    """What a finished run tested.

    Attributes:
      config: the configuration of the run.
      members: theta and the mask parameters of the best epochs, best first; leaves [seeds, ...].
    """

    config: FewShotConfig
    members: list[tuple[Tree, Tree]]


def finished(path: Path) -> tuple[RunFolder, FewShotConfig]:
    """The folder and configuration of a finished few-shot run.

    Raises:
      RunError: there is no such run, it is of another family, or it is not finished.
    """
    folder = RunFolder.open(path, UNIT)
    config = stored_config(folder, FewShotConfig, EXPERIMENT)
    if folder.result() is None:
        raise RunError(f"{path} is not finished: it has no result.json")
    return folder, config


def load_tested(path: Path, image_shape: tuple[int, int, int]) -> Tested:
    """Read what a finished run tested. Nothing in its folder is changed.

    Args:
      path: the run's folder.
      image_shape: (height, width, channels) of its images.

    Raises:
      RunError: as in `finished`, or the run's last checkpoint is missing, damaged or does not fit.
    """
    _, config = finished(path)
    program = make_program(config, image_shape)
    placement = Placement(config.seeds, None)
    template = jax.eval_shape(placement.over_runs(program.init, (0,)), seed_keys(config))
    state = Checkpoints(path / "checkpoints").restore(template, None)
    if state is None:
        raise RunError(f"{path} has no checkpoint to read the network from")
    if (np.asarray(state.epoch) != config.epochs).any():  # of an earlier epoch
        raise RunError(f"{path} has lost its last checkpoint, which holds the network it tested")
    return Tested(config, state.members)


def theta_of(config: FewShotConfig, image_shape: tuple[int, int, int]) -> Tree | None:
    """The theta of each seed that `config.theta_from` tested, [seeds, ...]; None without one.

    A seed takes the theta of the same seed. All seeds take that of a run with a single seed.

    Raises:
      ConfigError: the run cannot be read, or has another network or other seeds.
    """
    if config.theta_from is None:
        return None
    path = Path(config.theta_from)
    try:
        tested = load_tested(path, image_shape)
    except RunError as error:
        raise ConfigError(f"theta_from: {error}") from error
    theta = tested.members[0][0]
    wanted = jax.eval_shape(make_network(config, image_shape).init, jax.random.key(0))
    got = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), theta)
    if got != wanted:
        raise ConfigError(f"theta_from: {path} has another network than this run")
    theirs = range(tested.config.seed, tested.config.seed + tested.config.seeds)
    seeds = range(config.seed, config.seed + config.seeds)
    if len(theirs) == 1:
        places = np.zeros(len(seeds), int)
    elif set(seeds) <= set(theirs):
        places = np.array([theirs.index(seed) for seed in seeds])
    else:
        raise ConfigError(
            f"theta_from: {path} has the seeds {theirs[0]} to {theirs[-1]}, want {seeds[0]} to"
            f" {seeds[-1]}, or a run with one seed"
        )
    return jax.tree.map(lambda x: x[places], theta)
