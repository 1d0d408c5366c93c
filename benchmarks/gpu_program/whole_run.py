"""What a run of Table S2 with 5 shots costs at least, part by part, for one seed."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_program import target
from benchmarks.gpu_program.account import Totals, account
from benchmarks.gpu_program.cases import MINI_IMAGENET, few_shot_config
from jaxsparse.data import ImageSet
from jaxsparse.training.fewshot.evaluation import EVALUATION_BATCH, batch_count
from jaxsparse.training.fewshot.program import FewShotProgram, make_program

NAME = "table-s2"
_CLASSES = 64, 600  # miniImageNet's for training, and the images of each


class Part(NamedTuple):
    """A part of a run.

    Attributes:
      name: what it is.
      times: how often it is done in the run.
      totals: of doing it once.
    """

    name: str
    times: int
    totals: Totals


def measure(precision: str) -> dict[str, Any]:
    """Compile the programs of the run and account for them.

    Args:
      precision: of matrix products and convolutions.

    Returns:
      A dict for JSON: the configuration's sizes and a row for each part and for all, with the
      totals of the run.

    Raises:
      jax.errors.JaxRuntimeError: a program does not compile for a GPU.

    Examples:
      >>> measure("float32")["parts"][-1]["name"]
      'all'
    """
    config = few_shot_config(MINI_IMAGENET, 5, precision=precision)
    program = make_program(config, MINI_IMAGENET)
    steps = config.epochs * config.steps_per_epoch
    batches = {
        "validation": config.epochs * batch_count(config.val_tasks),
        "test": batch_count(config.test_tasks),
    }
    parts = [
        *_training(program, config.inner_steps, steps),
        *_evaluations(program, config.test_inner_steps, batches),
    ]
    sizes = ("meta_batch_size", "shots", "inner_steps", "test_inner_steps", "val_tasks")
    return {
        "config": {name: getattr(config, name) for name in (*sizes, "epochs", "test_tasks")},
        "evaluation_batch": EVALUATION_BATCH,
        "meta_steps": steps,
        "precision": precision,
        "parts": [row(part) for part in [*parts, _all(parts)]],
    }


def row(part: Part) -> dict[str, Any]:
    """The totals of a part over the run."""
    return {
        "name": part.name,
        "times": part.times,
        **Totals().plus(part.totals, part.times).as_entry(),
    }


def _all(parts: list[Part]) -> Part:
    whole = Totals()
    for part in parts:
        whole = whole.plus(part.totals, part.times)
    return Part("all", 1, whole)


def _training(program: FewShotProgram, inner_steps: int, steps: int) -> list[Part]:
    state = jax.eval_shape(program.init, _key())
    # The number of meta-steps of a call is an argument: its loop counts once.
    args = (state, _key(), _data(), jax.ShapeDtypeStruct((), jnp.int32))
    compiled = target.compile_for_gpu(jax.jit(program.train, donate_argnums=0), *args)
    (loop,) = account(compiled.as_text(), trips=1).entry.loops
    return _split("training", loop.once(), loop.inner_step(inner_steps), inner_steps, steps)


def _evaluations(
    program: FewShotProgram, inner_steps: int, batches: dict[str, int]
) -> Iterator[Part]:
    """The parts of each evaluation; all have the same programs."""
    state = jax.eval_shape(program.init, _key())
    sampling = target.compile_for_gpu(program.tasks, _key(), _data())
    tasks = jax.eval_shape(program.tasks, _key(), _data())
    args = (state.meta.params, state.meta.mask, _key(), tasks)
    evaluating = target.compile_for_gpu(program.evaluate, *args)
    sampled = account(sampling.as_text()).entry.once()
    found = account(evaluating.as_text()).entry
    for name, times in batches.items():
        yield Part(f"{name}: sampling of tasks", times, sampled)
        yield from _split(name, found.once(), found.inner_step(inner_steps), inner_steps, times)


def _split(name: str, whole: Totals, step: Totals, inner_steps: int, times: int) -> list[Part]:
    """The inner loops, and the rest."""
    rest = whole.plus(step, -inner_steps)
    return [
        Part(f"{name}: inner loops", times, Totals().plus(step, inner_steps)),
        Part(f"{name}: the rest", times, rest),
    ]


def _data() -> ImageSet:
    """The shapes of miniImageNet's training images."""
    classes, each = _CLASSES
    counts = np.full(classes, each, np.int32)
    return ImageSet(
        jax.ShapeDtypeStruct((classes * each, *MINI_IMAGENET), jnp.uint8),
        counts,
        tuple(map(str, range(classes))),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        starts=np.cumsum(counts, dtype=np.int32) - counts,
        largest=each,
    )


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))
