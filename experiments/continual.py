"""Continual learning on a stream of tasks: learn, measure after every task, report.

python -m experiments.continual --stream rotations --method sparse-lamaml --seeds 5
python -m experiments.continual --stream permutations --method er --data glyphs
python -m experiments.continual --stream rotations --scan
python -m experiments.continual --resume runs/continual/...
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import cli, runs

if TYPE_CHECKING:
    from jaxsparse.data import TaskStream
    from jaxsparse.training import RunFolder
    from jaxsparse.training.continual import ContinualConfig


class Grid(NamedTuple):
    """What a scan goes through; of what is empty, only the configuration's own value."""

    inner_lr: tuple[float, ...] = ()
    mask_lr: tuple[float, ...] = ()
    theta_lr: tuple[float, ...] = ()
    glances: tuple[int, ...] = ()

    def or_usual(self, config: "ContinualConfig") -> "Grid":
        """This grid, or where it is empty the usual one of the configuration's method."""
        from jaxsparse.training.continual import META_METHODS

        if any(self):
            return self
        if config.method in META_METHODS:
            return Grid((0.05, 0.1, 0.15), (0.3, 0.75, 1.7), (), (5, 10))
        return Grid(theta_lr=tuple(config.theta_lr * factor for factor in (0.3, 1.0, 3.0)))


def experiment() -> runs.Experiment:
    """The command line of continual learning."""
    from experiments import continual_presets as presets
    from experiments.report import StreamReport
    from jaxsparse.training.continual import ContinualConfig, run_stream

    return runs.Experiment(
        name="continual",
        config_type=ContinualConfig,
        hints={"stream": "rotations", "method": "sparse-lamaml", "data": None, "memories": 0},
        preset=lambda f: presets.preset_config(f.stream, f.method, f.data, f.memories),
        describe=presets.describe,
        label=lambda c: f"{c.stream}-{c.data}-{c.method}",
        load=load_stream,
        learn=run_stream,
        report=StreamReport,
        figures=_figures,
        presets=False,
        blocks=False,
        unit="task",
        extra={
            "scan": (bool, False, "first choose rates and glances on held-out training images"),
            "grid_inner_lr": (
                tuple[float, ...],
                (),
                "alpha_0 to scan; without any grid: 0.05 0.1 0.15, gamma_m 0.3 0.75 1.7 and glances"
                " 5 10, or for methods without a gate the rate of theta times 0.3 1 3",
            ),
            "grid_mask_lr": (tuple[float, ...], (), "gamma_m to scan"),
            "grid_theta_lr": (tuple[float, ...], (), "rates of theta to scan"),
            "grid_glances": (tuple[int, ...], (), "glances to scan"),
        },
    )


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run or resume, and report."""
    cli.leave_on_signal()
    # Imported here and not above: Ctrl-C during these seconds is one line, too.
    from experiments.report import StreamReport

    with cli.one_line_errors():
        own = experiment()
        opened = runs.open_run(own, list(sys.argv[1:] if args is None else args))
        config, more = opened.config, {}
        cli.use_all_cores()
        cli.use_compilation_cache()
        if opened.flags.scan and opened.folder is None:
            load_stream(config)  # refuses here what cannot be run
            given = Grid(*(getattr(opened.flags, f"grid_{name}") for name in Grid._fields))
            grid = given.or_usual(config)
            again = f"the same command with --out {opened.out}"
            config, more["scan"] = scan(config, grid, opened.out, again)
        again = f"{own.prog} --resume {opened.path}"
        folder, result = runs.run(own, config, opened.place, again, **more)
        StreamReport(config, folder.path).result(result)


def load_stream(config: "ContinualConfig") -> "TaskStream":
    """The stream that a configuration names, with the images it is measured on; checked."""
    from jaxsparse import data
    from jaxsparse.data import streams
    from jaxsparse.training.continual import make_program

    train = data.load_labelled(config.data, "train", config.data_dir)
    if config.validation:
        train, test = streams.hold_out(train)
    else:
        test = data.load_labelled(config.data, "test", config.data_dir)
    if config.stream == "split-cifar10":
        stream = streams.split(train, test)
    else:
        build = streams.rotations if config.stream == "rotations" else streams.permutations
        stream = build(train, test, config.tasks, config.data_seed)
    _check(config, stream)
    make_program(config, stream)  # refuses what cannot be run
    return stream


def _check(config, stream):
    from jaxsparse.training import ConfigError

    if stream.num_tasks != config.tasks:
        raise ConfigError(f"tasks must be {stream.num_tasks}, pairs of classes, got {config.tasks}")
    channels = stream.train.images.shape[3]
    if config.augment and channels != 3:
        raise ConfigError(f"augment wants images of 3 channels, {config.data} has {channels}")


def scan(
    config: "ContinualConfig", grid: Grid, out: Path, resume_command: str
) -> tuple["ContinualConfig", list[dict[str, Any]]]:
    """Choose the rates and glances that retain most on held-out training images.

    One program for each number of glances runs the whole grid of rates. Its folders lie beside
    the run's own; a scan that was stopped goes on there.

    Args:
      config: the run's configuration.
      grid: what to choose among.
      out: the run's own folder.
      resume_command: what goes on with the scan when it is stopped.

    Returns:
      The configuration as chosen, and what each point retained.
    """
    from experiments.report import StreamReport
    from jaxsparse.training.continual import Rates, scan_stream

    points = []
    axes = (getattr(grid, name) or (getattr(config, name),) for name in Rates._fields)
    rates = [Rates(*values) for values in itertools.product(*axes)]
    for glances in grid.glances or (config.glances,):
        held_out = dataclasses.replace(config, validation=True, glances=glances)
        folder, of_scan = _scan_folder(out, held_out, rates)
        result = folder.result() if folder else None
        if result is None:
            stream = load_stream(held_out)
            folder = runs.ready_run(
                experiment(), folder or scan_path(out, glances), held_out, stream, **of_scan
            )
            with StreamReport(held_out, folder.path) as report:
                hooks = report.hooks(cli.stop_on_signal(resume_command))
                result = scan_stream(held_out, rates, stream, folder, hooks)
        points += [{"glances": glances, **point} for point in result["points"]]
    best = max(points, key=lambda p: p["retained_accuracy"]["mean"])
    StreamReport(config, out).scan(points, best)
    chosen = {name: best[name] for name in (*Rates._fields, "glances")}
    return dataclasses.replace(config, **chosen), points


def scan_path(out: Path, glances: int) -> Path:
    """Where the scan with this number of glances lies, beside the run's own folder."""
    return out.with_name(f"{out.name}-scan-{glances}-glances")


def _scan_folder(
    out: Path, config: "ContinualConfig", grid: list[Any]
) -> "tuple[RunFolder | None, dict[str, Any]]":
    """The folder of this scan, if there is one, and what a new one's record says of it."""
    from jaxsparse.training import RunError, RunFolder

    path = scan_path(out, config.glances)
    of_scan = {"grid": [rates._asdict() for rates in grid]}
    if not RunFolder.is_there(path):
        return None, of_scan
    folder = RunFolder.open(path, "task")
    stored = runs.stored_config(experiment(), folder)
    if not runs.same_run(stored, config) or folder.config().get("grid") != of_scan["grid"]:
        raise RunError(f"{path} holds another scan; name another --out")
    return folder, of_scan


def _figures():
    from experiments import stream_plots  # not above: drawing is a slow import, wanted at the end

    return stream_plots.FIGURES


if __name__ == "__main__":
    main()
