"""Work on the study of a sweep, then run and test the winner once."""

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.pruners import MedianPruner, NopPruner
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from experiments import cli, runs
from experiments.sweep.definition import Sweep
from experiments.sweep.report import SweepReport, ranked
from experiments.sweep.results import winner_path
from experiments.sweep.samplers import make_sampler
from experiments.sweep.slots import Slots
from experiments.sweep.studies import open_study, opened
from experiments.sweep.work import WAIT_SECONDS, work
from jaxsparse.training import RunError, Stopped, writing
from jaxsparse.training.errors import reading, trusting
from jaxsparse.training.files import replace_text
from jaxsparse.training.rows import to_json


def finish(sweep: Sweep) -> None:
    """Work on the study until it is done, report, and run and test the winner."""
    with searched(sweep) as (storage, trials):
        _finish_winner(sweep, storage, trials[0])


@contextmanager
def searched(sweep: Sweep) -> Iterator[tuple[RDBStorage, list[FrozenTrial]]]:
    """The database, and the trials with a value from the best on, after working on all of them."""
    # Fail before anything is written, and not after all trials.
    data = sweep.tuned.load_data(sweep.tuned.held_out(sweep.config, sweep.flags.trial_seeds))
    with opened(sweep.flags.storage, sweep.out) as storage:
        slots = _slots(sweep, storage)
        _claim_folder(sweep)
        with (
            cli.saving_on_signal(sweep.command) as should_stop,
            SweepReport(sweep, slots) as report,
        ):
            work(sweep, slots, storage, data, report, should_stop)
        report.table()
        trials = ranked(slots.finished())
        if not trials:
            raise RunError(f"{sweep.name}: no trial has a value, all were pruned or given up")
        report.figures()
        yield storage, trials


def _slots(sweep: Sweep, storage: RDBStorage) -> Slots:
    sampler = make_sampler(sweep.flags.sampler, sweep.flags.sampler_seed)
    pruner = MedianPruner(n_warmup_steps=1) if sweep.flags.prune else NopPruner()
    study = open_study(storage, sweep.name, sweep.setup(), sampler, pruner)
    return Slots(study, sweep.points, sweep.space)


def _claim_folder(sweep: Sweep) -> None:
    """Note in the folder which sweep it holds; RunError if it holds another one."""
    path = sweep.out / "sweep.json"
    ours = {"study": sweep.name, **sweep.setup()}
    if path.exists():
        with reading(path):
            theirs = json.loads(path.read_text(encoding="utf-8"))
        if theirs != ours:
            raise RunError(f"{sweep.out} holds another sweep; choose another --out")
        return
    with writing(path):
        sweep.out.mkdir(parents=True, exist_ok=True)
        replace_text(path, to_json(ours))


def _finish_winner(sweep: Sweep, storage: RDBStorage, best: FrozenTrial) -> None:
    """Run the winner on all seeds and test it; one worker does, also if one of them is killed.

    The run is a study of its own with one slot, so the rules of trials hold for it too.
    """
    setup = {"winner": best.number, **sweep.setup()}
    name = f"{sweep.name}, winner: trial {best.number}"
    sampler = make_sampler("random", 0)
    slots = Slots(open_study(storage, name, setup, sampler, NopPruner()), [{}], {})
    taken: list[Any] = []
    with cli.saving_on_signal(sweep.command) as should_stop:
        told = False
        while not (taken or slots.all_finished()):
            if should_stop():
                raise Stopped("stopped while another worker runs the winner")
            taken = slots.take(1)
            if not taken:
                if not told:
                    cli.say(f"another worker runs the winner, trial {best.number}")
                told = True
                time.sleep(WAIT_SECONDS)
    if taken:
        with slots.held(taken, storage):
            slots.finish(taken[0], _run_winner(sweep, best))
    elif finished := slots.finished():
        value = 100 * (finished[0].value or 0)
        cli.say(f"winner: trial {best.number}, {value:.2f}% {sweep.tuned.TEST}")


def _run_winner(sweep: Sweep, best: FrozenTrial) -> float:
    """Run or resume the winner's run, print its result, and return its test accuracy."""
    family = sweep.tuned.family
    config = dataclasses.replace(sweep.config, **best.params)
    path = winner_path(sweep.out, best.number)
    folder = runs.open_if_there(path, family.UNIT)
    if folder is not None and not runs.same_run(runs.stored_config(family, folder), config):
        raise RunError(f"{path} holds another run; choose another --out")
    record = {"sweep": {"study": sweep.name, "trial": best.number, "value": best.value}}
    folder, result = runs.run(family, config, folder or path, sweep.command, **record)
    with trusting(folder.path / "result.json"):
        family.Report(config, folder.path).result(result, folder)
    runs.draw_missing(family, folder, result)
    return sweep.tuned.tested(result)
