"""Runs by several processes: the bits of one process, one writer, one line when one ends.

The processes are real ones on the loopback address.
"""

import os
import re
import signal
import time

import jax
import numpy as np
import pytest
from processes import SMALL_NETWORK, free_port, outcome, start
from small_runs import write_images

from experiments import continual, distributed, fewshot
from jaxsparse.training import ConfigError, RunError, RunFolder, processes
from jaxsparse.training.shared_folder import FolderInMemory, held

STREAM = ["--stream=permutations", "--data=glyphs", "--tasks=4", "--samples-per-task=200"]
STREAM += ["--width=20", "--seeds=3", "--memories=50"]
# It lasts until it is stopped.
LONG = [*STREAM, "--width=8", "--glances=60", "--tasks=16"]
ONLINE = ["--data=glyphs", "--method=maml", "--timesteps=30", "--ways=3", "--shots=2", "--width=8"]
ONLINE += ["--p=0.9", "--seeds=3", "--inner-steps=2", "--pretrain-epochs=2", "--pretrain-steps=3"]


@pytest.fixture(scope="module")
def few_shot(tmp_path_factory):
    images = write_images(tmp_path_factory.mktemp("images"))
    return [
        *("--dataset=folder", f"--data-dir={images}", "--image-size=16", "--ways=2", "--shots=1"),
        *("--query-shots=2", "--width=2", "--meta-batch-size=4", "--inner-steps=1", "--seeds=2"),
        *("--test-inner-steps=2", "--epochs=2", "--steps-per-epoch=3", "--val-tasks=20"),
        *("--test-tasks=25", "--blocks=xla"),
    ]


def start_all(experiment, args, count=2, own=lambda number: [], **options):
    """Start the processes of one run, each with one device."""
    port, env = free_port(), {**os.environ, "XLA_FLAGS": one_process_devices(1)}
    joint = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--processes={count}"]
    return [
        start(experiment, [*args, *joint, f"--process={i}", *own(i)], env=env, **options)
        for i in range(count)
    ]


def one_process_devices(count):
    return f"--xla_force_host_platform_device_count={count}"


def ends(started, seconds=120):
    """Exit status and standard error of each process."""
    errors = [process.communicate(timeout=seconds)[1] for process in started]
    return [(p.returncode, error) for p, error in zip(started, errors, strict=True)]


def wait_for(path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.1)


def alone(experiment, args, **options):
    """The same run in one process with two devices."""
    env = {**os.environ, "XLA_FLAGS": one_process_devices(2)}
    assert ends([start(experiment, args, env=env, **options)])[0][0] == 0


def equal_bits(experiment, args, tmp_path, **options):
    two, one = tmp_path / "two", tmp_path / "one"
    started = start_all(experiment, [*args, f"--out={two}"], **options)
    for status, error in ends(started):
        assert (status, error) == (0, ""), error
    alone(experiment, [*args, f"--out={one}"], **options)
    assert outcome(two) == outcome(one)


# ---- bits


def test_two_processes_give_the_bits_of_one_few_shot(few_shot, tmp_path):
    equal_bits("fewshot", few_shot, tmp_path, changes=SMALL_NETWORK)


@pytest.mark.slow  # the test of stopping compares the bits, too
def test_two_processes_give_the_bits_of_one_continual(tmp_path):
    equal_bits("continual", STREAM, tmp_path)


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one_online(tmp_path):
    equal_bits("online", ONLINE, tmp_path)


# ---- ends


@pytest.mark.parametrize("kill", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_stopped_killed_and_resumed_by_other_numbers_of_processes(kill, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    alone("continual", [*LONG, f"--out={whole}"])
    # One process gets a signal: all save once and stop.
    started = start_all("continual", [*LONG, f"--out={run}"])
    wait_for(run / "checkpoints" / "1")
    started[1].send_signal(signal.SIGINT)
    for status, error in ends(started):
        assert status == 128 + signal.SIGINT
        assert re.fullmatch("error: stopped at batch .* and saved; continue with: .*\n", error)
        assert f"--resume {run} --distributed --coordinator=127.0.0.1:" in error
    if kill:
        kill_one_of_three(run)
    # One process goes on to the end.
    alone("continual", [f"--resume={run}"])
    assert outcome(run) == outcome(whole)


def kill_one_of_three(run):
    """The others end with one line each."""
    saved = len(list((run / "checkpoints").iterdir()))
    started = start_all("continual", [f"--resume={run}"], count=3)
    wait_for(run / "checkpoints" / str(saved + 1))
    begun = time.monotonic()
    started[0].kill()
    (killed, _), *others = ends(started, seconds=60)
    assert killed == -signal.SIGKILL and time.monotonic() - begun < 60
    for status, error in others:
        assert status == 1
        assert re.fullmatch(r"error: another process of this run has ended \(.*\).*\n", error)


def test_an_error_of_one_process_ends_the_others(few_shot, tmp_path):
    """A value that differs is an error of all; an error of process 0 alone ends the others."""
    run = tmp_path / "run"
    args = [*few_shot, f"--out={run}"]
    ended = ends(start_all("fewshot", args, own=lambda number: [f"--inner-lr=0.{number + 1}"]))
    assert [status for status, _ in ended] == [2, 2]
    assert "process 1 has inner_lr 0.2 (process 0 has 0.1)" in ended[1][1]
    assert all(error.count("\n") == 1 for _, error in ended)
    assert not run.exists()
    run.write_text("")
    (first, its_error), (second, error) = ends(start_all("fewshot", args))
    assert (first, its_error) == (2, f"error: {run} is a file, want a folder for the run\n")
    assert second == 1 and error.startswith("error: another process of this run has ended")


@pytest.mark.slow
@pytest.mark.parametrize("silent", [0, 1])
def test_a_process_that_falls_silent_ends_the_others_within_a_minute(silent, tmp_path):
    """As when its host vanishes: its connections stay open."""
    run = tmp_path / "run"
    started = start_all("continual", [*LONG, f"--out={run}"])
    wait_for(run / "checkpoints" / "1")
    started[silent].send_signal(signal.SIGSTOP)
    ((status, error),) = ends([started[1 - silent]], seconds=60)
    started[silent].kill()
    assert status == 1 and error.count("\n") == 1
    assert error.startswith("error: another process of this run has ended")
    assert f"; continue with: python -m experiments.continual --resume {run}" in error


def test_under_slurm_no_more_flags_are_needed(few_shot, tmp_path):
    """Process 0 has an error; that the other one notices shows that they were connected."""
    run, first_port = tmp_path / "run", 2**16 - 2**12
    run.write_text("")
    job = {"SLURM_JOB_ID": free_port(first_port) - first_port, "SLURM_NTASKS": 2}
    job |= {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_NODES": 1}
    started = []
    for i in range(2):
        own = {**job, "SLURM_PROCID": i, "SLURM_LOCALID": i}
        env = {**os.environ, **{name: str(value) for name, value in own.items()}}
        started.append(start("fewshot", [*few_shot, f"--out={run}", "--distributed"], env=env))
    (first, its_error), (second, error) = ends(started)
    assert (first, its_error) == (2, f"error: {run} is a file, want a folder for the run\n")
    assert second == 1 and error.startswith("error: another process of this run has ended")


# ---- flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--processes=2"], "--processes is read only with --distributed"),
        (["--distributed", "--process=1"], "--process also needs --coordinator"),
        (["--distributed", "--coordinator=host", "--processes=2", "--process=0"], "HOST:PORT"),
        (["--distributed", "--coordinator=a:70000", "--processes=2", "--process=0"], "HOST:PORT"),
        (["--distributed", "--coordinator=a:1", "--processes=0", "--process=0"], "1 or more"),
        (["--distributed", "--coordinator=a:1", "--processes=2", "--process=2"], "0 to 1, got 2"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(flags, words, capsys):
    for family in (fewshot, continual):
        with pytest.raises(SystemExit) as stop:
            family.main(flags)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and words in error and error.count("\n") == 1


def test_without_a_job_system_the_flags_are_asked_for(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "KUBERNETES"))}
    ((status, error),) = ends([start("continual", ["--distributed"], env=env)])
    assert status == 2 and error.count("\n") == 1
    assert "give --coordinator, --processes and --process" in error


# ---- what processes share


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


def test_every_process_gets_equally_many_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    monkeypatch.setattr(jax, "devices", lambda: [Device(i // 4) for i in range(8)])

    def owners(*args):
        return [device.process_index for device in processes.devices(*args)]

    assert owners("runs", lambda count: count <= 100) == [0] * 4 + [1] * 4
    assert owners("runs", lambda count: count <= 5) == [0, 0, 1, 1]
    assert owners("tasks", lambda count: 20 % count == 0) == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="2 processes cannot divide the runs"):
        owners("the runs", lambda count: count <= 1)
    with pytest.raises(ConfigError):
        owners("tasks", lambda count: 3 % count == 0)


def test_only_errors_of_jax_mean_that_a_process_is_gone():
    gone = distributed.is_of_a_gone_process
    assert gone(ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"))
    assert gone(RuntimeError("coordination service: task 1 is unhealthy"))
    assert not gone(RunError("/data/connection/run holds another run"))
    assert not gone(ConfigError("--out: nccl is a file"))
    assert not gone(ValueError("shapes do not fit"))


def test_a_folder_in_memory_has_the_content_and_writes_nothing(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"config": {"seed": 0}})
    rows = [{"epoch": i, "step": i} for i in range(3)]
    for row in rows:
        folder.add_row(row)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    copy = FolderInMemory(folder, folder.content())
    assert copy.config() == {"config": {"seed": 0}} and copy.rows() == rows
    copy.keep_rows(1)
    copy.add_row({"epoch": 2, "step": 20})
    copy.log_timing(seconds=1.0)
    copy.write_result({"accuracy": 1.0})
    assert copy.rows() == [*rows[:2], {"epoch": 2, "step": 20}]
    after = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert after == before
    with held(folder) as own, pytest.raises(RunError, match="another process"):
        assert own is folder
        RunFolder.open(folder.path).lock().__enter__()


def test_a_single_process_sends_nothing():
    arrays = {"a": np.float32([-0.0, np.nan])}
    assert processes.arrays_from_first(lambda: arrays) is arrays
    assert processes.from_first(lambda: {"x": (1,)}) == {"x": (1,)}
    assert processes.any_process(True) and not processes.any_process(False)
