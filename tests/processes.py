"""Experiments in separate processes, to be stopped and killed."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import runs
from jaxsparse.training import RunFolder

ROOT = Path(__file__).resolve().parent.parent


# A network that compiles in a third of the time of Conv4.
SMALL_NETWORK = (
    "from jaxsparse import nn; "
    "nn.conv4 = lambda ways, width, image_shape, use_bias, blocks: "
    "nn.strided_cnn(ways, width, 1, (), image_shape); "
)


def start(experiment, args, save_seconds=None, changes="", **options):
    """Start `python -m experiments.EXPERIMENT` with this interval between checkpoints.

    `changes` is Python code that runs first.
    """
    command = [sys.executable, "-m", f"experiments.{experiment}", *args]
    if save_seconds is not None:
        changes += f"from jaxsparse.training import runner; runner.SAVE_SECONDS = {save_seconds}; "
    if changes:
        program = f"import sys; {changes}from experiments import {experiment}; "
        program += f"{experiment}.main(sys.argv[1:])"
        command = [sys.executable, "-c", program, *args]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    )


@contextlib.contextmanager
def recorded_loads(family):
    """Yields a list: for each call of `family.load_data`, whether it is for validation."""
    load, validation = family.load_data, []

    def recorded(config):
        validation.append(config.validation)
        return load(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "load_data", recorded)
        yield validation


def free_port(least=0):
    """A free port of the loopback address; with `least`, the first one from there on."""
    for port in range(least, 2**16):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return one.getsockname()[1]


def open_run(family, args):
    """Parse the flags, and open the run to resume or make the place of a new one."""
    return runs.place_run(family, runs.read_flags(family, args))


def finish(experiment, args, **options):
    """Run to the end, and check that the process succeeds."""
    process = start(experiment, args, **options)
    _, errors = process.communicate(timeout=1800)
    assert process.returncode == 0, errors


def kill(process):
    """Kill it as the system does when memory runs out."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def kill_at_random(experiment, args, run, kills, longest, **options):
    """Start and resume a run, and kill it each time after up to `longest` seconds."""
    rng = np.random.default_rng(0)
    for _ in range(kills):
        resume = [f"--resume={run}"] if (run / "config.json").exists() else args
        process = start(experiment, resume, **options)
        # A run spends most of its time on start-up. Some kills hit that, but most come later.
        time.sleep(rng.uniform(0.5, longest))
        if process.poll() is not None and not (run / "result.json").exists():
            raise AssertionError(f"ended by itself: {process.communicate()[1]}")
        kill(process)
        # Finished already: repeat the part after its last checkpoint.
        (run / "result.json").unlink(missing_ok=True)


def outcome(run):
    """Everything in which equal runs must agree to the bit."""
    folder = RunFolder(run)
    newest = max((run / "checkpoints").iterdir(), key=lambda p: int(p.name))
    digest = json.loads((newest / "position" / "metadata").read_text())["digest"]
    return folder.rows(), folder.result(), digest
