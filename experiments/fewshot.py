"""Few-shot learning: train, validate, test, report.

python -m experiments.fewshot --shots=5
python -m experiments.fewshot --dataset omniglot --method fomaml --seeds 5
python -m experiments.fewshot --resume runs/fewshot/...
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments import cli, runs

if TYPE_CHECKING:
    from jaxsparse.training import FewShotConfig, RunFolder


def experiment() -> runs.Experiment:
    """The command line of few-shot learning."""
    from experiments import presets
    from jaxsparse.training import FewShotConfig

    return runs.Experiment(
        name="fewshot",
        config_type=FewShotConfig,
        hints={"dataset": None, "method": "sparse-maml", "shots": 5},
        preset=lambda f: presets.preset_config(f.preset, f.dataset, f.method, f.shots),
        describe=presets.describe,
        label=lambda c: f"{c.dataset}-{c.ways}way-{c.shots}shot-{c.method}",
    )


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run or resume, and report."""
    cli.leave_on_signal()
    # Imported here and not above: Ctrl-C during these seconds is one line, too.
    from experiments.report import FewShotReport
    from jaxsparse.training import largest_share, make_learner

    with cli.one_line_errors():
        own = experiment()
        opened = runs.open_run(own, list(sys.argv[1:] if args is None else args))
        config, folder = opened.config, opened.folder
        cli.use_cores(largest_share(config, len(os.sched_getaffinity(0))))
        result = folder.result() if folder else None
        if result is None:
            data = load_data(config)
            make_learner(config, data["train"].image_shape)  # refuses what cannot be built
            folder = folder or runs.create_run(own, opened.out, config)
            result = train(config, data, folder, own.prog)
        assert folder is not None
        draw_figures(folder)
        FewShotReport(config, folder.path).result(result, folder.rows())


def load_data(config: "FewShotConfig") -> dict[str, Any]:
    """The three splits, checked to hold the tasks that are asked for."""
    from jaxsparse import data

    splits = {}
    for split in ("train", "validation", "test"):
        splits[split] = data.load(
            config.dataset, split, data_dir=config.data_dir, image_size=config.image_size
        )
        data.check_episode(splits[split], config.ways, config.shots, config.query_shots)
    return splits


def train(
    config: "FewShotConfig", data: dict[str, Any], folder: "RunFolder", prog: str
) -> dict[str, Any]:
    """Run to the end, with a progress bar."""
    from experiments.report import FewShotReport
    from jaxsparse import training

    cli.use_compilation_cache()
    with FewShotReport(config, folder.path) as report:
        hooks = report.hooks(cli.stop_on_signal(f"{prog} --resume {folder.path}"))
        return training.run(config, data, folder, hooks)


def draw_figures(folder: "RunFolder") -> None:
    """Draw the figures of a finished run, unless they are there."""
    from experiments import plots

    runs.draw_missing(folder, plots.FIGURES, plots.draw_run)


if __name__ == "__main__":
    main()
