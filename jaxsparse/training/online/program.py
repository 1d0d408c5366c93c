"""A run on a switching stream as pure functions."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.data.switching import SwitchingData, SwitchingTask, first_task, next_batch
from jaxsparse.gates import sparsity
from jaxsparse.precision import float32_by_default
from jaxsparse.training.errors import ConfigError
from jaxsparse.training.online.config import PRETRAINED_METHODS, OnlineConfig
from jaxsparse.training.online.learners import make_learner
from jaxsparse.training.online.pretrain_program import make_pretraining
from jaxsparse.training.program import Program, first_nonfinite, first_of, learned_of, repeated

Tree = Any

# Numbers that are folded into a run's key, one for each use of randomness; the pretraining has the
# next number. `_STREAM` is only for the stream, so that it is the same for all methods.
_STREAM, _INIT, _LEARN = range(3)


class Trace(NamedTuple):
    """What happened at each timestep: arrays [T], filled up to the current timestep.

    Attributes:
      score: float32, the accuracy on the batch before it is learned; 0 at t = 0.
      loss: float32, the loss on the batch before it is learned.
      dataset: int32, the index of the batch's dataset.
      switched: bool, whether the batch was the first of a task.
      detected: bool, whether the learner detected a new task.
    """

    score: Any
    loss: Any
    dataset: Any
    switched: Any
    detected: Any


class RunState(NamedTuple):
    """The state of a run; checkpoints store it."""

    learner: Tree
    task: SwitchingTask
    trace: Trace
    step: jax.Array  # int32, finished timesteps
    first_nonfinite_step: jax.Array  # int32, first timestep with a non-finite loss; -1: none


@dataclasses.dataclass(frozen=True)
class OnlineProgram(Program):
    """The pure functions of a run; see `make_program`."""

    sparsity: Callable[[RunState], dict[str, jax.Array]]


def make_program(config: OnlineConfig, data: SwitchingData) -> OnlineProgram:
    """A run of `config` as pure functions of the state of one seed.

    - `init(key, pretrained) -> state`; `pretrained` is () for methods without pretraining.
    - `train(state, key, data, steps) -> state`: learns `steps` timesteps.
    - `sparsity(state)`: of the step sizes, in total and by tensor; empty if they are not learned.

    The stream depends only on the key, so it is the same for all methods.

    Args:
      config: the run's configuration.
      data: the images; only their shapes and the numbers of classes and images are used.

    Returns:
      An `OnlineProgram`. `vmap` its functions over states and keys to run several seeds.

    Raises:
      ConfigError: as in `make_learner`.
      DataError: the data have too few classes or images.
    """
    learner = make_learner(config, data.images.shape[1:])

    def draw(key, task, data):
        return next_batch(key, task, data, stay_probability=config.p, shots=config.shots)

    _, batch_specs, _ = jax.eval_shape(
        lambda key: draw(key, first_task(config.ways), data), jax.random.key(0)
    )

    def init(key, pretrained):
        columns = Trace(jnp.float32(0), jnp.float32(0), jnp.int32(-1), False, False)
        return RunState(
            learner.init(jax.random.fold_in(key, _INIT), batch_specs, pretrained),
            first_task(config.ways),
            jax.tree.map(lambda x: jnp.full(config.timesteps, x), columns),
            jnp.int32(0),
            jnp.int32(-1),
        )

    def timestep(state, key, data):
        t = state.step
        stream_key, learn_key = (
            jax.random.fold_in(jax.random.fold_in(key, purpose), t) for purpose in (_STREAM, _LEARN)
        )
        task, batch, info = draw(stream_key, state.task, data)
        learned, metrics = learner.learn(state.learner, batch, learn_key, t)
        seen = Trace(
            jnp.where(t > 0, metrics["accuracy"], 0.0),
            metrics["loss"],
            info["dataset"],
            info["switched"],
            metrics["detected"],
        )
        return RunState(
            learned,
            task,
            jax.tree.map(lambda column, x: column.at[t].set(x), state.trace, seen),
            t + 1,
            first_nonfinite(state.first_nonfinite_step, t, metrics["loss"]),
        )

    def gate_sparsity(state):
        if learner.step_sizes is None:
            return {}
        return sparsity(learner.step_sizes(state.learner), state.learner.fast_params)

    def position(state):
        step = first_of(state.step)
        return {"step": step, "interval": step // config.log_every}

    return OnlineProgram(
        unit="timestep",
        init=float32_by_default(init),
        train=float32_by_default(repeated(timestep)),
        position=position,
        learned=lambda state: learned_of(state.learner),
        sparsity=float32_by_default(gate_sparsity),
    )


def check(config: OnlineConfig, data: SwitchingData) -> None:
    """Raise ConfigError or DataError if the configuration cannot run on the data."""
    make_program(config, data)
    if config.method in PRETRAINED_METHODS:
        make_pretraining(config, data)


def make_online(config: OnlineConfig, data: SwitchingData) -> Callable[..., dict[str, Any]]:
    """A whole run as one pure function of its key.

    Args:
      config: the run's configuration.
      data: the images; only their shapes and numbers are used, the arrays are an argument of the
        result.

    Returns:
      `run(key, data, pretrained=()) -> {"trace": Trace of [T], "sparsity": before and after,
      "state": RunState}`. Use `jit`, and `vmap` over keys for several seeds. `pretrained` is the
      result of `make_pretraining`; fine-tuning, maml and anil need it.

    Raises:
      ConfigError, DataError: as in `make_program`; from `run`: `pretrained` is missing.

    Examples:
      >>> results = jax.jit(make_online(config, data))(jax.random.key(0), data)
      >>> results["trace"].score.mean()
    """
    program = make_program(config, data)

    def run(key, data, pretrained=()):
        if config.method in PRETRAINED_METHODS and pretrained == ():
            raise ConfigError(f"{config.method} needs `pretrained`, the result of its pretraining")
        start = program.init(key, pretrained)
        state = program.train(start, key, data, config.timesteps)
        ends = [program.sparsity(s) for s in (start, state)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *ends)
        return {"trace": state.trace, "sparsity": stacked, "state": state}

    return run
