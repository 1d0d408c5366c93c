"""How many threads XLA divides an operation among, and that a process may choose them."""

import os
import subprocess
import sys

import pytest

from jaxsparse import machine

# What is summed differs in its last bits by the number of threads: products of many rows, and sums.
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
    assert facts == "1 4 False False"  # what the user has set stays
    assert on_one_core == with_four_threads


@pytest.mark.parametrize(
    "variables, count", [({}, None), ({"NPROC": "5"}, 5), ({"PJRT_NPROC": "0", "NPROC": "5"}, 1)]
)
def test_threads_are_those_xla_counts(variables, count, monkeypatch):
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
