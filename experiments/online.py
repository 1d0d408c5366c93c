"""Online learning on a switching stream: predict, learn, go on; report.

python -m experiments.online --p 0.98 --method sparse-cmaml --seeds 5
python -m experiments.online --p 0.9 --method online-adam --data glyphs
python -m experiments.online --resume runs/online/...
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import cli, runs

if TYPE_CHECKING:
    from jaxsparse.data import SwitchingData
    from jaxsparse.training import RunFolder
    from jaxsparse.training.online import OnlineConfig

_STREAMS = {"real": "omniglot-mnist-fashion", "glyphs": "glyphs"}


def experiment() -> runs.Experiment:
    """The command line of online learning."""
    from experiments import online_presets as presets
    from jaxsparse.training.online import OnlineConfig

    return runs.Experiment(
        name="online",
        config_type=OnlineConfig,
        hints={"p": "0.98", "method": "sparse-cmaml", "data": "real"},
        preset=lambda f: presets.preset_config(f.p, f.method, f.data),
        describe=presets.describe,
        label=lambda c: f"p{c.p:g}-{c.data}-{c.method}",
        presets=False,
        unit="interval",
    )


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run or resume, and report."""
    cli.leave_on_signal()
    # Imported here and not above: Ctrl-C during these seconds is one line, too.
    from experiments.report import OnlineReport

    with cli.one_line_errors():
        own = experiment()
        opened = runs.open_run(own, list(sys.argv[1:] if args is None else args))
        config, folder = opened.config, opened.folder
        cli.use_all_cores()
        cli.use_compilation_cache()
        path = folder.path if folder else opened.out
        result = run(config, folder or path, f"{own.prog} --resume {path}")
        OnlineReport(config, path).result(result)


def run(config: "OnlineConfig", place: "RunFolder | Path", resume_command: str) -> dict[str, Any]:
    """The result of a run: as it is there, or learned to the end, with its figures.

    Args:
      config: the run's configuration.
      place: the folder of a run, or where to make a new one.
      resume_command: what goes on with the run when it is stopped.

    Returns:
      The content of result.json.
    """
    from jaxsparse.training.online import check

    folder = None if isinstance(place, Path) else place
    result = folder.result() if folder else None
    if result is None:
        data = load_data(config)
        check(config, data)
        if isinstance(place, Path):
            folder = runs.create_run(experiment(), place, config)
        assert folder is not None
        result = learn(config, data, folder, resume_command)
    assert folder is not None
    draw_figures(folder, result)
    return result


def load_data(config: "OnlineConfig") -> "SwitchingData":
    """The data sets that a configuration names."""
    from jaxsparse.data.switching import load_switching

    return load_switching(_STREAMS[config.data], config.data_dir)


def learn(
    config: "OnlineConfig", data: "SwitchingData", folder: "RunFolder", resume_command: str
) -> dict[str, Any]:
    """Learn the stream to its end, with a progress bar."""
    from experiments.report import OnlineReport
    from jaxsparse.training.online import run_online

    with OnlineReport(config, folder.path) as report:
        hooks = report.hooks(cli.stop_on_signal(resume_command))
        return run_online(config, data, folder, hooks)


def draw_figures(folder: "RunFolder", result: dict[str, Any]) -> None:
    """Draw the figures of a finished run, unless they are there."""
    from experiments import online_plots

    def draw(path, rows):
        online_plots.draw_run(path, rows, result)

    runs.draw_missing(folder, online_plots.FIGURES, draw)


if __name__ == "__main__":
    main()
