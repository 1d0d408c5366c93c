"""Testing a finished run again: on other tasks, other data, or with other statistics."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.data import ImageSet
from jaxsparse.losses import BatchNorm
from jaxsparse.training.errors import Diverged
from jaxsparse.training.fewshot.config import FewShotConfig, make_learner
from jaxsparse.training.fewshot.evaluation import (
    Measurement,
    TaskSizes,
    at_precision,
    batch_count,
    joined,
    make_evaluation,
)
from jaxsparse.training.fewshot.program import task_mesh
from jaxsparse.training.fewshot.result import accuracies
from jaxsparse.training.fewshot.tested import Tested
from jaxsparse.training.seeds import Placement


class Test(NamedTuple):
    """How to test.

    Attributes:
      split: "train", "validation" or "test"; it decides the keys of the tasks.
      sizes: the sizes of a task; at most as many ways as the network has outputs.
      tasks: their number.
      batch_norm: which statistics normalise the query set; see `jaxsparse.cross_entropy`.
      ensemble: test the ensemble of the run, too, if it has one.
    """

    split: str
    sizes: TaskSizes
    tasks: int
    batch_norm: BatchNorm
    ensemble: bool = True


def own_test(config: FewShotConfig) -> Test:
    """The test that ends a run of `config`."""
    sizes = TaskSizes(config.ways, config.shots, config.query_shots, config.test_inner_steps)
    return Test("test", sizes, config.test_tasks, config.batch_norm)


def evaluate_run(
    tested: Tested,
    data: ImageSet,
    test: Test,
    tell: Callable[[float], None] = lambda done: None,
) -> dict[str, Any]:
    """Test a finished run again.

    With `own_test` and the run's test images, the accuracies are those of its result.

    Args:
      tested: the run, as `load_tested` reads it.
      data: images of the shape and normalisation that the network was trained on.
      test: how to test.
      tell: called with the share of the tasks that are done.

    Returns:
      Accuracy, interval and loss per seed, and the mean and standard deviation over the seeds, as
      in a run's result.

    Raises:
      Diverged: a loss is not finite.
      ValueError: more ways than the network has outputs.
    """
    config = tested.config
    if test.sizes.ways > config.ways:
        raise ValueError(
            f"ways must be at most {config.ways}, the network's outputs, got {test.sizes.ways}"
        )
    mesh = task_mesh(config)
    placement = Placement(config.seeds, None, mesh)
    parts = make_learner(
        dataclasses.replace(config, batch_norm=test.batch_norm), data.image_shape, mesh
    )
    evaluation = make_evaluation(parts, test.sizes, mesh)
    functions = evaluation._replace(
        **{name: at_precision(config.precision, f) for name, f in evaluation._asdict().items()}
    )
    seeds = range(config.seed, config.seed + config.seeds)
    keys = placement.put(jnp.stack([jax.random.key(seed) for seed in seeds]))
    measurement = Measurement(placement, functions, keys)
    members = tested.members if test.ensemble else tested.members[:1]
    members, data = placement.share((members, data))
    batches, count = [], batch_count(test.tasks)
    for index in range(count):
        tell(index / count)
        batches.append(measurement.batch(test.split, index, data, members))
    metrics = joined(batches, test.tasks)
    if not jnp.isfinite(metrics["loss"]).all():
        raise Diverged(f"a {test.split} loss is not finite")
    return accuracies(config.seed, metrics)
