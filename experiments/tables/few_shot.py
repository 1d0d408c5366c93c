"""Few-shot learning on glyphs, Omniglot and miniImageNet: runs that are feasible on two cores."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments import fewshot
from experiments.report import plus_minus
from experiments.tables.flags import Flags
from experiments.tables.markdown import Lines, header, row
from experiments.tables.runner import Runner
from jaxsparse.training import FewShotConfig


class _Run(NamedTuple):
    """A row: name and label of a run, and the flags that differ from the dataset's preset."""

    name: str
    label: str
    dataset: str
    shots: int
    method: str = "sparse-maml"
    changed: Mapping[str, Any] = {}
    preset: str | None = None


_RUNS = (
    _Run("glyphs-5shot-sparse-maml", "sparse-MAML", "glyphs", 5),
    _Run("glyphs-5shot-frozen-mask", "mask frozen at random", "glyphs", 5,
         changed={"mask_lr": 0.0}),
    _Run("glyphs-5shot-fomaml-inner-lr-0.1", "FOMAML, inner rate 0.1", "glyphs", 5, "fomaml",
         {"inner_lr": 0.1}),
    _Run("glyphs-5shot-fomaml", "FOMAML", "glyphs", 5, "fomaml"),
    _Run("omniglot-5shot-sparse-maml", "sparse-MAML", "omniglot", 5),
    _Run("omniglot-5shot-fomaml", "FOMAML", "omniglot", 5, "fomaml"),
    _Run("omniglot-1shot-sparse-maml", "sparse-MAML", "omniglot", 1),
    _Run("omniglot-1shot-fomaml", "FOMAML", "omniglot", 1, "fomaml"),
    _Run("mini-imagenet-5shot-sparse-maml", "sparse-MAML", "mini_imagenet", 5,
         preset="mini-imagenet-cpu"),
)  # fmt: skip


def accuracies(flags: Flags, runner: Runner) -> Lines:
    """Test accuracy and sparsity of each method on each dataset."""
    lines = [
        "Test accuracy and sparsity in %, seed 0, 5-way, +- the 95% interval over the test tasks.",
        "",
    ]
    lines += header(
        "data", "shots", "method", "test accuracy", "test tasks", "sparsity at the start, tested",
        "command: `python -m experiments.fewshot`",
    )  # fmt: skip
    for run in _RUNS:
        result = runner.result(fewshot, run.name, _config(flags, run))
        if result is None:
            continue
        start = runner.rows(fewshot, run.name)[0]["sparsity"]["total"]
        tested = result["seeds"][0]["sparsity"]["total"]
        lines.append(row(
            run.dataset, str(run.shots), run.label,
            plus_minus(result["accuracy"], result["interval95_over_tasks"]),
            str(result["test_tasks"]), f"{100 * start:.1f} -> {100 * tested:.1f}",
            f"`{_command(run)}`",
        ))  # fmt: skip
    return lines


def _config(flags: Flags, run: _Run) -> FewShotConfig:
    config: Any = fewshot.preset_config(run.preset, run.dataset, run.method, run.shots)
    return dataclasses.replace(config, method=run.method, data_dir=flags.data_dir, **run.changed)


def _command(run: _Run) -> str:
    words = [f"--preset {run.preset}" if run.preset else f"--dataset {run.dataset}"]
    words += [f"--shots {run.shots}", f"--method {run.method}"]
    words += [f"--{name.replace('_', '-')} {value:g}" for name, value in run.changed.items()]
    return " ".join(words)
