"""The host's side of a run: compile, drive, report, save, go on, stop."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxsparse.data import ImageSet
from jaxsparse.training.fewshot.config import FewShotConfig
from jaxsparse.training.fewshot.program import (
    EVALUATION_BATCH,
    batch_count,
    evaluation_key,
    make_program,
    task_mesh,
)
from jaxsparse.training.fewshot.result import make_result
from jaxsparse.training.host import Hooks, Host, Progress, plain
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.seeds import Placement


def run(
    config: FewShotConfig, data: dict[str, ImageSet], folder: RunFolder, hooks: Hooks
) -> dict[str, Any]:
    """Train to the end from wherever the folder's checkpoints are, test, and write the result.

    Args:
      config: the run's configuration.
      data: `{"train": ..., "validation": ..., "test": ...}`.
      folder: the run's folder.
      hooks: see `Hooks`.

    Returns:
      The result: test accuracy and loss per seed with 95% intervals over the test tasks, mean and
      standard deviation over the seeds, the sparsity of the tested gate, the epoch tested.

    Raises:
      Stopped: asked to stop; the state is saved.
      Diverged: the loss is not finite; the last good checkpoint is kept.
      RunError: the folder cannot be read or written.

    Example:
      >>> result = run(config, data, RunFolder.create(path, {}), Hooks())
    """
    with folder.lock():
        return _Run(config, data, folder, hooks).run()


class _Run(Host):
    """The state of a run on the host."""

    unit = "meta-step"

    def __init__(self, config, data, folder, hooks):
        super().__init__(folder, hooks)
        self.config, self.first_seed = config, config.seed
        seeds = range(config.seed, config.seed + config.seeds)
        self.mesh = task_mesh(config)
        self.keys = self.put(jnp.stack([jax.random.key(seed) for seed in seeds]))
        self.data = self.put(data)
        self.program = make_program(config, data["train"].image_shape, self.mesh)
        self.functions = self._jit()
        template = jax.eval_shape(self.functions["init"], self.keys)
        restored = self.restore(template)
        self.state = self.functions["init"](self.keys) if restored is None else self.put(restored)
        folder.keep_rows(self.epoch)
        if not folder.rows():
            row = {
                "epoch": 0,
                "step": 0,
                "sparsity": plain(self.functions["sparsity"](self.state)),
            }
            folder.add_row(row)

    def put(self, tree):
        """`tree` on every device of the run."""
        return jax.device_put(tree, self.mesh and NamedSharding(self.mesh, PartitionSpec()))

    def _jit(self):
        """The program's functions, compiled over the seeds."""
        over_seeds = Placement(self.config.seeds, None).over_runs
        program = self.program
        return {
            "init": over_seeds(program.init, (0,)),
            "train": over_seeds(program.train, (0, 0, None, None), donate_argnums=0),
            "tasks": over_seeds(program.tasks, (0, None)),
            "evaluate": over_seeds(program.evaluate, (0, 0, 0, 0)),
            "finish_epoch": over_seeds(program.finish_epoch, (0, 0)),
            "sparsity": over_seeds(program.sparsity, (0,)),
        }

    def position(self):
        return {"step": self.step, "epoch": self.epoch}

    def learned(self, state):
        return state.meta.params, state.meta.mask

    @property
    def epoch(self) -> int:
        return int(self.state.epoch[0])

    @property
    def step(self) -> int:
        return int(self.state.meta.step[0])

    # ---- the run

    def run(self):
        while self.epoch < self.config.epochs:
            begun = time.monotonic()
            self.train_epoch()
            trained = time.monotonic()
            self.validate()
            self.folder.log_timing(
                epoch=self.epoch,
                train_seconds=round(trained - begun, 3),
                validation_seconds=round(time.monotonic() - trained, 3),
            )
        result = self.test()
        self.folder.write_result(result)
        return result

    def train_epoch(self):
        end = (self.epoch + 1) * self.config.steps_per_epoch
        while self.step < end:
            pace = self.seconds_per.get("step")
            done = 1 - (end - self.step) / self.config.steps_per_epoch
            self.tell("compile" if pace is None else "train", done)
            steps = self.segment(end - self.step)
            self.timed("step", steps, self.train_segment, steps)
            self.check_finite(self.state.bad_step)
            self.save_if_due()

    def train_segment(self, steps):
        self.state = self.functions["train"](
            self.state, self.keys, self.data["train"], jnp.int32(steps)
        )
        jax.block_until_ready(self.state)

    def validate(self):
        meta = self.state.meta
        metrics = self.measure("validation", meta.params, meta.mask, self.config.val_tasks)
        means = {name: jnp.asarray(x.mean(1), jnp.float32) for name, x in metrics.items()}
        self.state, row = self.functions["finish_epoch"](self.state, means)
        row = {"epoch": self.epoch, "step": self.step, **plain(row)}
        self.folder.add_row(row)
        self.save()
        self.hooks.row(row)

    def test(self):
        best = self.state.best
        metrics = self.measure("test", best.params, best.mask, self.config.test_tasks)
        return make_result(self.config, self.folder.rows(), self.state, metrics)

    def measure(self, split, params, mask, tasks):
        """Metrics per seed and task, [seeds, tasks]."""
        batches: list[dict[str, np.ndarray]] = []
        while len(batches) < batch_count(tasks):
            self.tell(split, len(batches) / batch_count(tasks))
            self.stop_if_asked()
            index = len(batches)
            batch = self.timed("batch", 1, self.evaluate_batch, split, params, mask, index)
            batches.append(batch)
        metrics = {
            name: np.concatenate([batch[name] for batch in batches], axis=1)[:, :tasks]
            for name in batches[0]
        }
        self.check_all_finite(f"the {split} loss", metrics["loss"])
        return metrics

    def evaluate_batch(self, split, params, mask, index):
        keys = jax.vmap(lambda key: evaluation_key(key, split, index))(self.keys)
        tasks = self.functions["tasks"](keys, self.data[split])
        return jax.device_get(self.functions["evaluate"](params, mask, keys, tasks))

    # ---- telling

    def tell(self, stage, done):
        in_epoch = self.step - self.epoch * self.config.steps_per_epoch
        totals = self.state.totals.items() if in_epoch else ()
        means = {name: float(np.mean(total)) / in_epoch for name, total in totals}
        self.hooks.progress(
            Progress(stage, self.epoch, self.step, done, self.seconds_left(stage, done), means)
        )

    def seconds_left(self, stage, done):
        step, batch = self.seconds_per.get("step"), self.seconds_per.get("batch")
        if step is None:
            return None
        if batch is None:  # not measured yet: a task evaluated costs about a task trained on
            batch = step * EVALUATION_BATCH / self.config.meta_batch_size
        config = self.config
        steps = config.epochs * config.steps_per_epoch - self.step
        validations = 0 if stage == "test" else config.epochs - self.epoch
        validation, test = batch_count(config.val_tasks), batch_count(config.test_tasks)
        if stage == "validation":
            validations -= done
        if stage == "test":
            test *= 1 - done
        return steps * step + (validations * validation + test) * batch
