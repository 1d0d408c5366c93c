"""A few-shot run as pure functions: train, validate, keep the best epoch, test."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxsparse.data import ImageSet, Task, sample_tasks
from jaxsparse.gates import sparsity
from jaxsparse.maml import MetaState
from jaxsparse.training import processes
from jaxsparse.training.fewshot.config import FewShotConfig, make_learner
from jaxsparse.training.fewshot.evaluation import (
    EVALUATION_BATCH,
    at_precision,
    batch_count,
    evaluation_key,
    make_evaluation,
    task_sizes,
)
from jaxsparse.training.program import Program, first_of, keep_better, meta_step, repeated

Tree = Any
Metrics = dict[str, jax.Array]

# Numbers that are folded into a run's key, one for each use of randomness.
_INIT, _TRAIN, _GATE = range(3)


class Best(NamedTuple):
    """The parameters with the best validation accuracy so far."""

    params: Tree
    mask: Tree
    accuracy: jax.Array  # float32, -1 before the first validation
    epoch: jax.Array  # int32


class TrainState(NamedTuple):
    """The state of a run; checkpoints store it."""

    meta: MetaState
    best: Best
    totals: Metrics  # sums over the meta-steps of the current epoch
    epoch: jax.Array  # int32, finished epochs
    first_nonfinite_step: jax.Array  # int32, first meta-step with a non-finite loss; -1: none
    runners_up: tuple[Best, ...] = ()  # the next best epochs, for an ensemble

    @property
    def members(self) -> list[tuple[Tree, Tree]]:
        """Theta and the mask parameters of the best epochs, the best first."""
        return [(best.params, best.mask) for best in (self.best, *self.runners_up)]


@dataclasses.dataclass(frozen=True)
class FewShotProgram(Program):
    """The pure functions of a run; see `make_program`."""

    tasks: Callable[[jax.Array, ImageSet], Task]
    evaluate: Callable[[Tree, Tree, jax.Array, Task], Metrics]
    vote: Callable[[Any, jax.Array, Task], Metrics]
    finish_epoch: Callable[[TrainState, Metrics], tuple[TrainState, Metrics]]
    sparsity: Callable[[TrainState], Metrics]


def task_mesh(config: FewShotConfig) -> Mesh | None:
    """The devices among which the tasks of a batch are divided: as many as divide the batch sizes.

    Args:
      config: the run's configuration.

    Returns:
      A mesh for `make_program`, equally many devices of each process; None if only one device
      can be used.

    Raises:
      ConfigError: no such number of devices divides the batch sizes.

    Examples:
      >>> program = make_program(config, (28, 28, 1), task_mesh(config))
    """
    what = f"{config.meta_batch_size} tasks and test batches of {EVALUATION_BATCH} tasks"
    devices = processes.devices(what, lambda count: _divides(count, config))
    return Mesh(np.array(devices), ("tasks",)) if len(devices) > 1 else None


def largest_share(config: FewShotConfig, limit: int) -> int:
    """The largest number up to `limit` that divides the training and evaluation batch sizes."""
    return max(n for n in range(1, limit + 1) if _divides(n, config))


def _divides(count: int, config: FewShotConfig) -> bool:
    return math.gcd(config.meta_batch_size, EVALUATION_BATCH) % count == 0


def make_program(
    config: FewShotConfig, image_shape: tuple[int, int, int], mesh: Mesh | None = None
) -> FewShotProgram:
    """A run of `config` as pure functions of the state of one seed.

    - `init(key, params) -> state`: theta starts as `params`, or as the network's if it is None.
    - `train(state, key, data, steps) -> state`: takes `steps` meta-steps.
    - `tasks(key, data) -> Task`: samples a batch of 20 tasks for validation or test.
    - `evaluate(params, mask, key, tasks) -> metrics`: per task, after adaptation.
    - `vote(members, key, tasks) -> metrics`: the same of an ensemble of (params, mask).
    - `finish_epoch(state, validation) -> (state, row)`: keeps the best parameters and starts the
      next epoch; `validation` has the mean metrics, `row` the epoch's means and the sparsity.
    - `sparsity(state) -> {"total": ..., "<path>": ...}`: in total and per leaf.

    Args:
      config: the run's configuration.
      image_shape: (height, width, channels) of the data.
      mesh: devices among which the tasks of a batch are divided (`task_mesh`); None: one device.

    Returns:
      A `FewShotProgram`. `vmap` its functions over states and keys to run several seeds.

    Raises:
      ConfigError: as in `make_learner`.

    Examples:
      >>> program = make_program(FewShotConfig(width=8), (28, 28, 1))
      >>> state = program.init(jax.random.key(0))
    """
    parts = make_learner(config, image_shape, mesh)
    evaluation = make_evaluation(
        parts, task_sizes(config), config.precision, mesh, config.task_loop
    )

    def init(key, params=None):
        model_key, state_key = jax.random.split(jax.random.fold_in(key, _INIT))
        params = parts.model.init(model_key) if params is None else params
        meta = parts.learner.init(params, state_key)
        members = [
            Best(
                jax.tree.map(jnp.copy, meta.params),
                jax.tree.map(jnp.copy, meta.mask),
                jnp.float32(-1.0),
                jnp.int32(0),
            )
            for _ in range(config.ensemble)
        ]
        totals = {name: jnp.float32(0.0) for name in ("loss", "accuracy", "sparsity")}
        best, *others = members
        return TrainState(meta, best, totals, jnp.int32(0), jnp.int32(-1), tuple(others))

    def train_step(state, key, data):
        task_key = jax.random.fold_in(jax.random.fold_in(key, _TRAIN), state.meta.step)
        tasks = sample_tasks(
            task_key,
            data,
            tasks=config.meta_batch_size,
            ways=config.ways,
            shots=config.shots,
            query_shots=config.query_shots,
        )
        return meta_step(parts.learner, state, tasks)

    def finish_epoch(state, validation):
        accuracy = validation["accuracy"]
        epoch = state.epoch + 1
        candidate = Best(state.meta.params, state.meta.mask, accuracy, epoch)
        best, *others = _insert(candidate, (state.best, *state.runners_up))
        row = {name: total / config.steps_per_epoch for name, total in state.totals.items()}
        row |= {f"val_{name}": value for name, value in validation.items()}
        row["sparsity"] = gate_sparsity(state)
        totals = jax.tree.map(jnp.zeros_like, state.totals)
        state = state._replace(best=best, runners_up=tuple(others), totals=totals, epoch=epoch)
        return state, row

    def gate_sparsity(state):
        # A stochastic gate is sampled once, with the same key for all seeds.
        fixed_key = jax.random.fold_in(jax.random.key(0), _GATE)
        return sparsity(parts.gate.apply(state.meta.mask, fixed_key), state.meta.params)

    precisely = functools.partial(at_precision, config.precision)
    return FewShotProgram(
        unit="meta-step",
        init=precisely(init),
        train=precisely(repeated(train_step)),
        position=lambda state: {
            "step": first_of(state.meta.step),
            "epoch": first_of(state.epoch),
        },
        learned=lambda state: (state.meta.params, state.meta.mask),
        tasks=evaluation.tasks,
        evaluate=evaluation.evaluate,
        vote=evaluation.vote,
        finish_epoch=precisely(finish_epoch),
        sparsity=precisely(gate_sparsity),
    )


def make_train(
    config: FewShotConfig, data: dict[str, ImageSet]
) -> Callable[[jax.Array], dict[str, Any]]:
    """A whole run as one pure function of its key.

    Args:
      config: the run's configuration.
      data: `{"train": ..., "validation": ..., "test": ...}`.

    Returns:
      `train(key) -> {"epochs": rows stacked [epochs], "test": metrics per task [test_tasks],
      "state": TrainState}`. Use `jit`, and `vmap` over keys for several seeds.

    Raises:
      ConfigError: as in `make_learner`.
      DataError: (from `train`) the data have too few classes or images for the tasks.

    Examples:
      >>> results = jax.jit(make_train(config, data))(jax.random.key(0))
      >>> results["test"]["accuracy"].mean()
    """
    program = make_program(config, data["train"].image_shape)

    def measure(params, mask, key, split, tasks):
        def batch(index):
            batch_key = evaluation_key(key, split, index)
            return program.evaluate(params, mask, batch_key, program.tasks(batch_key, data[split]))

        results = jax.lax.map(batch, jnp.arange(batch_count(tasks)))
        return jax.tree.map(lambda x: x.reshape(-1)[:tasks], results)

    def train(key):
        def epoch(state, _):
            state = program.train(state, key, data["train"], config.steps_per_epoch)
            meta = state.meta
            rows = measure(meta.params, meta.mask, key, "validation", config.val_tasks)
            return program.finish_epoch(state, jax.tree.map(jnp.mean, rows))

        state, rows = jax.lax.scan(epoch, program.init(key), length=config.epochs)
        test = measure(state.best.params, state.best.mask, key, "test", config.test_tasks)
        return {"epochs": rows, "test": test, "state": state}

    return train


def _insert(candidate: Best, members: Sequence[Best]) -> list[Best]:
    """The best of `members` and `candidate`, as many as `members`, best first.

    Of equal accuracies the earlier comes first. NaN is never kept.
    """
    kept, new = [], candidate
    for member in members:
        kept.append(keep_better(candidate.accuracy, member.accuracy, new, member))
        # Behind the candidate each member moves down by one place.
        new = keep_better(candidate.accuracy, member.accuracy, member, candidate)
    return kept
