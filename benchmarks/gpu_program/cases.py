"""The programs that are accounted for; their arguments are made only to time them."""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.gpu_program.account import Branches
from experiments.continual.presets import preset_config as continual_preset
from experiments.fewshot.presets import preset_config
from experiments.online.presets import preset_config as online_preset
from jaxsparse.data import Task
from jaxsparse.data.labelled import LabelledSet
from jaxsparse.learners import maml
from jaxsparse.maml import TaskLoop, evaluate
from jaxsparse.training.continual import ContinualConfig, Rates, default_rates
from jaxsparse.training.continual import learners as continual
from jaxsparse.training.continual.learners import TaskBatch
from jaxsparse.training.fewshot.config import FewShotConfig, make_learner
from jaxsparse.training.fewshot.evaluation import EVALUATION_BATCH
from jaxsparse.training.online import learners as online
from jaxsparse.training.online.config import OnlineConfig

Shape = tuple[int, int, int]


class Made(NamedTuple):
    """A program.

    Attributes:
      function: the program, jitted or not.
      draw: `key -> arguments` of `function`, random ones; a pure function.
    """

    function: Callable
    draw: Callable[[jax.Array], tuple[Any, ...]]

    def shapes(self) -> tuple[Any, ...]:
        """The shapes and dtypes of the arguments; nothing is computed."""
        return jax.eval_shape(self.draw, jax.random.key(0))


OMNIGLOT, MINI_IMAGENET = (28, 28, 1), (84, 84, 3)
_SEEDS = (1, 5, 64)
_STORED = 20  # batches before an update of C-MAML


@dataclasses.dataclass(frozen=True)
class Case:
    """A program and how to read its account.

    Attributes:
      name: for `--cases`.
      group: cases that are chosen together and share a table.
      unit: what the program does once, such as "meta-step".
      inner_steps: K; the loops with K trips are the inner loops.
      make: `task_loop -> Made`.
      trips: of loops whose number of trips depends on values.
      branches: which branch of a conditional counts.
      over_tasks: whether `make` uses its argument.
      timed: whether its random arguments take the branches that are counted.
    """

    name: str
    group: str
    unit: str
    inner_steps: int
    make: Callable[[TaskLoop], Made]
    trips: float = 0
    branches: Branches = "least"
    over_tasks: bool = False
    timed: bool = True


# ---- few-shot learning


def few_shot_config(image: Shape, shots: int, **changes: Any) -> FewShotConfig:
    """The preset for images of this shape, in the sizes of `changes`, with the blocks for GPUs."""
    preset, data = ("omniglot",) * 2 if image == OMNIGLOT else ("table-s2", "mini_imagenet")
    config = preset_config(preset, data, "sparse-maml", shots)
    return dataclasses.replace(config, blocks="pallas", **changes)


def resnet12_config() -> FewShotConfig:
    """Table S1's small network with 5 shots."""
    config = preset_config("table-s1", "mini_imagenet", "sparse-maml", 5)
    return dataclasses.replace(config, blocks="pallas")


def meta_step(config: FewShotConfig, image: Shape, task_loop: TaskLoop = "auto") -> Made:
    """One meta-step of a configuration on given tasks."""
    parts = make_learner(config, image)
    learner = maml(
        parts.loss_fn,
        parts.gate,
        inner_steps=config.inner_steps,
        theta_optimizer=optax.adam(config.theta_lr),
        mask_optimizer=optax.adam(config.mask_lr),
        second_order=config.second_order,
        task_loop=task_loop,
    )

    def draw(key: jax.Array) -> tuple[Any, ...]:
        state = learner.init(parts.model.init(key), key)
        return state, draw_tasks(config, image, config.meta_batch_size, key)

    return Made(lambda state, tasks: learner.step(state, tasks, None), draw)


def evaluation(config: FewShotConfig, image: Shape, task_loop: TaskLoop = "auto") -> Made:
    """The evaluation of a batch of validation or test tasks."""
    parts = make_learner(config, image)

    def measure(params: Any, mask: Any, tasks: Task) -> Any:
        return evaluate(
            params,
            parts.gate.apply(mask, None),
            tasks,
            loss_fn=parts.loss_fn,
            inner_steps=config.test_inner_steps,
            task_loop=task_loop,
        )

    def draw(key: jax.Array) -> tuple[Any, ...]:
        params = parts.model.init(key)
        return (
            params,
            parts.gate.init(key, params),
            draw_tasks(config, image, EVALUATION_BATCH, key),
        )

    return Made(measure, draw)


def draw_tasks(config: FewShotConfig, image: Shape, count: int, key: jax.Array) -> Task:
    """Random tasks of the sizes of a configuration."""
    support, query = (
        _rows((count, config.ways * per_class), image, own, config.ways)
        for per_class, own in zip(
            (config.shots, config.query_shots), jax.random.split(key), strict=True
        )
    )
    return Task(support, query)


def _rows(count: tuple[int, ...], image: Shape, key: jax.Array, ways: int) -> tuple[Any, Any]:
    """Random images [*count, h, w, c] and labels [*count], each class equally often."""
    labels = jnp.arange(count[-1], dtype=jnp.int32) % ways
    return jax.random.normal(key, (*count, *image)), jnp.broadcast_to(labels, count)


def _few_shot_cases() -> list[Case]:
    cases = []
    for second_order in (False, True):
        for image in (MINI_IMAGENET, OMNIGLOT):
            for shots in (1, 5):
                for tasks in (1, 4, 16, 64):
                    sizes = {"meta_batch_size": tasks, "second_order": second_order}
                    config = few_shot_config(image, shots, **sizes)
                    cases.append(_few_shot_case(config, image))
    return cases


def _few_shot_case(config: FewShotConfig, image: Shape) -> Case:
    count = config.meta_batch_size
    tasks = f"{count}-task{'s' if count > 1 else ''}"
    group, form = ("second-order",) * 2 if config.second_order else ("first-order", "conv4")
    return Case(
        f"{form}-{image[0]}-{config.shots}-shot-{tasks}",
        group,
        "meta-step",
        config.inner_steps,
        lambda task_loop: meta_step(config, image, task_loop),
        over_tasks=True,
    )


def _evaluation_case(shots: int) -> Case:
    config = few_shot_config(MINI_IMAGENET, shots)
    return Case(
        f"evaluation-84-{shots}-shot",
        "evaluation",
        f"batch of {EVALUATION_BATCH} tasks",
        config.test_inner_steps,
        lambda task_loop: evaluation(config, MINI_IMAGENET, task_loop),
        over_tasks=True,
    )


def _resnet12_case() -> Case:
    config = resnet12_config()
    return Case(
        "resnet12-84-5-shot-1-task",
        "resnet12",
        "meta-step",
        config.inner_steps,
        lambda task_loop: meta_step(config, MINI_IMAGENET, task_loop),
        over_tasks=True,
    )


# ---- continual and online learning


def glance(config: ContinualConfig, image: Shape, seeds: int) -> Made:
    """One glance at a batch of a stream with replay, of several seeds at once."""
    zero, one = ((value,) * image[2] for value in (0.0, 1.0))
    blank = np.zeros((1, *image), np.uint8), np.zeros(1, np.int32)
    learner = continual.make_learner(config, LabelledSet(*blank, zero, one, num_classes=10))
    rates = default_rates(config)

    def draw_one(key: jax.Array) -> tuple[Any, ...]:
        images, labels = _rows((config.batch_size,), image, key, 10)
        rows = jnp.clip(128 + 64 * images, 0, 255).astype(jnp.uint8), labels
        row = jax.tree.map(lambda x: x[0], rows)
        batch = TaskBatch(rows, jnp.int32(0), jnp.bool(True))
        return learner.init(key, rates), learner.init_memory(row), batch, key

    learn, draw_all = learner.learn, draw_one
    if seeds > 1:
        learn = jax.vmap(learn, (0, 0, 0, 0, None))
        draw_all = lambda key: jax.vmap(draw_one)(jax.random.split(key, seeds))  # noqa: E731
    return Made(
        jax.jit(learn, donate_argnums=(0, 1)),
        lambda key: (*draw_all(key), Rates(*map(jnp.float32, rates))),
    )


def _glance_case(network: str, config: ContinualConfig, image: Shape, seeds: int) -> Case:
    config = dataclasses.replace(config, glances=1)
    return Case(
        f"glance-{network}-{seeds}-seed{'s' if seeds > 1 else ''}",
        "glance",
        "glance",
        config.batch_size // config.inner_batch_size,
        lambda _: glance(config, image, seeds),
    )


def _glance_cases() -> list[Case]:
    networks = {
        "mlp": (continual_preset("rotations", "sparse-lamaml"), (28, 28, 1)),
        "cnn": (continual_preset("split-cifar10", "sparse-lamaml"), (32, 32, 3)),
    }
    return [_glance_case(name, *case, n) for name, case in networks.items() for n in _SEEDS]


def timestep(config: OnlineConfig | None = None) -> Made:
    """A timestep of C-MAML on a switching stream; the default is sparse-C-MAML."""
    from benchmarks.ours_online import IMAGE

    config = config or dataclasses.replace(online_preset(0.98, "sparse-cmaml"), blocks="pallas")
    learner = online.make_learner(config, IMAGE)

    def draw(key: jax.Array) -> tuple[Any, ...]:
        batch = _rows((config.ways * config.shots,), IMAGE, key, config.ways)
        return learner.init(key, batch, None), batch, key, jnp.int32(1)

    return Made(jax.jit(learner.learn, donate_argnums=0), draw)


def _timestep_case(name: str, unit: str, trips: float, branches: Branches) -> Case:
    steps = online_preset(0.98, "sparse-cmaml").inner_steps
    timed = trips == 0  # an update needs a stream of many batches
    return Case(name, "cmaml", unit, steps, lambda _: timestep(), trips, branches, timed=timed)


# ---- all


def all_cases() -> dict[str, Case]:
    """Every case by its name, in the order of the tables."""
    cases = [
        *_few_shot_cases(),
        *map(_evaluation_case, (1, 5)),
        _resnet12_case(),
        *_glance_cases(),
        _timestep_case("cmaml-timestep", "timestep without an update", 0, "least"),
        _timestep_case(
            "cmaml-update", f"timestep with an update from {_STORED} batches", _STORED // 2, "most"
        ),
    ]
    return {case.name: case for case in cases}


def choose(names: Sequence[str]) -> list[Case]:
    """The cases of these names or groups, in the order of the tables.

    Raises:
      ValueError: there is no such case or group.
    """
    known = all_cases()
    groups = dict.fromkeys(case.group for case in known.values())
    for name in names:
        if name not in known and name not in groups:
            like = difflib.get_close_matches(name, known, n=3)
            hint = f"; similar cases: {', '.join(like)}" if like else ""
            raise ValueError(f"--cases {name}: the groups are {', '.join(groups)}{hint}")
    return [case for case in known.values() if {case.name, case.group} & set(names)]
