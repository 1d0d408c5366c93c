"""Several workers on one study, and workers that are killed: no trial lost, none counted twice."""

import collections
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from processes import ROOT, free_port, kill

optuna = pytest.importorskip("optuna")

from optuna.trial import TrialState  # noqa: E402

from experiments.sweep import slots as slots_module  # noqa: E402
from experiments.sweep.slots import MOST_ATTEMPTS, Slots  # noqa: E402
from experiments.sweep.studies import opened  # noqa: E402

SPACE = {"x": optuna.distributions.CategoricalDistribution(tuple(range(12)))}
POINTS = [{"x": x} for x in range(12)]

# A worker whose trials take a moment, or last until it is killed.
WORKER = """
import sys, time, optuna
from pathlib import Path
from experiments.sweep import slots
slots.BEAT_SECONDS, slots.GRACE_SECONDS = 1, 3
from experiments.sweep.samplers import make_sampler
from experiments.sweep.studies import open_study, opened
out, seconds, url = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] or None
space = {"x": optuna.distributions.CategoricalDistribution(tuple(range(12)))}
with opened(url, out) as storage:
    study = open_study(
        storage, "s", {}, make_sampler("random", 0), optuna.pruners.NopPruner())
    mine = slots.Slots(study, [{"x": x} for x in range(12)], space)
    while not mine.all_finished():
        taken = mine.take(2)
        with mine.held(taken, storage):
            if taken:
                print("took", flush=True)
                time.sleep(seconds)
            for trial in taken:
                mine.finish(trial, float(trial.params["x"]))
        time.sleep(0.05)
"""


@pytest.fixture
def started():
    """Start Python programs; those that still run at the end are killed."""
    processes = []

    def start(program, *args, **options):
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, args)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        kill(process)


def ended(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def check_each_point_once(out, url=None):
    """Each point of the grid has exactly one finished trial; returns the states of all trials."""
    with opened(url, out) as storage:
        study = optuna.load_study(study_name="s", storage=storage)
        done = [t for t in study.trials if t.state == TrialState.COMPLETE]
        assert sorted(t.params["x"] for t in done) == list(range(12))
        assert all(t.value == t.params["x"] for t in done)
        assert len(Slots(study, POINTS, SPACE).finished()) == 12
        return collections.Counter(trial.state for trial in study.trials)


def test_two_workers_share_a_grid(tmp_path, started):
    workers = [started(WORKER, tmp_path, 0.1, "") for _ in range(2)]
    for process in workers:
        ended(process)
    states = check_each_point_once(tmp_path)
    assert set(states) <= {TrialState.COMPLETE, TrialState.FAIL}


def test_the_trials_of_a_killed_worker_are_taken_up_again(tmp_path, started):
    doomed = started(WORKER, tmp_path, 1000, "")
    assert doomed.stdout.readline() == "took\n"
    kill(doomed)
    ended(started(WORKER, tmp_path, 0.0, ""))
    assert check_each_point_once(tmp_path)[TrialState.FAIL] == 2


@pytest.fixture
def postgresql():
    """The URL of an empty database of a PostgreSQL server that runs during the test."""
    pytest.importorskip("psycopg")
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), shutil.which("initdb")]
    if not (initdb := found[0]):
        pytest.skip("PostgreSQL is not installed")
    place = Path(tempfile.mkdtemp())
    # The server refuses to run as root.
    other = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if other:
        shutil.chown(place, "postgres")
    port = free_port()

    def run(program, *args):
        command = [*other, str(Path(initdb).with_name(program)), "-D", str(place / "data"), *args]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    run("initdb", "-A", "trust", "-U", "me")
    options = f"-k {place} -h 127.0.0.1 -p {port}"
    run("pg_ctl", "-o", options, "-l", str(place / "log"), "-w", "start")
    yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-m", "fast", "stop")
    shutil.rmtree(place)


@pytest.mark.slow
def test_workers_on_postgresql_one_of_them_killed(tmp_path, started, postgresql):
    doomed = started(WORKER, tmp_path, 1000, postgresql)
    others = [started(WORKER, tmp_path, 0.1, postgresql) for _ in range(2)]
    assert doomed.stdout.readline() == "took\n"
    kill(doomed)
    for process in others:
        ended(process)
    assert check_each_point_once(tmp_path, postgresql)[TrialState.FAIL] >= 2


# ---- the rules, in one process


def test_on_sqlite_a_worker_that_reads_keeps_the_others_from_writing(tmp_path):
    """Else two workers could both read that a trial waits, and both take it."""
    with opened(None, tmp_path) as storage, storage.engine.begin() as reading:
        reading.exec_driver_sql("SELECT * FROM trials")
        with contextlib.closing(sqlite3.connect(tmp_path / "study.db", timeout=0)) as other:
            other.execute("SELECT * FROM trials").fetchall()
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("DELETE FROM trials")


@pytest.fixture
def study():
    return optuna.create_study(direction="maximize")


def slots_of(study):
    return Slots(study, POINTS[:3], SPACE)


def values(slots):
    return sorted(trial.value for trial in slots.finished())


def test_a_slot_that_was_filled_twice_counts_once(study):
    slots = slots_of(study)
    slots.refill(3)
    study.enqueue_trial(POINTS[0], user_attrs={"slot": 0})  # as another worker does meanwhile
    taken = slots.take(10)
    assert [trial.params["x"] for trial in taken] == [0, 1, 2]
    for trial in taken:
        assert slots.finish(trial, float(trial.params["x"]))
    assert values(slots) == [0, 1, 2] and slots.all_finished()
    assert slots.take(10) == []


def test_no_more_trials_are_added_than_a_worker_takes(study):
    slots = Slots(study, [{}] * 100, {"x": optuna.distributions.FloatDistribution(0, 1)})
    slots.take(2)
    assert len(study.trials) == 2
    study.enqueue_trial({}, user_attrs={"slot": 50})  # another worker is about to take it
    assert len(slots.take(2)) == 2 and len(study.trials) == 4


def test_a_trial_that_failed_meanwhile_does_not_count(study):
    slots = slots_of(study)
    first, *_ = slots.take(3)
    study.tell(first.number, state=TrialState.FAIL)  # its worker was silent for too long
    (again,) = slots.take(3)
    assert again.params == first.params and again.number != first.number
    assert not slots.finish(first, 9.0)
    assert slots.finish(again, 0.0)
    assert values(slots) == [0]


def test_released_trials_are_taken_at_once_and_keep_their_values(study):
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    slots = Slots(study, [{}], space)
    before = slots.take(1)
    slots.release(before)
    after = slots.take(1)
    assert before[0].params == after[0].params


def test_a_slot_whose_workers_always_die_is_given_up(study):
    slots = Slots(study, POINTS[:1], SPACE)
    for _ in range(MOST_ATTEMPTS):
        assert not slots.all_finished()
        (trial,) = slots.take(1)
        study.tell(trial.number, state=TrialState.FAIL)
    assert slots.take(1) == [] and slots.all_finished() and slots.given_up() == [0]
    assert slots.finished() == []


def test_releasing_does_not_count_as_an_attempt(study):
    slots = Slots(study, POINTS[:1], SPACE)
    for _ in range(MOST_ATTEMPTS + 1):
        slots.release(slots.take(1))
    assert slots.take(1)


def test_a_worker_killed_before_its_first_sign_of_life(study, monkeypatch):
    now, grace = time.monotonic(), slots_module.GRACE_SECONDS
    monkeypatch.setattr(slots_module.time, "monotonic", lambda: now)
    slots = slots_of(study)
    (silent,) = slots.take(1)
    assert silent.number not in [trial.number for trial in slots.take(3)]
    now += grace / 2  # it is seen for the first time
    assert slots.take(3) == []
    now += grace + 1
    taken = slots.take(3)
    assert silent.params in [trial.params for trial in taken]


# ---- the command


RUN = ["--data=glyphs", "--tasks=2", "--samples-per-task=40", "--glances=1", "--width=8"]
SWEEP = [*RUN, "--space", "inner_lr=0.1,0.2", "mask_lr=0.1,1", "--sampler=grid", "--batch=2"]


COMMAND = """
import sys
from experiments import sweep
from experiments.sweep import slots
slots.BEAT_SECONDS, slots.GRACE_SECONDS = 1, 4
sweep.main(["continual", *sys.argv[1:]])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_a_stopped_command_is_finished_by_another(number, tmp_path, started):
    words = [*SWEEP, f"--out={tmp_path / 'a'}"]
    process = started(COMMAND, *words, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    while not process.stdout.readline().startswith("trial "):
        assert process.poll() is None, process.communicate()
    process.send_signal(number)  # two of four trials are done
    _, errors = process.communicate(timeout=300)
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
        (line,) = errors.splitlines()
        assert "continue with: python -m experiments.sweep continual" in line
    again = started(COMMAND, *words)
    printed, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "best of 4 trials" in printed
    (winner,) = (tmp_path / "a").glob("winner-*")
    assert (winner / "result.json").exists()
