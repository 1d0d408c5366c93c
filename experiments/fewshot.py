"""Few-shot learning: train, validate, test, report.

python -m experiments.fewshot --shots=5
python -m experiments.fewshot --dataset omniglot --method fomaml --seeds 5
python -m experiments.fewshot --resume runs/fewshot/...
"""

import argparse
import dataclasses
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from experiments import cli

if TYPE_CHECKING:
    from jaxsparse.training import FewShotConfig, RunFolder

PROG = "python -m experiments.fewshot"


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run or resume, and report."""
    cli.leave_on_signal()
    # Imported here and not above: Ctrl-C during these seconds is one line, too.
    from experiments.report import ConsoleReport
    from jaxsparse.training import largest_share, make_learner

    with cli.one_line_errors():
        config, folder, out = open_run(list(sys.argv[1:] if args is None else args))
        cli.use_cores(largest_share(config, len(os.sched_getaffinity(0))))
        result = folder.result() if folder else None
        if result is None:
            data = load_data(config)
            make_learner(config, data["train"].image_shape)  # refuses what cannot be built
            folder = folder or create_run(out, config)
            result = train(config, data, folder)
        assert folder is not None
        draw_figures(folder)
        ConsoleReport(config, folder.path).result(result, folder.rows())


def open_run(args: list[str]) -> tuple["FewShotConfig", "RunFolder | None", Path]:
    """The configuration, the folder of a run to resume (None: a new run), a new run's place."""
    from experiments import presets
    from jaxsparse.training import FewShotConfig, RunError, RunFolder

    @dataclasses.dataclass(frozen=True)
    class Flags:
        config: FewShotConfig
        preset: str | None = None
        """settings to start from; listed below"""
        out: Path | None = None
        """folder for the run; default: a new one under runs/fewshot"""
        resume: Path | None = None
        """folder of a run to go on with; its configuration is used"""

    first = _first_look(args)
    folder = RunFolder.open(Path(first.resume)) if first.resume else None
    if folder is None:
        config = presets.preset_config(first.preset, first.dataset, first.method, first.shots)
    else:
        config = _stored_config(folder)
    try:
        flags = cli.parse(Flags, args, Flags(config), PROG)
    except SystemExit as stop:
        if not stop.code:
            print(presets.describe())
        raise
    if folder is not None and flags.config != config:
        differences = cli.differing(dataclasses.asdict(flags.config), dataclasses.asdict(config))
        raise RunError(f"--resume {flags.resume}: another configuration: {differences}")
    out = flags.out or _new_run_path(flags.config)
    if folder is None:
        RunFolder.check_new(out)
    return flags.config, folder, out


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


def create_run(path: Path, config: "FewShotConfig") -> "RunFolder":
    """The folder of a new run, with what is needed to tell how its numbers were made."""
    import jax

    import jaxsparse
    from jaxsparse.training import RunFolder

    record = {
        "experiment": "fewshot",
        "config": dataclasses.asdict(config),
        "versions": {"jaxsparse": jaxsparse.__version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }
    return RunFolder.create(path, record)


def train(config: "FewShotConfig", data: dict[str, Any], folder: "RunFolder") -> dict[str, Any]:
    """Run to the end, with a progress bar."""
    from experiments.report import ConsoleReport
    from jaxsparse import training

    cli.use_compilation_cache()
    with ConsoleReport(config, folder.path) as report:
        hooks = report.hooks(cli.stop_on_signal(f"{PROG} --resume {folder.path}"))
        return training.run(config, data, folder, hooks)


def draw_figures(folder: "RunFolder") -> None:
    """Draw the figures of a finished run, unless they are there."""
    from experiments import plots
    from jaxsparse.training import writing

    # Asked of every finished run: one may have been killed between its result and its figures.
    if not all((folder.path / name).exists() for name in plots.FIGURES):
        with writing(folder.path):
            plots.draw_run(folder.path, folder.rows())


def _first_look(args: list[str]) -> argparse.Namespace:
    """The flags that decide the defaults of the others; errors are left to the full parse."""

    class Lenient(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

    parser = Lenient(add_help=False, allow_abbrev=False)
    for name in ("--preset", "--dataset", "--resume"):
        parser.add_argument(name)
    parser.add_argument("--method", default="sparse-maml")
    parser.add_argument("--shots", type=int, default=5)
    try:
        return parser.parse_known_args(args)[0]
    except ValueError:
        return parser.parse_args([])


def _stored_config(folder: "RunFolder") -> "FewShotConfig":
    from jaxsparse.training import FewShotConfig, RunError

    try:
        return FewShotConfig(**folder.config()["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder.path / 'config.json'} is no few-shot run: {error}") from error


def _new_run_path(config: "FewShotConfig") -> Path:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    task = f"{config.dataset}-{config.ways}way-{config.shots}shot"
    return Path("runs/fewshot") / f"{task}-{config.method}-{now}"


if __name__ == "__main__":
    main()
