"""Online learning on a switching stream: predict, learn, go on; report.

python -m experiments.online --p 0.98 --method sparse-cmaml --seeds 5
python -m experiments.online --p 0.9 --method online-adam --data glyphs
python -m experiments.online --resume runs/online/...
"""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments import cli, runs, unread

if TYPE_CHECKING:
    from jaxsparse.data import SwitchingData
    from jaxsparse.training.online import OnlineConfig

_STREAMS = {"real": "omniglot-mnist-fashion", "glyphs": "glyphs"}


def experiment() -> runs.Experiment:
    """The command line of online learning."""
    from experiments import online_presets as presets
    from experiments.report import OnlineReport
    from jaxsparse.training.online import OnlineConfig, run_online

    return runs.Experiment(
        name="online",
        config_type=OnlineConfig,
        hints={"p": "0.98", "method": "sparse-cmaml", "data": "real"},
        preset=lambda f: presets.preset_config(f.p, f.method, f.data),
        describe=presets.describe,
        label=lambda c: f"p{c.p:g}-{c.data}-{c.method}",
        load=load_data,
        learn=run_online,
        report=OnlineReport,
        figures=_figures,
        reads=unread.ONLINE,
        presets=False,
        unit="interval",
    )


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run or resume, and report."""
    with cli.command():
        # Imported here and not above: Ctrl-C during these seconds is one line, too.
        from experiments.report import OnlineReport
        from jaxsparse.training.errors import trusting

        own = experiment()
        opened = runs.open_run(own, list(sys.argv[1:] if args is None else args))
        cli.use_all_cores()
        cli.use_compilation_cache()
        cli.start_backend()
        folder, result = runs.run(own, opened.config, opened.place, opened.resume_command)
        with trusting(folder.path / "result.json"):
            OnlineReport(opened.config, folder.path).result(result)
        runs.draw_missing(own, folder, result)


def load_data(config: "OnlineConfig") -> "SwitchingData":
    """The data sets that a configuration names, checked to hold its tasks."""
    from jaxsparse.data.switching import load_switching
    from jaxsparse.training.online import check

    data = load_switching(_STREAMS[config.data], config.data_dir)
    check(config, data)
    _check_size(config, data)
    return data


def _check_size(config: "OnlineConfig", data: "SwitchingData") -> None:
    """Refuse what cannot be held in memory."""
    import jax

    from jaxsparse.training import memory
    from jaxsparse.training.online import make_program
    from jaxsparse.training.online.config import PRETRAINED_METHODS
    from jaxsparse.training.online.pretrain import make_pretraining

    def state() -> int:
        key, pretrained = jax.random.key(config.seed), ()
        if config.method in PRETRAINED_METHODS:
            pretrained = jax.eval_shape(make_pretraining(config, data).init, key).best
        return memory.bytes_of(jax.eval_shape(make_program(config, data).init, key, pretrained))

    batch = 8 * config.ways * config.shots * math.prod(data.images.shape[1:])
    memory.check_fits(
        config.seeds
        * (4000 * (config.width + 100) ** 2 + 20 * config.timesteps + config.capacity * batch),
        lambda: config.seeds * state(),
        f"seeds {config.seeds} of width {config.width} with timesteps {config.timesteps} and"
        f" capacity {config.capacity}",
    )


def _figures():
    from experiments import online_plots  # not above: drawing is a slow import, wanted at the end

    return online_plots.FIGURES


if __name__ == "__main__":
    main()
