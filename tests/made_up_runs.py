"""Folders of runs with numbers that were written down, not trained."""

import dataclasses

from experiments import continual, fewshot, online
from jaxsparse.training import RunFolder

LAYERS = ("total", "conv1/kernel", "conv1/bias", "head/kernel")


def sparsities(values):
    return dict.fromkeys(LAYERS, values)


def folder(family, path, config, rows, result):
    record = {
        "experiment": family.__name__.rpartition(".")[2],
        "config": dataclasses.asdict(config),
        "versions": {"jaxsparse": "0.1.0", "jax": "0.10.2"},
        "device": "cpu",
    }
    run = RunFolder.create(path, record, family.UNIT)
    with run.lock():  # at its end the event file is closed
        for row in rows:
            run.add_row(row)
    if result is not None:
        run.write_result(result)
    return run


def fewshot_run(path, accuracies=(0.5, 0.6), finished=True, **changed):
    """A run of three epochs; its accuracies are those of the test."""
    seeds = len(accuracies)
    values = {"method": "sparse-maml", "shots": 5, "dataset": "glyphs"} | changed
    config = fewshot.preset_config(None, values["dataset"], values["method"], values["shots"])
    config = dataclasses.replace(config, seeds=seeds, **changed)
    rows = [{"epoch": 0, "step": 0, "sparsity": sparsities([0.5] * seeds)}]
    rows += [
        {"epoch": i, "step": 10 * i, "loss": [1.0 / i] * seeds, "accuracy": [0.2 * i] * seeds,
         "val_loss": [1.1 / i] * seeds, "val_accuracy": [0.1 * i + 0.1 * s for s in range(seeds)],
         "sparsity": sparsities([0.5 + 0.1 * i] * seeds)}
        for i in (1, 2, 3)
    ]  # fmt: skip
    per_seed = [
        {"seed": i, "accuracy": x, "interval95": 0.01, "loss": 1.0, "best_epoch": 3,
         "sparsity": sparsities(0.75)}
        for i, x in enumerate(accuracies)
    ]  # fmt: skip
    result = {
        "accuracy": sum(accuracies) / seeds, "accuracy_std_over_seeds": 0.0, "test_tasks": 40,
        "seeds": per_seed,
    }  # fmt: skip
    return folder(fewshot, path, config, rows, result if finished else None)


def spread(mean, std):
    return {"mean": mean, "std": std}


def continual_run(path, method="sparse-lamaml", finished=True):
    """Two seeds on three tasks: the accuracies after each task, and their summaries."""
    matrices = [[[0.9, 0.1, 0.1], [0.8, 0.7, 0.2], [0.5, 0.6, 0.7]],
                [[0.7, 0.1, 0.1], [0.6, 0.9, 0.2], [0.3, 0.4, 0.5]]]  # fmt: skip
    config = continual.preset_config("rotations", method, "glyphs")
    config = dataclasses.replace(config, tasks=3, seeds=2)
    rows = [
        {"task": i, "step": 10 * i, "sparsity": sparsities([0.1 * i, 0.2 * i])} for i in range(4)
    ]
    names = ("retained_accuracy", "backward_transfer_interference", "learning_accuracy")
    names = (*names, "forward_transfer")
    per_seed = [
        {"seed": i, **dict.fromkeys(names, x), "sparsity": sparsities(0.3), "accuracy": R}
        for i, (x, R) in enumerate(zip((0.6, 0.4), matrices, strict=True))
    ]
    result = {
        "part": "test", **dict.fromkeys(names, spread(0.5, 0.1414)),
        "sparsity": sparsities(spread(0.3, 0.0)), "seeds": per_seed,
    }  # fmt: skip
    return folder(continual, path, config, rows, result if finished else None)


def online_run(path, method="sparse-cmaml", finished=True):
    """Two seeds, two datasets; the second begins late."""
    config = dataclasses.replace(online.preset_config("0.9", method, "glyphs"), seeds=2)
    rows = [{"interval": 0, "step": 0, "sparsity": sparsities([0.0, 0.0])}]
    rows += [
        {"interval": i, "step": 50 * i, "accuracy": [0.1 * i, 0.2 * i],
         "by_dataset": {"latin": [0.1, 0.2]} | ({"greek": [0.3, 0.4]} if i > 1 else {}),
         "sparsity": sparsities([0.1 * i, 0.1 * i])}
        for i in (1, 2, 3)
    ]  # fmt: skip
    around = {"offset": [-1, 0, 1], "accuracy": [0.5, 0.1, None]}
    per_seed = [
        {"seed": i, "accuracy": x, "by_dataset": {"latin": x, "greek": x / 2},
         "around_switches": around, "sparsity": sparsities(0.3)}
        for i, x in enumerate((0.4, 0.6))
    ]  # fmt: skip
    result = {
        "accuracy": spread(0.5, 0.1414), "sparsity": sparsities(spread(0.3, 0.0)),
        "by_dataset": {"latin": spread(0.5, 0.1), "greek": spread(0.25, 0.1)}, "seeds": per_seed,
    }  # fmt: skip
    return folder(online, path, config, rows, result if finished else None)


RUNS = {"fewshot": fewshot_run, "continual": continual_run, "online": online_run}
