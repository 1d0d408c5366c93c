"""Our (sparse-)La-MAML: the glances of a case, and a whole stream."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from benchmarks.cases_continual import Draws, GlanceCase
from benchmarks.families import Trees
from benchmarks.harness import Stopwatch
from benchmarks.ours_base import OurForm, flat, nested
from jaxsparse import gates
from jaxsparse.data import streams
from jaxsparse.training.continual import Rates, default_rates, make_program
from jaxsparse.training.continual.learners import make_gate, make_model


class Glances(OurForm):
    """`jaxsparse.lamaml_step`, scanned over the glances, as a user calls it."""

    def __init__(
        self,
        case: GlanceCase,
        arrays: dict[str, Any],
        device: str = "cpu",  # ignored: JAX has one backend per process
        precision: str = "float32",
    ):
        self.precision = precision
        if case.convolutions:
            sizes = (case.channels, case.convolutions, case.hidden)
            model = jaxsparse.nn.strided_cnn(case.ways, *sizes, case.image)
        else:
            model = jaxsparse.nn.mlp(case.ways, case.hidden, case.image)
        loss_fn, sgd = jaxsparse.cross_entropy(model), optax.sgd(case.mask_lr)
        gate = gates.rectified(case.inner_lr)
        if case.method == "sparse-lamaml":
            gate = gates.binary(case.inner_lr, slope=case.slope, init=case.inner_lr)
        state = jaxsparse.init_lamaml_state(
            nested(arrays["params"]), gate, jax.random.key(0), mask_optimizer=sgd
        )
        self.state = state._replace(mask=nested(arrays["mask"]))
        rows = (arrays[name] for name in ("batch", "replay", "orders"))
        self.inputs = tuple(jax.tree.map(jnp.asarray, x) for x in rows)

        def glances(state, batch, replay, orders):
            def glance(state, drawn):
                replayed, order = drawn
                rows = jax.tree.map(lambda x: x[order], batch)
                return jaxsparse.lamaml_step(
                    state,
                    rows,
                    replayed,
                    None,  # no key: the order is given, the same as PyTorch's
                    loss_fn=loss_fn,
                    gate=gate,
                    mask_optimizer=sgd,
                    inner_batch_size=case.inner_rows,
                    second_order=case.second_order,
                    clip_norm=case.clip_norm,
                )

            state, metrics = jax.lax.scan(glance, state, (replay, orders))
            return state, metrics["loss"]

        self.program = jax.jit(glances, donate_argnums=0)


# ---- a whole stream


def start(config: Any, stream: Any) -> Trees:
    """The initial parameters and mask for the comparison, flat by name."""
    params = flat(make_model(config, stream.train).init(jax.random.key(0)))
    params = {name: params[name] for name in sorted(params, key=_place)}
    return {
        "params": params,
        "mask": {name: np.full_like(x, config.inner_lr) for name, x in params.items()},
    }


def _place(name: str) -> tuple[bool, str, bool]:
    """Sort key: hidden layers before the head, kernels before biases."""
    layer, leaf = name.split("/")
    return layer == "head", layer, leaf == "bias"


def learn_batches(
    config: Any, stream: Any, images: np.ndarray, labels: np.ndarray, draws: Sequence[Draws]
) -> Trees:
    """Learn batches with `jaxsparse.lamaml_step`; returns the final parameters and masks."""
    rates, begin = default_rates(config), start(config, stream)
    gate, sgd = make_gate(config, rates), optax.sgd(rates.mask_lr)
    loss_fn = jaxsparse.cross_entropy(make_model(config, stream.train))
    state = jaxsparse.init_lamaml_state(
        nested(begin["params"]), gate, jax.random.key(0), mask_optimizer=sgd
    )
    memory: list[int] = []  # indices of `images`
    for number, drawn in enumerate(draws):
        for glance, order in enumerate(drawn.orders):
            rows = [number * config.batch_size + i for i in order]
            picked = [memory[i] for i in drawn.picks[glance]]
            empty = config.replay_batch_size - len(picked)
            batch, replay = (
                (jnp.asarray(images[at]), jnp.asarray(labels[at]))
                for at in (rows, picked + [0] * empty)
            )
            state, _ = jaxsparse.lamaml_step(
                state,
                batch,
                replay,
                None,
                loss_fn=loss_fn,
                gate=gate,
                mask_optimizer=sgd,
                replay_weights=jnp.array([1.0] * len(picked) + [0.0] * empty),
                clip_norm=config.clip_norm,
            )
            if glance == 0:
                _remember(memory, rows, drawn.slots, config.memories)
    return {"params": flat(state.params), "mask": flat(state.mask)}


def _remember(memory: list[int], rows: list[int], slots: list[int], capacity: int) -> None:
    for row, slot in zip(rows, slots, strict=True):
        if len(memory) < capacity:
            memory.append(row)
        elif slot < capacity:
            memory[slot] = row


def whole_stream(config: Any, stream: Any) -> Callable[..., np.ndarray]:
    """A function that runs a whole stream, or the beginning of it.

    It is `run(seed, watch, tasks, batches) -> accuracy` [tasks + 1, T]. The stopwatch gets the
    seconds of "train" and "test".
    """
    program = make_program(config, stream)
    schedule, init = _blocking(jax.jit(program.schedule)), _blocking(jax.jit(program.init))
    train, test, finish_task = (
        _blocking(jax.jit(function, donate_argnums=0))
        for function in (program.train, program.test, program.finish_task)
    )
    rates = Rates(*map(jnp.float32, default_rates(config)))
    stream = jax.device_put(stream)

    def run(
        seed: int,
        watch: Stopwatch,
        tasks: int = config.tasks,
        batches: int = program.batches_per_task,
    ) -> np.ndarray:
        key, bounds = jax.random.key(seed), (jnp.int32(0), jnp.int32(config.tasks))
        plan = watch.timed("train", schedule, key, stream)
        state = watch.timed("train", init, key, rates, stream)
        for done in range(tasks + 1):
            if done:
                inputs = plan, key, rates, stream, jnp.int32(batches)
                state = watch.timed("train", train, state, *inputs)
            state = watch.timed("test", test, state, stream, jnp.int32(done), *bounds)
            state, _ = watch.timed("test", finish_task, state, rates, jnp.int32(done))
        return np.asarray(state.accuracy)[: tasks + 1]

    return run


def _blocking(function: Callable) -> Callable:
    return lambda *args: jax.block_until_ready(function(*args))


def task_images(stream: Any, task: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Transformed training images of a task, uint8, and their labels."""
    tasks = jnp.full(len(indices), task)
    images, labels = streams.train_rows(stream, tasks, jnp.asarray(indices))
    return np.asarray(images), np.asarray(labels)


def test_images(stream: Any, task: int) -> tuple[np.ndarray, np.ndarray]:
    """Transformed test images of a task, uint8, and their labels."""
    images, labels = streams.test_rows(stream, jnp.int32(task))
    return np.asarray(images), np.asarray(labels)
