"""Runs that are killed, at random or chosen moments, end with the bits of an uninterrupted run.

A kill at a chosen moment is an exception that nothing catches. It is raised just before or after a
run writes.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import time

import numpy as np
import pytest
from processes import finish, kill, kill_at_random, outcome, start

from jaxsparse import nn
from jaxsparse.data import ImageSet, LabelledSet, streams
from jaxsparse.data.switching import side_by_side
from jaxsparse.training import Hooks, RunFolder
from jaxsparse.training.checkpoints import Checkpoints
from jaxsparse.training.continual import ContinualConfig, Rates, run_stream, scan_stream
from jaxsparse.training.online import OnlineConfig, run_online

STREAM = ["--data=glyphs", "--tasks=12", "--samples-per-task=400", "--width=16", "--memories=50"]
ONLINE = ["--data=glyphs", "--timesteps=4000", "--ways=3", "--shots=2", "--width=8", "--p=0.9"]
RUNS = {
    "continual": ["continual", *STREAM, "--glances=150", "--seeds=2"],
    "online": ["online", *ONLINE, "--inner-steps=4", "--seeds=2"],
    "pretraining": [
        *("online", *ONLINE, "--method=maml", "--inner-steps=2", "--timesteps=400"),
        *("--pretrain-epochs=30", "--pretrain-patience=30", "--pretrain-steps=20"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_twenty_times_a_stream_ends_the_same(name, tmp_path):
    (experiment, *flags), whole, run = RUNS[name], tmp_path / "whole", tmp_path / "run"

    def options(cache):
        return {"save_seconds": 0.3, "env": {**os.environ, "JAXSPARSE_CACHE": str(cache)}}

    finish(experiment, [*flags, f"--out={whole}"], **options(tmp_path / "cache"))
    own = [*flags, f"--out={run}"]
    kill_at_random(
        experiment, own, run, kills=20, longest=15.0, **options(tmp_path / "other cache")
    )
    finish(
        experiment,
        [f"--resume={run}"] if (run / "config.json").exists() else own,
        **options(tmp_path / "other cache"),
    )
    assert outcome(run) == outcome(whole)


@contextlib.contextmanager
def on_one_core():
    """Processes started within have one core, or all cores if the system has no affinities."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.slow
def test_a_killed_stream_ends_the_same_on_one_core(tmp_path):
    flags = ["--data=glyphs", "--tasks=3", "--samples-per-task=100", "--glances=2"]
    flags = [*flags, "--seeds=3", "--memories=100"]  # sizes whose sums XLA divides among threads
    finish("continual", [*flags, f"--out={tmp_path / 'whole'}"])
    run = tmp_path / "run"
    process = start("continual", [*flags, f"--out={run}"])
    while not (run / "checkpoints" / "2").exists() and process.poll() is None:
        time.sleep(0.01)
    kill(process)
    (run / "result.json").unlink(missing_ok=True)
    with on_one_core():
        finish("continual", [f"--resume={run}"])
    assert outcome(run) == outcome(tmp_path / "whole")


# ---- at chosen moments


class Killed(BaseException):
    """Nothing catches it, and only context managers do anything after it."""


class Writes:
    """Counts the moments before and after each write of a run, and kills the run at one of them."""

    def __init__(self, monkeypatch):
        self.count, self.last = 0, float("inf")
        for owner, name in (
            (RunFolder, "add_row"),
            (RunFolder, "log_timing"),
            (RunFolder, "write_result"),
            (RunFolder, "keep_rows"),
            (Checkpoints, "save"),
        ):
            monkeypatch.setattr(owner, name, self.around(getattr(owner, name)))

    def around(self, write):
        @functools.wraps(write)
        def counted(*args, **options):
            self.tick()
            write(*args, **options)
            self.tick()

        return counted

    def tick(self):
        self.count += 1
        if self.count > self.last:
            raise Killed

    def kill_after(self, moments):
        self.count, self.last = 0, moments


def killed_again_and_again(writes, run, folder, every):
    """Kill `run` after 1, 1 + every, ... of these moments, until it ends; its rows, its result."""
    for moments in range(1, 1000, every):
        writes.kill_after(moments)
        try:
            result = run(folder)
        except Killed:
            folder = RunFolder.open(folder.path, folder.unit)
            continue
        assert moments > 5
        return folder.rows(), result
    raise AssertionError("it never ends")


def assert_ends_alike(monkeypatch, run, tmp_path, unit, every):
    whole = RunFolder.create(tmp_path / "whole", {}, unit)
    result = run(whole)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # pretrain again, and kill that, too
    writes = Writes(monkeypatch)
    folder = RunFolder.create(tmp_path / "run", {}, unit)
    assert killed_again_and_again(writes, run, folder, every) == (whole.rows(), result)
    assert outcome(tmp_path / "run")[2] == outcome(tmp_path / "whole")[2]


def digits(seed, count):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (count, 5, 5, 1), dtype=np.uint8)
    return LabelledSet(images, rng.integers(3, size=count).astype(np.int32), (0.1,), (0.7,), 3)


TASKS = streams.permutations(digits(0, 40), digits(1, 20), tasks=2)
LEARNER = ContinualConfig(
    method="er", stream="permutations", tasks=2, samples_per_task=8, batch_size=4, glances=1,
    memories=6, replay_batch_size=3, width=4, seeds=2,
)  # fmt: skip


# Quick in CI, and at every moment among the slow tests.
EVERY = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])


@EVERY
def test_a_stream_killed_at_its_writes(tmp_path, monkeypatch, every):
    def run(folder):
        return run_stream(LEARNER, TASKS, folder, Hooks())

    assert_ends_alike(monkeypatch, run, tmp_path, "task", every)


@EVERY
@pytest.mark.slow
def test_a_scan_killed_at_its_writes(tmp_path, monkeypatch, every):
    config = dataclasses.replace(LEARNER, validation=True)
    grid = [Rates(0.1, 1.0, 0.05), Rates(0.1, 1.0, 0.1)]
    assert_ends_alike(
        monkeypatch,
        lambda folder: scan_stream(config, grid, TASKS, folder, Hooks()),
        tmp_path,
        "task",
        every,
    )


@EVERY
@pytest.mark.slow
def test_a_pretrained_run_killed_at_its_writes(tmp_path, monkeypatch, every):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, 4, 16, 16, 1), dtype=np.uint8)
    names = tuple(map(str, range(12)))
    letters = ImageSet(images, np.full(12, 4, np.int32), names, (0.0,), (1.0,))
    data = side_by_side({"a": letters, "b": letters, "c": letters})
    config = OnlineConfig(
        method="fine-tuning", timesteps=6, log_every=3, ways=3, shots=1, width=4, inner_steps=1,
        pretrain_steps=1, pretrain_epochs=2, pretrain_batch_size=1,
    )  # fmt: skip
    monkeypatch.setattr(nn, "conv4", lambda ways, width, shape, **_: nn.mlp(ways, (width,), shape))
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))

    def run(folder):
        return run_online(config, data, folder, Hooks())

    assert_ends_alike(monkeypatch, run, tmp_path, "interval", every)
    (pretrained,) = (tmp_path / "cache" / "pretrained").iterdir()
    json.loads((pretrained / "result.json").read_text())
