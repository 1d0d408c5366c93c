"""A few-shot run on the host: epochs of training and validation, then the test."""

from typing import Any

import numpy as np

from jaxsparse.data import ImageSet, fingerprint
from jaxsparse.training import processes
from jaxsparse.training.errors import RunError
from jaxsparse.training.fewshot.config import FewShotConfig
from jaxsparse.training.fewshot.evaluation import (
    EVALUATION_BATCH,
    Measurement,
    batch_count,
    joined,
)
from jaxsparse.training.fewshot.program import make_program, task_mesh
from jaxsparse.training.fewshot.result import make_result
from jaxsparse.training.fewshot.tested import theta_of
from jaxsparse.training.program import first_of
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.runner import Hooks, Progress, Runner, plain
from jaxsparse.training.seeds import Placement, seed_keys
from jaxsparse.training.shared_folder import held


def run(
    config: FewShotConfig, data: dict[str, ImageSet], folder: RunFolder, hooks: Hooks
) -> dict[str, Any]:
    """Train, starting from the newest checkpoint if there is one; test; write the result.

    Args:
      config: the run's configuration.
      data: `{"train": ..., "validation": ..., "test": ...}`.
      folder: the run's folder.
      hooks: see `Hooks`.

    Returns:
      The result. Per seed: test accuracy and loss, the 95% interval over the test tasks, the tested
      epoch and its sparsity. Over the seeds: mean and standard deviation of the accuracy.

    Raises:
      Stopped: asked to stop; the state is saved.
      Diverged: a loss or a parameter is not finite; the last good checkpoint is kept.
      RunError: the folder cannot be read or written.

    Examples:
      >>> result = run(config, data, RunFolder.create(path, {}), Hooks())
    """
    with held(folder) as folder:
        return _Run(config, data, folder, hooks).to_the_end()


class _Run:
    """The state of a run on the host."""

    def __init__(self, config, data, folder, hooks):
        self.config, self.folder, self.hooks = config, folder, hooks
        mesh = task_mesh(config)
        self.program = make_program(config, data["train"].image_shape, mesh)
        placement = Placement(config.seeds, None, mesh)
        own = (seed_keys(config),)
        self.data = placement.share(data)
        self.runner = Runner(
            self.program, folder, hooks, placement, own, self.data["train"], config.seed
        )
        self._compile(placement)
        keys = self.runner.own[0]
        self.measurement = Measurement(placement, self.program, keys)
        restored = self.runner.restore(placement.over_runs(self.program.init, (0,)), keys)
        if not restored:
            theta = self.first_theta()
            init = placement.over_runs(self.program.init, (0, None if theta is None else 0))
            self.runner.state = init(keys, None if theta is None else placement.share(theta))
        folder.keep_rows(self.epoch if restored else -1)
        if not restored:
            sparsity = plain(processes.to_host(self.sparsity(self.runner.state)))
            folder.add_row({"epoch": 0, "step": 0, "sparsity": sparsity})

    def first_theta(self):
        """The theta of `theta_from`; RunError if it is another one than when the run was made."""
        theta = theta_of(self.config, self.data["train"].image_shape)
        if theta is not None:
            digest = fingerprint(theta)
            if self.folder.config().get("theta", digest) != digest:
                raise RunError(
                    f"{self.config.theta_from} has another theta than when {self.folder.path}"
                    " was made"
                )
        return theta

    def _compile(self, placement):
        over_runs, program = placement.over_runs, self.program
        self.finish_epoch = over_runs(program.finish_epoch, (0, 0))
        self.sparsity = over_runs(program.sparsity, (0,))

    @property
    def epoch(self) -> int:
        return first_of(self.runner.state.epoch)

    # ---- the run

    def to_the_end(self):
        runner, config = self.runner, self.config
        while self.epoch < config.epochs:
            runner.lap()
            runner.train((self.epoch + 1) * config.steps_per_epoch, self.tell_training)
            train_seconds = runner.lap()
            self.validate()
            self.folder.log_timing(
                epoch=self.epoch, train_seconds=train_seconds, validation_seconds=runner.lap()
            )
        metrics = self.measure("test", runner.state.members, config.test_tasks)
        result = make_result(config, self.folder.rows(), self.final_state(), metrics)
        self.folder.write_result(result)
        return result

    def final_state(self):
        state = self.runner.state
        return state._replace(best=processes.to_host(state.best))

    def validate(self):
        runner, meta = self.runner, self.runner.state.meta
        metrics = self.measure("validation", [(meta.params, meta.mask)], self.config.val_tasks)
        means = {name: np.asarray(x.mean(1), np.float32) for name, x in metrics.items()}
        runner.state, row = self.finish_epoch(runner.state, means)
        runner.add_row({"epoch": self.epoch, "step": runner.step, **plain(processes.to_host(row))})

    def measure(self, split, members, tasks):
        """Metrics, each [seeds, tasks]."""
        batches: list[dict[str, np.ndarray]] = []
        count = batch_count(tasks)

        def take(first, last):
            for index in range(first, last):
                batches.append(self.measurement.batch(split, index, self.data[split], members))

        def tell():
            self.tell(split, len(batches) / count)

        self.runner.advance("batch", 0, count, take, tell, save=False)
        metrics = joined(batches, tasks)
        self.runner.check_all_finite(f"the {split} loss", metrics["loss"])
        return metrics

    # ---- progress

    @property
    def steps_in_epoch(self) -> int:
        """Finished meta-steps of the current epoch."""
        return self.runner.step - self.epoch * self.config.steps_per_epoch

    def tell_training(self):
        stage = "train" if "step" in self.runner.seconds_per else "compile"
        self.tell(stage, self.steps_in_epoch / self.config.steps_per_epoch)

    def tell(self, stage, done):
        means = self.runner.means(self.steps_in_epoch)
        left = self.seconds_left(stage, done)
        self.hooks.progress(Progress(stage, self.epoch, self.runner.step, done, left, means))

    def seconds_left(self, stage, done):
        step, batch = (self.runner.seconds_per.get(unit) for unit in ("step", "batch"))
        if step is None:
            return None
        if batch is None:  # not measured yet: assume that a task costs as much as in training
            batch = step * EVALUATION_BATCH / self.config.meta_batch_size
        config = self.config
        steps = config.epochs * config.steps_per_epoch - self.runner.step
        validations = 0 if stage == "test" else config.epochs - self.epoch
        validation, test = batch_count(config.val_tasks), batch_count(config.test_tasks)
        if stage == "validation":
            validations -= done
        if stage == "test":
            test *= 1 - done
        return steps * step + (validations * validation + test) * batch
