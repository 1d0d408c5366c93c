"""The number of threads that XLA uses, and how a process chooses it."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import processes
import pytest

from experiments import cli
from jaxsparse import machine
from jaxsparse.training import environment

# The last bits of sums and of products of many rows depend on the number of threads.
SUMS = """
import os, sys
from jaxsparse import machine
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
cores, threads = machine.cores(), machine.cpu_threads()
chosen = machine.use_cpu_threads(int(sys.argv[1]))
import jax, jax.numpy as jnp
a, b = jax.random.normal(jax.random.key(0), (2, 20_000, 64))
results = jax.jit(lambda a, b: (a.T @ b, jnp.sum(a), jnp.sum(a * b, 0)))(a, b)
print(cores, threads, chosen, machine.use_cpu_threads(9))
print(*(memoryview(jax.device_get(x)).tobytes().hex() for x in results))
"""


# A run that is started on all cores, killed, and resumed on one core.
ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
from experiments import continual
continual.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(machine.cores() == 1, reason="one core")
def test_a_run_resumes_with_the_same_bits_on_fewer_cores(tmp_path):
    stream = ["--data=glyphs", "--tasks=3", "--samples-per-task=60", "--memories=30", "--seeds=3"]
    processes.finish("continual", [*stream, f"--out={tmp_path / 'whole'}"])
    run = tmp_path / "moved"
    process = processes.start("continual", [*stream, f"--out={run}"], save_seconds=0)
    while not (run / "checkpoints/2").exists():
        assert process.poll() is None
        time.sleep(0.01)
    processes.kill(process)
    subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE, f"--resume={run}"],
        cwd=processes.ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert processes.outcome(run) == processes.outcome(tmp_path / "whole")


def sums(count, **environment):
    command = [sys.executable, "-c", SUMS, str(count)]
    plain = {name: x for name, x in os.environ.items() if name not in machine._THREADS}
    environment = {**plain, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to take cores away")
def test_one_core_gives_the_bits_of_as_many_threads_as_are_asked_for():
    facts, on_one_core = sums(4)
    assert facts == "1 1 True False"  # and once JAX runs it is too late
    facts, with_four_threads = sums(2, PJRT_NPROC="4")
    assert facts == "1 4 False False"  # the user's setting is kept
    assert on_one_core == with_four_threads


@pytest.mark.parametrize(
    "variables, count", [({}, None), ({"NPROC": "5"}, 5), ({"PJRT_NPROC": "0", "NPROC": "5"}, 1)]
)
def test_threads_are_counted_as_in_xla(variables, count, monkeypatch):
    for name in machine._THREADS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert machine.cpu_threads() == (count or machine.cores())
    monkeypatch.setenv("PJRT_NPROC", "many")
    assert machine.cpu_threads() == (int(variables.get("NPROC", machine.cores())))


def test_cores_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


@pytest.mark.parametrize(
    "record, asked",
    [({"environment": {"threads": 3}}, [3])]
    + [({"environment": {"threads": x}}, []) for x in ("3", 0, 10**9, None)]
    + [({}, []), ({"environment": 3}, [])],
)
def test_a_resumed_run_asks_for_its_threads(record, asked, monkeypatch):
    counts = []
    monkeypatch.setattr(environment, "use_cpu_threads", counts.append)
    environment.use_threads_of(record)
    assert counts == asked


def test_there_are_no_more_devices_than_threads(monkeypatch):
    asked = {}
    config = SimpleNamespace(jax_num_cpu_devices=-1, update=asked.__setitem__)
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(config=config))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("PJRT_NPROC", "2")
    for count in (1, 64):
        cli.use_cores(count)
        assert asked == {"jax_num_cpu_devices": min(count, 2)}
