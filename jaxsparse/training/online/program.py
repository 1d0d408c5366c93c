"""A run on a switching stream as pure functions of a state."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.data.switching import SwitchingData, SwitchingTask, first_task, next_batch
from jaxsparse.gates import sparsity
from jaxsparse.precision import float32_by_default
from jaxsparse.training.online.config import PRETRAINED_METHODS, OnlineConfig
from jaxsparse.training.online.learners import make_learner
from jaxsparse.training.online.pretrain_program import make_pretraining
from jaxsparse.training.program import Program, first_nonfinite, learned_of, repeated

Tree = Any

# Streams of randomness that follow from a run's key; pretraining has the next number. A method may
# draw from the last two only.
_STREAM, _INIT, _LEARN = range(3)


class Trace(NamedTuple):
    """What happened at each timestep: arrays [T], filled up to the present one.

    Attributes:
      score: float32, the accuracy on the batch before anything was learned of it; 0 at t = 0.
      loss: float32, likewise the loss.
      dataset: int32, which data set the batch was of.
      switched: bool, whether it was the first of a task.
      detected: bool, whether the learner took it for that.
    """

    score: Any
    loss: Any
    dataset: Any
    switched: Any
    detected: Any


class RunState(NamedTuple):
    """Everything a run changes: what a checkpoint holds."""

    learner: Tree
    task: SwitchingTask
    trace: Trace
    step: jax.Array  # int32, timesteps taken
    first_nonfinite_step: jax.Array  # int32, of the timesteps' losses; -1: none


@dataclasses.dataclass(frozen=True)
class OnlineProgram(Program):
    """The pure functions of a run; see `make_program`."""

    sparsity: Callable[[RunState], dict[str, jax.Array]]


def make_program(config: OnlineConfig, data: SwitchingData) -> OnlineProgram:
    """The pure functions that a run of `config` is made of, for one seed.

    - `init(key, pretrained) -> state`; `pretrained` is () for methods that are not pretrained.
    - `train(state, key, data, steps) -> state`: `steps` more timesteps.
    - `sparsity(state)`: of the step sizes, in total and by tensor; empty where none are learned.

    The batch of timestep t follows from the key and t alone: it is the same for every method.

    Args:
      config: the run's configuration.
      data: the images; only their shapes and numbers count.

    Returns:
      An `OnlineProgram`. `vmap` its functions over states and keys to run seeds side by side.

    Raises:
      ConfigError: images too small for the network.
      DataError: more classes or images asked for than there are.

    Example:
      >>> program = make_program(OnlineConfig(), data)
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
        return {"step": state.step, "interval": np.asarray(state.step) // config.log_every}

    return OnlineProgram(
        unit="timestep",
        init=float32_by_default(init),
        train=float32_by_default(repeated(timestep)),
        position=position,
        learned=lambda state: learned_of(state.learner),
        sparsity=float32_by_default(gate_sparsity),
    )


def check(config: OnlineConfig, data: SwitchingData) -> None:
    """Raise ConfigError or DataError where the configuration cannot run on the data."""
    make_program(config, data)
    if config.method in PRETRAINED_METHODS:
        make_pretraining(config, data)


def make_online(config: OnlineConfig, data: SwitchingData) -> Callable[..., dict[str, Any]]:
    """A whole run as one pure function of its key.

    Args:
      config: the run's configuration.
      data: the images' shapes and numbers; the arrays are an argument of the function.

    Returns:
      `run(key, data, pretrained=()) -> {"trace": Trace of [T], "sparsity": before and after,
      "state": RunState}`; jit it, and vmap it over keys for several seeds.

    Raises:
      ConfigError, DataError: as `make_program`.

    Example:
      >>> results = jax.jit(make_online(config, data))(jax.random.key(0), data)
      >>> results["trace"].score.mean()
    """
    program = make_program(config, data)

    def run(key, data, pretrained=()):
        start = program.init(key, pretrained)
        state = program.train(start, key, data, config.timesteps)
        ends = [program.sparsity(s) for s in (start, state)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *ends)
        return {"trace": state.trace, "sparsity": stacked, "state": state}

    return run
