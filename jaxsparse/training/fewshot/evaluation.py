"""Evaluation after adaptation on validation and test tasks, of one network or of an ensemble."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxsparse.data import ImageSet, Task, sample_tasks
from jaxsparse.maml import TaskLoop, evaluate, predict
from jaxsparse.training import processes
from jaxsparse.training.fewshot.config import FewShotConfig, Parts
from jaxsparse.training.seeds import Placement
from jaxsparse.updates import apply_gate_per_task

Tree = Any
Metrics = dict[str, jax.Array]

# Streams of randomness, each folded into a run's key; 0 to 2 are the program's.
_STREAMS = {"validation": 3, "test": 4, "train": 5}
# Folded into an evaluation batch's key. `sample_tasks` splits that key in two, parts 0 and 1.
_STEP_SIZES, _VOTES = 2, 3
# The number of tasks in an evaluation batch.
EVALUATION_BATCH = 20


class TaskSizes(NamedTuple):
    """The sizes of a task, and of adaptation to it.

    Attributes:
      ways: classes.
      shots: support images per class.
      query_shots: query images per class.
      inner_steps: K.
    """

    ways: int
    shots: int
    query_shots: int
    inner_steps: int


def task_sizes(config: FewShotConfig) -> TaskSizes:
    """The sizes of the validation and test tasks of a run."""
    return TaskSizes(config.ways, config.shots, config.query_shots, config.test_inner_steps)


class Evaluation(NamedTuple):
    """Pure functions of a batch of `EVALUATION_BATCH` tasks.

    Attributes:
      tasks: `(key, data) -> Task`.
      evaluate: `(params, mask, key, tasks) -> {"loss", "accuracy"}`, each [tasks].
      vote: `(members, key, tasks) -> {"ensemble_accuracy": [tasks]}`: the accuracy of the mean of
        the softmax outputs of `members`, a sequence of (params, mask).
    """

    tasks: Callable[[jax.Array, ImageSet], Task]
    evaluate: Callable[[Tree, Tree, jax.Array, Task], Metrics]
    vote: Callable[[Sequence[tuple[Tree, Tree]], jax.Array, Task], Metrics]


def make_evaluation(
    parts: Parts,
    sizes: TaskSizes,
    precision: str,
    mesh: Mesh | None = None,
    task_loop: TaskLoop = "auto",
) -> Evaluation:
    """The evaluation of `parts` on tasks of these sizes, divided among the devices of `mesh`.

    `precision` is that of matrix products, `task_loop` as in `jaxsparse.sparse_maml_step`.
    """

    def tasks(key, data):
        ways, shots, query_shots, _ = sizes
        return sample_tasks(
            key, data, tasks=EVALUATION_BATCH, ways=ways, shots=shots, query_shots=query_shots
        )

    def after_adaptation(function, params, mask, step_key, tasks):
        return function(
            params,
            apply_gate_per_task(parts.gate, mask, step_key, EVALUATION_BATCH),
            tasks,
            loss_fn=parts.loss_fn,
            inner_steps=sizes.inner_steps,
            step_sizes_per_task=parts.gate.stochastic,
            task_loop=task_loop,
            mesh=mesh,
        )

    def evaluate_batch(params, mask, key, tasks):
        step_key = jax.random.fold_in(key, _STEP_SIZES)
        metrics = after_adaptation(evaluate, params, mask, step_key, tasks)
        return {name: metrics[name] for name in ("loss", "accuracy")}

    def vote(members, key, tasks):
        step_keys = (jax.random.fold_in(key, _VOTES + i) for i in range(len(members)))
        logits = [
            after_adaptation(predict, params, mask, step_key, tasks)
            for (params, mask), step_key in zip(members, step_keys, strict=True)
        ]
        mean = sum(jax.nn.softmax(x) for x in logits) / len(logits)
        labels = tasks.query[1]
        hits = jnp.argmax(mean, -1).astype(labels.dtype) == labels
        return {"ensemble_accuracy": jnp.mean(hits, -1, dtype=jnp.float32)}

    return Evaluation(*(at_precision(precision, f) for f in (tasks, evaluate_batch, vote)))


def evaluation_key(key: jax.Array, split: str, batch: Any) -> jax.Array:
    """The key of an evaluation batch, the same after every epoch."""
    return jax.random.fold_in(jax.random.fold_in(key, _STREAMS[split]), batch)


def batch_count(tasks: int) -> int:
    """The number of evaluation batches that hold `tasks` tasks; the last may be partly used."""
    return -(-tasks // EVALUATION_BATCH)


class Measurement:
    """Metrics of all seeds of a run, on the host.

    Args:
      placement: the devices of the seeds.
      functions: an `Evaluation`, or what else has its functions.
      keys: of the seeds, [seeds].
    """

    def __init__(self, placement: Placement, functions: Any, keys: jax.Array):
        self._keys = keys
        self._tasks = placement.over_runs(functions.tasks, (0, None))
        self._evaluate = placement.over_runs(functions.evaluate, (0, 0, 0, 0))
        self._vote = placement.over_runs(functions.vote, (0, 0, 0))

    def batch(
        self,
        split: str,
        index: int,
        data: ImageSet,
        members: Sequence[tuple[Tree, Tree]],
    ) -> dict[str, np.ndarray]:
        """Metrics of one evaluation batch, each [seeds, EVALUATION_BATCH].

        They are those of the first of `members`, and, with several, those of the ensemble.
        """
        keys = jax.vmap(lambda key: evaluation_key(key, split, index))(self._keys)
        tasks = self._tasks(keys, data)
        metrics = self._evaluate(*members[0], keys, tasks)
        if len(members) > 1:
            metrics |= self._vote(members, keys, tasks)
        return processes.to_host(metrics)


def joined(batches: Sequence[dict[str, np.ndarray]], tasks: int) -> dict[str, np.ndarray]:
    """The metrics of `tasks` tasks, each [seeds, tasks], of evaluation batches."""
    return {
        name: np.concatenate([batch[name] for batch in batches], axis=1)[:, :tasks]
        for name in batches[0]
    }


def at_precision(precision: str, function: Callable) -> Callable:
    """`function` with matrix products of this precision."""

    @functools.wraps(function)
    def traced(*args):
        with jax.default_matmul_precision(precision):
            return function(*args)

    return traced
