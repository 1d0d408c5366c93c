"""One seed of the rotated digits in jaxsparse and in PyTorch, in the same run.

python -m benchmarks.stream
python -m benchmarks.stream --method lamaml --full
"""

import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.cases_continual import Draws, GlanceCase
from benchmarks.command import check_least, compare_on_cpu, one_line_ends, say, want_torch
from benchmarks.harness import Reference, Stopwatch, check, difference, in_turn
from experiments import cli

PROG = "python -m benchmarks.stream"
METHODS = ("sparse-lamaml", "lamaml")
# Limits of the relative L2 differences after the compared batches: of the results, of the changes.
LIMITS = {"result": 1e-3, "change": 1e-2}
COMPARED = 3  # batches
SAMPLED = 2  # PyTorch is timed on this many tasks, and passes over all test sets
PARTS = ("train", "test", "total")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time one seed of the rotated digits: learning the stream and measuring after every task.

    PyTorch is timed on the first two tasks and two passes over all test sets, and its times are
    scaled to the whole stream. The second task stands for all later ones, as the memory is then
    full. PyTorch measures before and after every task, as the public code does. jaxsparse measures
    once between tasks, which gives the same numbers.
    """

    method: Literal["sparse-lamaml", "lamaml"] | None = None
    """the method; default: both in turn"""
    data: Literal["mnist", "fashion_mnist", "glyphs"] = "mnist"
    """images; mnist and fashion_mnist are read through TensorFlow Datasets"""
    tasks: int = 20
    """number of tasks, T"""
    samples_per_task: int = 1000
    """training images of each task"""
    repeats: int = 3
    """rounds, jaxsparse and PyTorch in turn; medians are reported"""
    full: bool = False
    """time PyTorch on the whole stream, too"""
    threads: int | None = None
    """PyTorch's threads; default: one or PyTorch's default, whichever is faster on a few batches"""
    out: Path | None = None
    """folder of the results; default: the machine's folder under benchmarks/results"""


class Times(NamedTuple):
    """Seconds and accuracies of one run of a stream."""

    train: float
    test: float
    accuracy: np.ndarray  # [tasks done + 1, T]

    @property
    def total(self) -> float:
        return self.train + self.test


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, measure, report."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    check_least(flags, {"repeats": 1, "tasks": SAMPLED, "threads": 1})
    want_torch()
    with one_line_ends():
        files = "stream-result.json", "stream-table.md"
        compare_on_cpu(flags, files, lambda: measure(flags), markdown)


def measure(flags: Flags) -> dict[str, Any]:
    """The numbers of the requested methods."""
    import torch

    threads = [flags.threads] if flags.threads else [torch.get_num_threads(), 1]
    methods = [flags.method] if flags.method else METHODS
    return {"methods": [compare(method, flags, threads) for method in methods]}


def compare(method: str, flags: Flags, threads: Sequence[int]) -> dict[str, Any]:
    """Check that both do the same arithmetic (else `Mismatch`), then time them in turn.

    Args:
      method: name of the method.
      flags: the other flags.
      threads: numbers of threads for PyTorch; the fastest is used.

    Returns:
      The configuration, errors, the figures of both sides, and the ratios of their medians.
    """
    from benchmarks import ours_continual
    from benchmarks.torch_base import fastest_threads
    from experiments.continual import load_stream
    from experiments.continual.presets import preset_config

    config = dataclasses.replace(
        preset_config("rotations", method, flags.data),
        tasks=flags.tasks,
        samples_per_task=flags.samples_per_task,
    )
    stream = load_stream(config)
    say(f"{method}: comparing {COMPARED} batches")
    errors = check_batches(config, stream)
    say(f"{method}: compiling")
    run = ours_continual.whole_stream(config, stream)
    first, second = (ours_times(run, 0, tasks=1, batches=1).total for _ in range(2))
    data = float_tasks(config, stream)
    done = config.tasks if flags.full else SAMPLED
    few = [x[: 10 * config.batch_size] for x in data[0][0]]
    learner = torch_learners(config, stream)
    chosen = fastest_threads(threads, lambda: learner(0).train_task(*few))
    say(f"{method}: timing {flags.repeats} rounds")
    sides = in_turn(
        {
            "ours": lambda seed: ours_times(run, seed),
            "peer": lambda seed: peer_times(learner(seed), data, done),
        },
        flags.repeats,
    )
    ours, peer = (_figures(sides[side]) for side in ("ours", "peer"))
    return {
        "method": method,
        "config": dataclasses.asdict(config),
        "errors": errors,
        "ours": {"compile_s": first - second, **ours},
        "peer": peer
        | {"measured": "whole" if flags.full else f"{done} tasks, scaled", "threads": chosen},
        "ratio": {part: ours["median_s"][part] / peer["median_s"][part] for part in PARTS},
    }


# ---- do both agree?


def check_batches(config: Any, stream: Any, batches: int = COMPARED) -> dict[str, Any]:
    """Relative differences of parameters and masks after batches with the same draws.

    A difference above `LIMITS` is a `Mismatch`.
    """
    from benchmarks.ours_continual import learn_batches, start, task_images
    from benchmarks.torch_continual import tensors

    draws = draw_batches(config, batches)
    images, labels = task_images(stream, 0, np.arange(batches * config.batch_size))
    ours, begin = learn_batches(config, stream, images, labels, draws), start(config, stream)
    peer = torch_learners(config, stream)(0)
    peer.train_task(*tensors(images, labels), draws)
    reference = Reference(begin, ours, difference(ours, begin))
    return check("PyTorch", peer, reference, LIMITS, f"{batches} batches")


def draw_batches(config: Any, batches: int, seed: int = 0) -> list[Draws]:
    """The draws of a stream's first batches, distributed as in La-MAML's public code."""
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


def torch_learners(config: Any, stream: Any) -> Callable[[int], Any]:
    """`seed -> learner`: makes PyTorch's learner."""
    from benchmarks.ours_continual import start
    from benchmarks.torch_continual import StreamLearner

    case = GlanceCase(
        method=config.method,
        image=stream.train.images.shape[1:],
        hidden=(config.width,) * 2,
        ways=stream.train.num_classes,
        inner_steps=config.batch_size,
        meta_rows=config.replay_batch_size + config.batch_size,
        glances=config.glances,
        inner_lr=config.inner_lr,
        mask_lr=config.mask_lr,
        slope=config.slope,
        clip_norm=config.clip_norm,
    )
    arrays = start(config, stream)
    return lambda seed: StreamLearner(case, arrays, config.memories, seed)


# ---- time


def ours_times(run: Callable[..., np.ndarray], seed: int, **part: int) -> Times:
    """Our times, of all tasks or of a part."""
    watch = Stopwatch()
    accuracy = run(seed, watch, **part)
    return Times(sum(watch.seconds["train"]), sum(watch.seconds["test"]), accuracy)


def peer_times(peer: Any, data: Sequence[Any], tasks: int) -> Times:
    """PyTorch's times for the whole stream, measured or scaled from its first tasks.

    Args:
      peer: a new learner.
      data: for each task ((images, labels) to learn, (images, labels) to test).
      tasks: number of tasks to learn. With all tasks, the test sets are measured before and after
        each; with fewer, only before each.
    """
    everything, watch, accuracy = tasks == len(data), Stopwatch(), []

    def test() -> list[float]:
        return watch.timed("test", lambda: [peer.accuracy(*test) for _, test in data])

    for task, (train, _) in enumerate(data[:tasks]):
        before = test()
        accuracy += [] if task and everything else [before]
        watch.timed("train", peer.train_task, *train)
        if everything:
            accuracy.append(test())
    train_s, test_s = watch.seconds["train"], watch.seconds["test"]
    if everything:
        return Times(sum(train_s), sum(test_s), np.array(accuracy))
    first, later = train_s[0], statistics.mean(train_s[1:])
    return Times(
        first + (len(data) - 1) * later,
        2 * len(data) * statistics.mean(test_s),
        np.array(accuracy),
    )


def float_tasks(config: Any, stream: Any) -> list[Any]:
    """The images and labels of every task as tensors, prepared before the timing."""
    from benchmarks.ours_continual import task_images, test_images
    from benchmarks.torch_continual import tensors

    rng = np.random.default_rng(0)
    available, out = len(stream.train.labels), []
    for task in range(config.tasks):
        chosen = rng.choice(available, config.samples_per_task, replace=False)
        pairs = (task_images(stream, task, chosen), test_images(stream, task))
        out.append([tensors(*pair) for pair in pairs])
    return out


def _figures(runs: Sequence[Times]) -> dict[str, Any]:
    """Medians and all runs; learning accuracy is the mean accuracy on task j after task j."""
    learned = [np.diagonal(run.accuracy[1:]) for run in runs]
    return {
        "median_s": {part: statistics.median(getattr(run, part) for run in runs) for part in PARTS},
        "seconds": [{part: getattr(run, part) for part in PARTS} for run in runs],
        "learning_accuracy_first_task": [float(x[0]) if len(x) else None for x in learned],
        "learning_accuracy": [float(x.mean()) for x in learned],
        "retained_accuracy": [float(np.mean(run.accuracy[-1])) for run in runs],
    }


# ---- the table


def markdown(results: dict[str, Any]) -> str:
    """The table of the results and its legend."""
    from benchmarks import report

    sections = [_section(entry) for entry in results["methods"]]
    return report.markdown("One seed of the rotated digits", results, sections, after=LEGEND)


def _section(entry: dict[str, Any]) -> Any:
    from benchmarks.report import Section

    config, peer = entry["config"], entry["peer"]
    ratios = ", ".join(f"{part} {ratio:.3f}" for part, ratio in entry["ratio"].items())
    error = max(max(errors.values()) for errors in entry["errors"].values())
    how = f"threads: {peer['threads']}, {peer['measured']}"
    return Section(
        f"{entry['method']}, {config['data']}, {config['tasks']} tasks of"
        f" {config['samples_per_task']} images, {config['glances']} glances",
        ("form", "learn s", "measure s", "whole s", "compile s", "ratio", "RA %"),
        [
            _row("jaxsparse", entry["ours"], entry["ratio"]["total"]),
            _row(f"PyTorch ({how})", peer, 1.0),
        ],
        [
            f"Ratios of the medians: {ratios}. After {COMPARED} batches with the same draws,"
            f" parameters, masks and their changes differ by at most {error:.0e} (relative L2)."
        ],
    )


LEGEND = (
    "learn: the batches of all tasks, including draws and memory. measure: all test sets, by"
    " jaxsparse once before the first task and after every task, by PyTorch before and after every"
    " task, as the public code does. Medians of the rounds, in turn, without compilation.",
    "scaled: PyTorch is timed on its first two tasks and on two passes over all test sets. This is"
    " scaled to the whole stream; the second task stands for all later ones. --full runs it all.",
    "PyTorch: benchmarks/torch_continual.py, with its data in memory as float32 before timing.",
    "RA: mean accuracy over all tasks after the last one. Both sides draw independently, so their"
    " seeds are not the same.",
)


def _row(name: str, figures: dict[str, Any], ratio: float) -> list[str]:
    seconds = figures["median_s"]
    compile_s = f"{figures['compile_s']:.1f}" if "compile_s" in figures else "-"
    whole = "scaled" not in figures.get("measured", "")
    retained = f"{100 * statistics.mean(figures['retained_accuracy']):.1f}" if whole else "-"
    times = [f"{seconds[part]:.1f}" for part in PARTS]
    return [name, *times, compile_s, f"{ratio:.3f}", retained]


if __name__ == "__main__":
    main()
