"""Few-shot learning: train, validate, test, report.

python -m experiments.fewshot --shots=5
python -m experiments.fewshot --dataset omniglot --method fomaml --seeds 5
python -m experiments.fewshot --resume runs/fewshot/...
"""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments import cli, runs, unread

if TYPE_CHECKING:
    from jaxsparse.training import FewShotConfig


def experiment() -> runs.Experiment:
    """The command line of few-shot learning."""
    from experiments import presets
    from experiments.report import FewShotReport
    from jaxsparse import training
    from jaxsparse.training import FewShotConfig

    return runs.Experiment(
        name="fewshot",
        config_type=FewShotConfig,
        hints={"dataset": None, "method": "sparse-maml", "shots": 5},
        preset=lambda f: presets.preset_config(f.preset, f.dataset, f.method, f.shots),
        describe=presets.describe,
        label=lambda c: f"{c.dataset}-{c.ways}way-{c.shots}shot-{c.method}",
        load=load_data,
        learn=training.run,
        report=FewShotReport,
        figures=_figures,
        reads=unread.FEWSHOT,
    )


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run or resume, and report."""
    with cli.command():
        # Imported here and not above: Ctrl-C during these seconds is one line, too.
        from experiments.report import FewShotReport
        from jaxsparse.machine import cores
        from jaxsparse.training import largest_share
        from jaxsparse.training.errors import trusting

        own = experiment()
        opened = runs.open_run(own, list(sys.argv[1:] if args is None else args))
        cli.use_cores(largest_share(opened.config, cores()))
        cli.use_compilation_cache()
        cli.start_backend()
        folder, result = runs.run(own, opened.config, opened.place, opened.resume_command)
        with trusting(folder.path / "result.json"):
            FewShotReport(opened.config, folder.path).result(result, folder.rows())
        runs.draw_missing(own, folder, result)


def load_data(config: "FewShotConfig") -> dict[str, Any]:
    """The three splits, checked to hold the tasks that are asked for, for this network."""
    from jaxsparse import data

    splits = {}
    for split in ("train", "validation", "test"):
        splits[split] = data.load(
            config.dataset, split, data_dir=config.data_dir, image_size=config.image_size
        )
        data.check_episode(splits[split], config.ways, config.shots, config.query_shots)
        data.check_not_blank(splits[split])
    _check_size(config, splits["train"].image_shape)
    return splits


def _check_size(config: "FewShotConfig", image_shape: tuple[int, int, int]) -> None:
    """Refuse what cannot be built, or cannot be held in memory."""
    import jax

    from jaxsparse.training import ConfigError, make_learner, make_program, memory

    steps = config.epochs * config.steps_per_epoch
    if steps >= 2**31:
        raise ConfigError(f"epochs * steps_per_epoch must be below 2^31, got {steps}")
    images = config.meta_batch_size * config.ways * (config.shots + config.query_shots)
    images *= 4 * math.prod(image_shape)
    make_learner(config, image_shape)

    def state() -> int:
        init = make_program(config, image_shape).init
        return memory.bytes_of(jax.eval_shape(init, jax.random.key(config.seed)))

    codes = config.embedding if config.method == "sparse-maml-plus" else 1
    memory.check_fits(
        config.seeds * (4000 * (config.width + 100) ** 2 * codes + images),
        lambda: config.seeds * (state() + images),
        f"seeds {config.seeds} of width {config.width} with meta_batch_size"
        f" {config.meta_batch_size}",
    )


def _figures():
    from experiments import plots  # not above: drawing is a slow import, wanted at the end

    return plots.FIGURES


if __name__ == "__main__":
    main()
