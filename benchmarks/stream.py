"""One seed of the rotated digits against PyTorch code of La-MAML's kind, in the same run.

python -m benchmarks.stream
python -m benchmarks.stream --method lamaml --full
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.command import Mismatch, check_least, one_line_ends, want_torch
from experiments import cli

PROG = "python -m benchmarks.stream"
RESULTS = Path(__file__).resolve().parent / "results"
METHODS = ("sparse-lamaml", "lamaml")
# Relative L2 differences after the batches that are compared: of the results, of their changes.
LIMITS = {"result": 1e-3, "change": 1e-2}
COMPARED = 3  # batches
SAMPLED = 2  # tasks, and passes over all test sets, that PyTorch is timed on

Trees = dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time one seed of the rotated digits: learning the stream and measuring after every task.

    PyTorch is timed on the first two tasks and two passes over all test sets, and its times are
    multiplied by the stream's counts: the second task's for all later ones, as the memory is then
    full. It measures before and after every task, as the public code does; jaxsparse once between
    tasks, which gives the same numbers.
    """

    method: Literal["sparse-lamaml", "lamaml"] | None = None
    """who learns; default: both in turn"""
    data: Literal["mnist", "fashion_mnist", "glyphs"] = "mnist"
    """images; all but glyphs are read through TensorFlow Datasets"""
    tasks: int = 20
    """T"""
    samples_per_task: int = 1000
    """training images of each task"""
    repeats: int = 3
    """rounds, jaxsparse and PyTorch in turn; medians are reported"""
    full: bool = False
    """let PyTorch learn and measure the whole stream, too"""
    threads: int | None = None
    """of PyTorch; default: one or its own choice, whichever is faster on a few batches"""
    out: Path | None = None
    """folder of the results; default: one per machine under benchmarks/results"""


class Draws(NamedTuple):
    """What is drawn for one batch.

    Attributes:
      orders: the batch's rows, for each glance.
      picks: the slots of the memory that are replayed, for each glance.
      slots: for each row in the order of the first glance, where the reservoir would put it once
        it is full; beyond its end it is dropped.
    """

    orders: list[list[int]]
    picks: list[list[int]]
    slots: list[int]


class Times(NamedTuple):
    """Seconds of one run of a stream, and how well it learned."""

    train: float
    test: float
    accuracy: np.ndarray  # [tasks done + 1, T]

    @property
    def total(self) -> float:
        return self.train + self.test


def main(args: Sequence[str] | None = None) -> None:
    """Read the flags, measure, report."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    check_least(flags, {"repeats": 1, "tasks": SAMPLED, "threads": 1})
    want_torch()
    with one_line_ends():
        _run(flags)


def _run(flags: Flags) -> None:
    import jax
    import torch

    from benchmarks import report

    jax.config.update("jax_platforms", "cpu")  # the comparison is one of processors
    about = machine.describe("cpu")
    out = flags.out or RESULTS / machine.slug(about)
    report.prepare(out)
    own_threads = torch.get_num_threads()
    results: dict[str, Any] = {
        "machine": about,
        "flags": {**dataclasses.asdict(flags), "out": None},
        "precision": "float32",
        "repeats": flags.repeats,
        "matmul_flops_per_s": machine.matmul_rate("cpu", "float32", with_torch=True),
        "methods": [
            compare(method, flags, [flags.threads] if flags.threads else [own_threads, 1])
            for method in ([flags.method] if flags.method else METHODS)
        ],
    }
    table = markdown(results)
    print(table)
    report.publish(out, "stream-result.json", report.to_json(results))
    report.publish(out, "stream-table.md", table)
    print(f"results: {out}")


def compare(method: str, flags: Flags, threads: Sequence[int]) -> dict[str, Any]:
    """Check that both do the same arithmetic, then time them in turn.

    Args:
      method: who learns.
      flags: the rest of the case, and how to measure.
      threads: PyTorch's, of which the fastest number is taken.

    Returns:
      The configuration, errors, both sides' figures and the ratios of their medians.

    Raises:
      Mismatch: they do not.
    """
    from benchmarks.stream_peer import PeerStream, choose_threads, float_tasks, peer_stream
    from experiments.continual import load_stream
    from experiments.continual_presets import preset_config

    config = dataclasses.replace(
        preset_config("rotations", method, flags.data),
        tasks=flags.tasks,
        samples_per_task=flags.samples_per_task,
    )
    stream = load_stream(config)
    _say(f"{method}: {COMPARED} batches of each, compared")
    errors = check(config, stream)
    _say(f"{method}: compiling")
    run = ours_stream(config, stream)
    first, second = (run(0, tasks=1, batches=1).total for _ in range(2))
    data = float_tasks(config, stream)
    params = start(config, stream)[0]
    done = config.tasks if flags.full else SAMPLED
    chosen = choose_threads(threads, lambda: PeerStream(config, params), data[0][0])
    ours, peers = [], []
    for number in range(flags.repeats):
        _say(f"{method}: round {number + 1} of {flags.repeats}")
        ours.append(run(number))
        peers.append(peer_stream(PeerStream(config, params, number), data, done))
    return {
        "method": method,
        "config": dataclasses.asdict(config),
        "errors": errors,
        "ours": {"compile_s": first - second, **_figures(ours)},
        "peer": _figures(peers)
        | {"measured": "whole" if flags.full else f"{done} tasks, scaled", "threads": chosen},
        "ratio": {
            part: _median(ours, part) / _median(peers, part) for part in ("train", "test", "total")
        },
    }


def check(config: Any, stream: Any, batches: int = COMPARED) -> dict[str, dict[str, float]]:
    """Relative differences of parameters and masks after batches with the same draws.

    Raises:
      Mismatch: they are larger than `LIMITS`.
    """
    import torch

    from benchmarks.measure import relative_errors
    from benchmarks.stream_peer import PeerStream, to_float

    draws = draw_batches(config, batches)
    images, labels = task_images(stream, 0, np.arange(batches * config.batch_size))
    ours = ours_batches(config, stream, images, labels, draws)
    params, mask = start(config, stream)
    peer = PeerStream(config, params)
    peer.train_task(to_float(images), torch.from_numpy(labels.astype(np.int64)), draws)
    begin = {"params": params, "mask": mask}
    errors = {
        "result": relative_errors(peer.result(), ours),
        "change": relative_errors(_minus(peer.result(), begin), _minus(ours, begin)),
    }
    for kind, limit in LIMITS.items():
        for tree, error in errors[kind].items():
            if not error <= limit:  # so that NaN is a mismatch, too
                raise Mismatch(
                    f"PyTorch does not do the same arithmetic: after {batches} batches the {kind}"
                    f" of the {tree} differs by {error:.1e} (relative L2), at most {limit:.0e} is"
                    " allowed"
                )
    return errors


def draw_batches(config: Any, batches: int, seed: int = 0) -> list[Draws]:
    """The draws of a stream's first batches, as its public code makes them."""
    rng = np.random.default_rng(seed)
    size, age, out = config.batch_size, 0, []
    for _ in range(batches):
        picks = []
        for glance in range(config.glances):
            filled = min(age + (size if glance else 0), config.memories)
            count = min(config.replay_batch_size, filled)
            picks.append(rng.integers(max(filled, 1), size=count).tolist())
        orders = [rng.permutation(size).tolist() for _ in range(config.glances)]
        slots = [int(rng.integers(age + k + 2)) for k in range(size)]
        out.append(Draws(orders, picks, slots))
        age += size
    return out


def ours_batches(
    config: Any, stream: Any, images: np.ndarray, labels: np.ndarray, draws: Sequence[Draws]
) -> Trees:
    """`jaxsparse.lamaml_step` on the same draws; the parameters and masks it ends with."""
    import jax
    import jax.numpy as jnp
    import optax

    import jaxsparse
    from benchmarks.ours import flat
    from jaxsparse.training.continual import default_rates
    from jaxsparse.training.continual.learners import make_gate, make_model

    model, rates = make_model(config, stream.train), default_rates(config)
    gate, sgd = make_gate(config, rates), optax.sgd(rates.mask_lr)
    loss_fn, key = jaxsparse.cross_entropy(model), jax.random.key(0)
    state = jaxsparse.init_lamaml_state(model.init(key), gate, key, mask_optimizer=sgd)
    memory: list[int] = []  # places among `images`
    for number, drawn in enumerate(draws):
        place = number * config.batch_size
        for glance, order in enumerate(drawn.orders):
            rows = [place + i for i in order]
            picked = [memory[i] for i in drawn.picks[glance]]
            empty = config.replay_batch_size - len(picked)
            weights = jnp.array([1.0] * len(picked) + [0.0] * empty)
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
                replay_weights=weights,
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


def ours_stream(config: Any, stream: Any) -> Callable[..., Times]:
    """The whole stream, or its beginning: `run(seed, tasks, batches) -> Times`."""
    import jax
    import jax.numpy as jnp

    from jaxsparse.training.continual import Rates, default_rates, make_program
    from jaxsparse.training.continual.program import measured_tasks

    program = make_program(config, stream)
    schedule, init = jax.jit(program.schedule), jax.jit(program.init)
    train, test, finish_task = (
        jax.jit(function, donate_argnums=0)
        for function in (program.train, program.test, program.finish_task)
    )
    rates = Rates(*map(jnp.float32, default_rates(config)))
    stream = jax.device_put(stream)

    def run(seed: int, tasks: int = config.tasks, batches: int = program.batches_per_task) -> Times:
        seconds = {"train": 0.0, "test": 0.0}

        def timed(part: str, function: Callable, *args: Any) -> Any:
            begun = time.perf_counter()
            out = jax.block_until_ready(function(*args))
            seconds[part] += time.perf_counter() - begun
            return out

        key = jax.random.key(seed)
        plan = timed("train", schedule, key, stream)
        state = timed("train", init, key, rates, stream)
        for done in range(tasks + 1):
            if done:
                state = timed("train", train, state, plan, key, rates, stream, jnp.int32(batches))
            bounds = map(jnp.int32, measured_tasks(config, done, config.tasks))
            state = timed("test", test, state, stream, jnp.int32(done), *bounds)
            state, _ = timed("test", finish_task, state, rates, jnp.int32(done))
        return Times(seconds["train"], seconds["test"], np.asarray(state.accuracy)[: tasks + 1])

    return run


def start(config: Any, stream: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and mask that both start from when they are compared, flat by name."""
    import jax

    from benchmarks.ours import flat
    from jaxsparse.training.continual.learners import make_model

    params = flat(make_model(config, stream.train).init(jax.random.key(0)))
    return params, {name: np.full_like(x, config.inner_lr) for name, x in params.items()}


def task_images(stream: Any, task: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training images of a task as it shows them, uint8, and their labels."""
    import jax.numpy as jnp

    from jaxsparse.data import streams

    tasks = jnp.full(len(indices), task)
    images, labels = streams.train_rows(stream, tasks, jnp.asarray(indices))
    return np.asarray(images), np.asarray(labels)


def _minus(trees: Trees, other: Trees) -> Trees:
    return {t: {n: x - other[t][n] for n, x in leaves.items()} for t, leaves in trees.items()}


def _median(runs: Sequence[Times], part: str) -> float:
    return statistics.median(getattr(run, part) for run in runs)


def _figures(runs: Sequence[Times]) -> dict[str, Any]:
    """Medians, all runs, and the mean accuracy on task j after task j ("learning accuracy")."""
    parts = ("train", "test", "total")
    learned = [np.diagonal(run.accuracy[1:]) for run in runs]
    return {
        "median_s": {part: _median(runs, part) for part in parts},
        "seconds": [{part: getattr(run, part) for part in parts} for run in runs],
        "learning_accuracy_first_task": [float(x[0]) if len(x) else None for x in learned],
        "learning_accuracy": [float(x.mean()) for x in learned],
        "retained_accuracy": [float(np.mean(run.accuracy[-1])) for run in runs],
    }


def markdown(results: dict[str, Any]) -> str:
    """The table of what was measured, and what it means."""
    from benchmarks.report import machine_line, markdown_table

    columns = ("form", "learn s", "measure s", "whole s", "compile s", "ratio", "RA %")
    lines = ["# One seed of the rotated digits", "", machine_line(results), ""]
    for entry in results["methods"]:
        config = entry["config"]
        rows = [_row("jaxsparse", entry["ours"], entry["ratio"]["total"])]
        how = f"threads: {entry['peer']['threads']}, {entry['peer']['measured']}"
        rows.append(_row(f"PyTorch ({how})", entry["peer"], 1.0))
        ratios = ", ".join(f"{part} {ratio:.3f}" for part, ratio in entry["ratio"].items())
        error = max(max(errors.values()) for errors in entry["errors"].values())
        lines += [
            f"## {entry['method']}, {config['data']}, {config['tasks']} tasks of"
            f" {config['samples_per_task']} images, {config['glances']} glances",
            "",
            markdown_table(columns, rows),
            f"Ratios of the medians: {ratios}. After {COMPARED} batches with the same draws"
            f" parameters, masks and their changes differ by at most {error:.0e} (relative L2).",
            "",
        ]
    return "\n".join([*lines, *(f"- {line}" for line in LEGEND), ""])


LEGEND = (
    "learn: the batches of all tasks, draws and memory included; measure: all test sets, for"
    " jaxsparse once before the first and after every task, for PyTorch before and after every"
    " task, as the public code does; medians of the rounds, the two in turn, without compilation.",
    "scaled: PyTorch's first two tasks and two passes over all test sets, multiplied by the counts"
    " of the whole stream, the second task standing for all later ones; --full runs them all.",
    "PyTorch: benchmarks/stream_peer.py, its data in memory as float32 before the clock runs.",
    "RA: mean accuracy over all tasks after the last one; own draws, so that the seeds differ.",
)


def _row(name: str, figures: dict[str, Any], ratio: float) -> list[str]:
    seconds = figures["median_s"]
    compile_s = f"{figures['compile_s']:.1f}" if "compile_s" in figures else "-"
    whole = "scaled" not in figures.get("measured", "")
    retained = f"{100 * statistics.mean(figures['retained_accuracy']):.1f}" if whole else "-"
    times = [f"{seconds[part]:.1f}" for part in ("train", "test", "total")]
    return [name, *times, compile_s, f"{ratio:.3f}", retained]


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
