"""Testing a finished run again: on other tasks, other data, or with other statistics."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jaxsparse.data import ImageSet
from jaxsparse.losses import BatchNorm
from jaxsparse.training.errors import Diverged
from jaxsparse.training.fewshot.config import make_learner
from jaxsparse.training.fewshot.evaluation import (
    Measurement,
    TaskSizes,
    batch_count,
    joined,
    make_evaluation,
)
from jaxsparse.training.fewshot.program import task_mesh
from jaxsparse.training.fewshot.result import accuracies
from jaxsparse.training.fewshot.tested import Tested
from jaxsparse.training.seeds import Placement, seed_keys


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


def evaluate_run(tested: Tested, data: ImageSet, test: Test) -> dict[str, Any]:
    """Test a finished run again.

    With the run's own settings and test images, the accuracies are those of its result.

    Args:
      tested: the run, as `load_tested` reads it.
      data: images of the shape and normalisation that the network was trained on.
      test: how to test.

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
    evaluation = make_evaluation(parts, test.sizes, config.precision, mesh, config.task_loop)
    measurement = Measurement(placement, evaluation, placement.put(seed_keys(config)))
    members = tested.members if test.ensemble else tested.members[:1]
    members, data = placement.share((members, data))
    batches = [
        measurement.batch(test.split, index, data, members)
        for index in range(batch_count(test.tasks))
    ]
    metrics = joined(batches, test.tasks)
    if not np.isfinite(metrics["loss"]).all():
        raise Diverged(f"a {test.split} loss is not finite")
    return accuracies(config.seed, metrics)
