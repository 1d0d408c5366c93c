"""Tables S2, S6 and S9 with --sweep: the settings that our sweeps choose, and the paper's.

The paper does not print the ranges that it searched. Ours are around its choices.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from experiments import cli, continual, fewshot, online, published, runs, unread
from experiments.report import percent
from experiments.sweep import results
from experiments.sweep.tuned import Tuned, TunedContinual, TunedFewShot, TunedOnline
from experiments.tables import continual as streams
from experiments.tables import online as switching
from experiments.tables.flags import Flags
from experiments.tables.markdown import Lines, header, row
from experiments.tables.paper_few_shot import SHOTS
from experiments.tables.runner import Runner
from experiments.tables.scales import METHODS, SETTINGS
from jaxsparse.training.errors import trusting

# Setting -> its range; those that a method does not read are left out.
RANGES = {
    "S2": {"inner_lr": "0.05:0.5:log", "mask_lr": "0.001:0.05:log"},
    "S6": {"inner_lr": "0.03:0.3:log", "mask_lr": "0.1:3:log", "glances": "5,10"},
    "S9": {"inner_lr": "0.01:0.5:log", "mask_lr": "0.0003:0.03:log"},
}
TRIALS = {"paper": 64, "cpu": 16}
# What differs from the paper's streams with --scale cpu; few-shot runs are in scales.py.
SMALL: dict[str, dict[str, Any]] = {
    "S6": {"data": "glyphs", "tasks": 10, "samples_per_task": 200},
    "S9": {"data": "glyphs", "timesteps": 1000, "width": 32},
}


class Plan(NamedTuple):
    """A sweep of a table.

    Attributes:
      label: the start of its row.
      name: its folder.
      tuned: the family.
      config: the configuration of the run.
      ranges: setting -> range.
      paper: the paper's choice.
    """

    label: str
    name: str
    tuned: Tuned
    config: Any
    ranges: dict[str, str]
    paper: str


def table_s2(flags: Flags, runner: Runner) -> Lines:
    """Table S2: few-shot learning."""
    return _table(flags, runner, _few_shot_plans(flags))


def table_s6(flags: Flags, runner: Runner) -> Lines:
    """Table S6: streams of digits."""
    return _table(flags, runner, _stream_plans(flags))


def table_s9(flags: Flags, runner: Runner) -> Lines:
    """Table S9: switching streams."""
    return _table(flags, runner, _online_plans(flags))


def _few_shot_plans(flags: Flags) -> Iterator[Plan]:
    tuned = TunedFewShot(cast(runs.Family, fewshot))
    (published_setting,) = SETTINGS["table S2", "paper"]
    (setting,) = SETTINGS["table S2", flags.scale]
    for shots in SHOTS:
        for method in setting.methods:
            name, config = setting.run(flags, shots, method)
            label = f"{setting.label}, {shots}-shot, {METHODS[method]}"
            plan = _plan("S2", flags, label, name, tuned, config)
            paper = published_setting.config(flags, shots, method)
            values = ", ".join(f"{getattr(paper, setting_):g}" for setting_ in plan.ranges)
            yield plan._replace(paper=values)


def _stream_plans(flags: Flags) -> Iterator[Plan]:
    tuned = TunedContinual(cast(runs.Family, continual))
    for stream in flags.streams:
        for method in streams.SPARSE:
            config = _scaled("S6", flags, streams.cell_config(flags, stream, method))
            name, values = f"{stream}-{method}", published.TABLE_S6[stream, method]
            plan = _plan("S6", flags, f"{stream}, {method}", name, tuned, config)
            yield plan._replace(paper=", ".join(f"{value:g}" for value in values))


def _online_plans(flags: Flags) -> Iterator[Plan]:
    tuned = TunedOnline(cast(runs.Family, online))
    for p in flags.p:
        for method in flags.methods or switching.S9_METHODS:
            config = _scaled("S9", flags, switching.cell_config(flags, p, method))
            name, (_, rates) = f"p{p:g}-{method}", published.TABLE_S9.get((method, p), (None, "-"))
            plan = _plan("S9", flags, f"p = {p:g}, {method}", name, tuned, config)
            yield plan._replace(paper=rates)


def _scaled(table: str, flags: Flags, config: Any) -> Any:
    return dataclasses.replace(config, **(SMALL[table] if flags.scale == "cpu" else {}))


def _plan(table: str, flags: Flags, label: str, name: str, tuned: Tuned, config: Any) -> Plan:
    reads = tuned.family.READS
    ranges = {n: r for n, r in RANGES[table].items() if unread.is_read(reads, config, n)}
    return Plan(label, f"sweep-{table}-{flags.scale}-{name}", tuned, config, ranges, "-")


def _table(flags: Flags, runner: Runner, plans: Iterator[Plan]) -> Lines:
    """A row for each sweep that is there or is run now."""
    rows, value = [], ""
    for plan in plans:
        value = plan.tuned.VALUE
        if runner.missing:
            _run(plan, TRIALS[flags.scale], runner)
        out = runner.place / plan.name
        trials = results.trials_of(out, dataclasses.asdict(plan.config))
        if trials:
            with trusting(out / results.TRIALS):
                rows.append(_row(plan, runner, trials))
    lines = [
        "Settings chosen by sweeps, and the paper's. The value of a trial is, in %, the"
        f" {value}; the winner is run with the run's own seeds. `--scale {flags.scale}`.",
        "",
    ]
    if flags.scale == "cpu":
        lines[1:1] = ["Ours are not in the paper's setting: its choice need not be the best here."]
    return [
        *lines,
        *header("sweep", "settings", "chosen", "paper", "complete trials", "value", "winner"),
        *rows,
    ]


def _row(plan: Plan, runner: Runner, trials: list[dict[str, Any]]) -> str:
    best = trials[0]
    folder = runs.open_if_there(
        results.winner_path(runner.place / plan.name, best["trial"]), plan.tuned.family.UNIT
    )
    result = folder.result() if folder else None
    ranges = " ".join(f"{name}={values}" for name, values in plan.ranges.items())
    chosen = ", ".join(f"{best['params'][name]:.3g}" for name in plan.ranges)
    winner = "-" if result is None else percent(plan.tuned.tested(result))
    cells = (chosen, plan.paper, str(len(trials)), percent(best["value"]), winner)
    return row(plan.label, ranges, *cells)


def _run(plan: Plan, trials: int, runner: Runner) -> None:
    """Run or finish the sweep."""
    cli.need_optuna("--sweep")
    from experiments.sweep.definition import OwnFlags, make_sweep
    from experiments.sweep.search import finish
    from experiments.sweep.space import parse_space

    words = tuple(f"{name}={values}" for name, values in plan.ranges.items())
    config = runs.with_absolute_paths(plan.config)
    held_out = plan.tuned.held_out(config, config.seeds)
    space = parse_space(words, held_out, plan.tuned.PROBLEM)
    flags = OwnFlags(space=words, trials=trials, out=runner.place / plan.name)
    finish(make_sweep(plan.tuned, config, space, flags, runner.command))
