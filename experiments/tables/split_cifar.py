"""Table S7, streaming Split-CIFAR-10, and the effect of the choices that it leaves open."""

from typing import Any

import jax
import numpy as np

from experiments import continual, published
from experiments.report import with_std
from experiments.tables.continual import cell_config
from experiments.tables.flags import Flags
from experiments.tables.markdown import Lines, comparison, header, row
from experiments.tables.runner import Runner
from jaxsparse import nn
from jaxsparse.training.statistics import mean_and_std

_STREAM = "split-cifar10"
METHODS = ("er", "mer", "gem", "lamaml", "sparse-lamaml")
MEMORIES = (200, 1000)
# Table S7 does not say how many passes MER makes over an image and its replayed rows: 1, the
# default of the public code, or 10, as in the code's commands for natural images (our preset).
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {"mer": ({"replay_passes": 1}, {})}
_SPARSITIES = ("sparsity of the head", "of the rest", "of all")
# How La-MAML's public code learns natural images.
_PUBLIC: dict[str, Any] = {
    "inner_rates": "raw",
    "second_order": True,
    "inner_clip": 1.0,
    "clip_norm": 1.0,
}
# Choices that Table S7 leaves open: method, memory, and changes to the preset.
_CHOICES: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("er", 200, {}),
    ("er", 200, {"augment": True}),
    ("er", 1000, {}),
    ("er", 1000, {"augment": True}),
    ("sparse-lamaml", 200, {}),
    ("sparse-lamaml", 200, {"augment": True}),
    ("sparse-lamaml", 200, {"slope": 0.5}),
    ("sparse-lamaml", 200, {"augment": True, "slope": 0.5}),
    ("sparse-lamaml", 200, {"augment": True, "slope": 0.5, "inner_batch_size": 1}),
    ("sparse-lamaml", 1000, {}),
    ("sparse-lamaml", 1000, {"augment": True}),
    ("sparse-lamaml", 1000, {"mask_lr": 0.1}),
    ("lamaml", 200, {}),
    ("lamaml", 200, {"inner_batch_size": 1}),
    ("lamaml", 200, {"clip_norm": None}),
    ("lamaml", 200, {"inner_rates": "raw"}),
    ("lamaml", 200, _PUBLIC),
    ("lamaml", 1000, {}),
    ("lamaml", 1000, _PUBLIC),
    ("lamaml", 1000, {"augment": True}),
)
CHOICE_METHODS = tuple(dict.fromkeys(method for method, _, _ in _CHOICES))
_AUGMENTED = (("er", 200), ("lamaml", 200), ("sparse-lamaml", 200), ("er", 1000))
AUGMENTED_METHODS = tuple(dict.fromkeys(method for method, _ in _AUGMENTED))
_CHOICE_SAMPLES = 2000  # of the 10,000 images of a task


def accuracies(flags: Flags, runner: Runner) -> Lines:
    """Table S7: accuracy on all classes after one pass over Split-CIFAR-10.

    Every seed is a separate run, so more seeds can be added later.
    """
    lines = [
        "Accuracy in %: ours, mean +- std over the seeds that were run (0, 1, ...) / the paper's.",
        "",
    ]
    lines += header("memory", "method", "seeds", "accuracy", *_SPARSITIES, "within 2 points")
    comparisons = []
    for memories in flags.memories:
        by_label = {}
        for method, variant in _variants(flags.methods or METHODS):
            if (method, memories) not in published.TABLE_S7:
                continue
            label = ", ".join([method, *_marks(variant)])
            results = by_seed(flags, runner, memories, method, variant)
            found = [result for result in results if result is not None]
            if found:
                lines.append(_accuracy_row(memories, method, label, found))
            by_label[label] = results
        comparisons += _comparisons(memories, by_label)
    return [*lines, "", *comparisons]


def by_seed(
    flags: Flags, runner: Runner, memories: int, method: str, variant: dict[str, Any]
) -> list[dict[str, Any] | None]:
    """The results of a method, one per seed; None for a run that does not exist."""
    name = "-".join([_STREAM, str(memories), method, *_marks(variant)]).replace(" ", "-")
    results = []
    for seed in range(flags.seeds):
        values = {"memories": memories, "seed": seed, "seeds": 1, **variant}
        config = cell_config(flags, _STREAM, method, **values)
        results.append(runner.result(continual, f"{name}-seed-{seed}", config))
    return results


def choices(flags: Flags, runner: Runner) -> Lines:
    """The effect of single choices: seed 0, a shorter stream, held-out training images."""
    lines = [
        f"Seed 0, {_CHOICE_SAMPLES:,} images of each task, measured on held-out training images; in"
        " %. The paper's sparsities are those after 10,000 images of each task.",
        "",
    ]
    lines += header("memory", "method", "changed", "accuracy", *_SPARSITIES)
    for method, memories, changed in _CHOICES:
        if memories not in flags.memories or method not in (flags.methods or CHOICE_METHODS):
            continue
        config = cell_config(
            flags, _STREAM, method, memories=memories, seeds=1, validation=True,
            samples_per_task=_CHOICE_SAMPLES, **changed,
        )  # fmt: skip
        marks = _marks(changed)
        name = "-".join([_STREAM, str(memories), method, "held-out", *marks]).replace(" ", "-")
        result = runner.result(continual, name, config)
        if result is not None:
            lines.append(row(
                str(memories), method, ", ".join(marks) or "nothing",
                with_std(result["retained_accuracy"]), *_sparsities(memories, method, [result]),
            ))  # fmt: skip
    return lines


def augmented(flags: Flags, runner: Runner) -> Lines:
    """Whole streams of augmented images, with the slope of the paper's listing."""
    lines = [
        "Accuracy in % on test images, seed 0, with `--augment`; sparse-lamaml with `--slope 0.5`.",
        "",
    ]
    lines += header("memory", "method", "accuracy")
    for method, memories in _AUGMENTED:
        if memories not in flags.memories or method not in (flags.methods or AUGMENTED_METHODS):
            continue
        config = cell_config(
            flags, _STREAM, method, memories=memories, seeds=1, augment=True, slope=0.5
        )
        name = f"{_STREAM}-{memories}-{method}-augmented-seed-0"
        result = runner.result(continual, name, config)
        if result is not None:
            lines.append(row(str(memories), method, with_std(result["retained_accuracy"])))
    return lines


def _variants(methods):
    return [(method, variant) for method in methods for variant in VARIANTS.get(method, ({},))]


def _marks(settings):
    return [f"{name} {value}" for name, value in settings.items()]


def _accuracy_row(memories, method, label, results):
    paper = published.TABLE_S7[method, memories]
    ours: Any = mean_and_std([result["retained_accuracy"]["mean"] for result in results])
    near = "yes" if abs(100 * ours["mean"] - paper.mean) <= 2 else "no"
    accuracy = f"{with_std(ours)} / {paper.mean:g} +- {paper.std:g}"
    cells = _sparsities(memories, method, results)
    return row(str(memories), label, str(len(results)), accuracy, *cells, near)


def _comparisons(memories, by_label):
    """Compare sparse-La-MAML with each other method, on the seeds that both have (at least two)."""
    ours, lines = by_label.pop("sparse-lamaml", []), []
    for other, theirs in by_label.items():
        pairs = [
            (mine["seeds"][0], result["seeds"][0])
            for mine, result in zip(ours, theirs, strict=True)
            if mine is not None and result is not None
        ]
        if len(pairs) > 1:
            label = f"{memories} images: sparse-lamaml is {{}} {other}"
            lines.append(comparison(label, "retained_accuracy", *zip(*pairs, strict=True)))
    return lines


def _sparsities(memories, method, results):
    """Ours / the paper's: sparsity of the last layer, of the other layers, of all."""
    if not results[0]["sparsity"]:
        return ["-"] * 3
    parts = np.array([head_rest_all(result["sparsity"]) for result in results]).T
    theirs = published.S7_SPARSITY[method, memories]
    return [
        with_std(mean_and_std(list(part))) + ("" if value is None else f" / {value.mean:g}")
        for part, value in zip(parts, theirs, strict=True)
    ]


def head_rest_all(sparsity: dict[str, Any]) -> tuple[float, float, float]:
    """Sparsity of the last layer, of the other layers, and of all, weighted by entries."""
    params = jax.eval_shape(nn.strided_cnn(10).init, jax.random.key(0))
    whole = sum(leaf.size for leaf in jax.tree.leaves(params))
    head = {f"head/{name}": leaf.size for name, leaf in params["head"].items()}
    head_size, total = sum(head.values()), sparsity["total"]["mean"]
    frozen = sum(sparsity[name]["mean"] * size for name, size in head.items())
    # The total is a float32: by rounding the difference may be below 0.
    rest = max(0.0, total * whole - frozen)
    return frozen / head_size, rest / (whole - head_size), total
