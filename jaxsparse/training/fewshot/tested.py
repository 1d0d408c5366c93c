"""The networks that finished runs tested, read from their folders or from files of weights."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse.training.checkpoints import Checkpoints
from jaxsparse.training.errors import ConfigError, RunError, one_line
from jaxsparse.training.fewshot.config import FewShotConfig, make_learner, make_network
from jaxsparse.training.fewshot.program import make_program
from jaxsparse.training.fewshot.weights import (
    Weights,
    named_weights,
    read_weights,
    weights_file,
)
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.seeds import Placement, seed_keys
from jaxsparse.training.settings import recorded_config, stored_config

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


class Finished(NamedTuple):
    """A finished few-shot run.

    Attributes:
      path: its folder, or a file of its weights.
      record: the content of its config.json.
      config: its configuration.
      result: the content of its result.json.
      weights: the content of the file of weights; None if `path` is a folder.
    """

    path: Path
    record: dict[str, Any]
    config: FewShotConfig
    result: dict[str, Any]
    weights: Weights | None = None

    @property
    def record_path(self) -> Path:
        """The file that holds `record`."""
        return self.path / "config.json" if self.weights is None else self.path

    def place_of(self, seed: int | None) -> int:
        """The place of a seed among the seeds of the run; None is the first; else a RunError."""
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        if seed is None:
            return 0
        if seed not in seeds:
            raise RunError(f"{self.path} has the seeds {seeds[0]} to {seeds[-1]}, not {seed!r}")
        return seeds.index(seed)


def finished(place: Path) -> Finished:
    """The finished few-shot run of a folder, of a file of weights, or of a name of `pretrained`.

    Raises:
      RunError: there is no such run, it is of another family, or it is not finished.
    """
    path = weights_file(place)
    if path is not None:
        weights = read_weights(path)
        config = recorded_config(weights.record, path, FewShotConfig, EXPERIMENT)
        if config.seeds != 1:
            raise RunError(f"{path} must hold one seed, got {config.seeds}")
        return Finished(path, weights.record, config, weights.result, weights)
    folder = RunFolder.open(place, UNIT)
    config = stored_config(folder, FewShotConfig, EXPERIMENT)
    if (result := folder.result()) is None:
        raise RunError(f"{place} is not finished: it has no result.json")
    return Finished(place, folder.config(), config, result)


def load_tested(run: Finished, image_shape: tuple[int, int, int]) -> Tested:
    """Read what a finished run tested. Nothing in its folder is changed.

    Args:
      run: see `finished`.
      image_shape: (height, width, channels) of its images.

    Raises:
      RunError: the run's last checkpoint is missing, damaged or does not fit.
    """
    path, _, config, _, weights = run
    if weights is not None:
        return Tested(config, [_member(path, config, image_shape, weights)])
    program = make_program(config, image_shape)
    placement = Placement(config.seeds, None)
    template = jax.eval_shape(placement.over_runs(program.init, (0,)), seed_keys(config))
    state = Checkpoints(path / "checkpoints").restore(template, None)
    if state is None:
        raise RunError(f"{path} has no checkpoint to read the network from")
    if (np.asarray(state.epoch) != config.epochs).any():  # of an earlier epoch
        raise RunError(f"{path} has lost its last checkpoint, which holds the network it tested")
    return Tested(config, state.members)


def _member(
    path: Path, config: FewShotConfig, image_shape: tuple[int, int, int], weights: Weights
) -> tuple[Tree, Tree]:
    """theta and the mask parameters of a file of weights, leaves [1, ...]."""

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        parts = make_learner(config, image_shape)
        state = parts.learner.init(parts.model.init(key), key)
        return state.params, state.mask

    try:
        shapes = jax.eval_shape(init, jax.random.key(0))
    except (TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{path} has a network that cannot be built: {one_line(error)}") from error
    wanted = named_weights(*shapes)
    got = {name: (x.shape, x.dtype) for name, x in weights.arrays.items()}
    if got != {name: (x.shape, x.dtype) for name, x in wanted.items()}:
        raise RunError(f"{path} does not have the arrays of its configuration's network")
    return jax.tree.unflatten(
        jax.tree.structure(shapes), [weights.arrays[name][None] for name in wanted]
    )


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
        tested = load_tested(finished(path), image_shape)
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
