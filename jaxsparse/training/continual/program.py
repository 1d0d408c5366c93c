"""A continual-learning run as pure functions: learn, measure after every task."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.data import TaskStream, streams
from jaxsparse.gates import sparsity
from jaxsparse.precision import float32_by_default
from jaxsparse.training.continual.config import ContinualConfig
from jaxsparse.training.continual.learners import Rates, TaskBatch, default_rates, make_learner
from jaxsparse.training.errors import ConfigError
from jaxsparse.training.program import Program, after_step, first_of, learned_of, repeated

Tree = Any

# Numbers that are folded into a run's key, one for each use of randomness.
_INIT, _SCHEDULE, _LEARN, _ORDER, _AUGMENT = range(5)
# Test images per matrix product; they fit into the cache of a core.
_TEST_BATCH = 1000


class Schedule(NamedTuple):
    """The order of the training images in the stream.

    Attributes:
      tasks: int32 [T, n], the task of each image; equal to the row number, except for `iid`.
      indices: int32 [T, n], its index among the training images.
    """

    tasks: jax.Array
    indices: jax.Array


class StreamState(NamedTuple):
    """The state of a run; checkpoints store it."""

    learner: Tree
    memory: Tree
    accuracy: jax.Array  # float32 [T + 1, T]: before training, then after each task
    totals: dict[str, jax.Array]  # sums over the batches of the current task
    step: jax.Array  # int32, finished batches
    measured: jax.Array  # int32, tasks after which the accuracy was measured last; -1: never
    first_nonfinite_step: jax.Array  # int32, first batch with a non-finite loss; -1: none


@dataclasses.dataclass(frozen=True)
class StreamProgram(Program):
    """The pure functions of a run; see `make_program`."""

    batches_per_task: int
    schedule: Callable[[jax.Array, TaskStream], Schedule]
    test: Callable[..., StreamState]
    finish_task: Callable[..., tuple[StreamState, dict[str, Any]]]


def make_program(config: ContinualConfig, stream: TaskStream) -> StreamProgram:
    """A run of `config` as pure functions of the state of one seed.

    - `schedule(key, stream) -> Schedule`: draws the images of each task and their order.
    - `init(key, rates, stream) -> state`
    - `train(state, schedule, key, rates, stream, steps) -> state`: learns `steps` batches.
    - `test(state, stream, done, first, last) -> state`: after `done` tasks, measures the accuracy
      on the tasks first, ..., last - 1.
    - `finish_task(state, rates, done) -> (state, row)`: `row` has the accuracies after `done` tasks
      ("test_accuracy" [T], NaN if not measured), the means over the task's batches, and the
      "sparsity" of the step sizes.

    Args:
      config: the run's configuration.
      stream: the stream; only its shapes are used.

    Returns:
      A `StreamProgram`. `vmap` its functions over states, keys and rates for several runs.

    Raises:
      ConfigError: `config.tasks` is not the number of tasks of the stream, a batch is larger than a
        task, or the images are too small for the network.
    """
    streams.check_stream(stream)
    if stream.num_tasks != config.tasks:
        raise ConfigError(f"tasks must be {stream.num_tasks}, as in the stream, got {config.tasks}")
    learner = make_learner(config, stream.train)
    per_epoch = _batches_per_epoch(config, stream)
    per_task, size = per_epoch * config.epochs, config.batch_size

    def schedule(key, stream):
        drawn = streams.draw_schedule(
            jax.random.fold_in(key, _SCHEDULE),
            stream,
            config.samples_per_task,
            joint=config.method == "iid",
        )
        return Schedule(*drawn)

    def init(key, rates, stream):
        images = stream.train.images
        row = (
            jax.ShapeDtypeStruct(images.shape[1:], images.dtype),
            jax.ShapeDtypeStruct((), jnp.int32),
        )
        return StreamState(
            learner.init(jax.random.fold_in(key, _INIT), rates),
            learner.init_memory(row),
            jnp.full((stream.num_tasks + 1, stream.num_tasks), jnp.nan),
            {name: jnp.float32(0.0) for name in ("loss", "accuracy")},
            jnp.int32(0),
            jnp.int32(-1),
            jnp.int32(-1),
        )

    def next_batch(schedule, key, stream, step):
        """Batch number `step` of the run."""
        task, position = step // per_task, step % per_task
        tasks, indices = schedule.tasks[task], schedule.indices[task]
        if config.epochs > 1:
            passed = position // per_epoch
            # A different number for each pass.
            number = task * max(1000, config.epochs) + passed
            order_key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), number)
            order = jax.random.permutation(order_key, len(indices))
            tasks, indices = tasks[order], indices[order]
        start = (position % per_epoch) * size
        tasks, indices = (jax.lax.dynamic_slice(x, (start,), (size,)) for x in (tasks, indices))
        images, labels = streams.train_rows(stream, tasks, indices)
        if config.augment:
            images = streams.augment(
                jax.random.fold_in(jax.random.fold_in(key, _AUGMENT), step), images
            )
        return TaskBatch((images, labels), task, position < per_epoch)

    def train_step(state, schedule, key, rates, stream):
        batch_key = jax.random.fold_in(jax.random.fold_in(key, _LEARN), state.step)
        batch = next_batch(schedule, key, stream, state.step)
        learned, memory, metrics = learner.learn(
            state.learner, state.memory, batch, batch_key, rates
        )
        state = after_step(state, state.step, metrics)
        return state._replace(learner=learned, memory=memory, step=state.step + 1)

    def test_accuracy(state, stream, task):
        images, labels = streams.test_rows(stream, task)

        def correct(row):
            image, label = row
            logits = learner.predict(state.learner, image[None])[0]
            # A non-finite output predicts no class: the accuracy becomes NaN.
            hit = (jax.lax.argmax(logits, 0, label.dtype) == label).astype(jnp.float32)
            return jnp.where(jnp.isfinite(logits).all(), hit, jnp.nan)

        hits = jax.lax.map(correct, (images, labels), batch_size=min(_TEST_BATCH, len(labels)))
        return jnp.mean(hits)

    def test(state, stream, done, first, last):
        def one(task, accuracy):
            return accuracy.at[done, task].set(test_accuracy(state, stream, task))

        return state._replace(accuracy=jax.lax.fori_loop(first, last, one, state.accuracy))

    def finish_task(state, rates, done):
        row = {name: total / per_task for name, total in state.totals.items()}
        row |= {
            "test_accuracy": state.accuracy[done],
            "sparsity": _sparsity(learner, state, rates),
        }
        totals = jax.tree.map(jnp.zeros_like, state.totals)
        return state._replace(totals=totals, measured=jnp.int32(done)), row

    def position(state):
        return {"step": first_of(state.step), "task": max(first_of(state.measured), 0)}

    return StreamProgram(
        unit="batch",
        init=float32_by_default(init),
        train=float32_by_default(repeated(train_step)),
        position=position,
        learned=lambda state: learned_of(state.learner),
        batches_per_task=per_task,
        schedule=float32_by_default(schedule),
        test=float32_by_default(test),
        finish_task=float32_by_default(finish_task),
    )


def make_stream(config: ContinualConfig, stream: TaskStream) -> Callable[..., dict[str, Any]]:
    """A whole run, all tasks and measurements, as one pure function of its key.

    Args:
      config: the run's configuration.
      stream: the stream; only its shapes are used, the arrays are an argument of the result.

    Returns:
      `run(key, stream, rates=None) -> {"accuracy": float32 [T + 1, T], before training and after
      each task, "rows": the rows of metrics, stacked [T + 1], "state": StreamState}`. Use `jit`,
      and `vmap` over keys for several seeds or over rates for a grid.

    Raises:
      ConfigError: as in `make_program`.

    Examples:
      >>> results = jax.jit(make_stream(config, stream))(jax.random.key(0), stream)
      >>> jaxsparse.metrics.retained_accuracy(results["accuracy"][1:])
    """
    program = make_program(config, stream)

    def run(key, stream, rates=None):
        rates = Rates(*map(jnp.float32, default_rates(config))) if rates is None else rates
        schedule = program.schedule(key, stream)
        state = program.init(key, rates, stream)

        def measured(state, done):
            bounds = measured_tasks(config, done, stream.num_tasks)
            return program.finish_task(program.test(state, stream, done, *bounds), rates, done)

        def task(state, index):
            state = program.train(state, schedule, key, rates, stream, program.batches_per_task)
            return measured(state, index + 1)

        state, before = measured(state, 0)
        state, after = jax.lax.scan(task, state, jnp.arange(stream.num_tasks))
        rows = jax.tree.map(lambda b, a: jnp.concatenate([b[None], a]), before, after)
        return {"accuracy": state.accuracy, "rows": rows, "state": state}

    return run


def measured_tasks(config: ContinualConfig, done: Any, tasks: int) -> tuple[Any, Any]:
    """The range of tasks to measure after `done` of T `tasks`, as (first, last + 1).

    The metrics need the diagonal, the superdiagonal, and the accuracies at the start and the end.
    """
    if config.measure == "all":
        return 0, tasks
    ends = (done == 0) | (done == tasks)
    first = jnp.where(ends, 0, done - 1)
    return first, jnp.where(ends, tasks, jnp.minimum(done + 1, tasks))


def _sparsity(learner, state, rates):
    if learner.step_sizes is None:
        return {}
    return sparsity(learner.step_sizes(state.learner, rates), state.learner.params)


def _batches_per_epoch(config, stream):
    members = stream.train_members
    there = len(stream.train.labels) if members is None else members.shape[1]
    wanted = there if config.samples_per_task is None else config.samples_per_task
    if wanted > there:
        raise ConfigError(f"samples_per_task must be at most {there} on this data, got {wanted}")
    if config.batch_size > wanted:
        raise ConfigError(
            f"batch_size must be at most {wanted}, a task's images, got {config.batch_size}"
        )
    return wanted // config.batch_size
