"""What all tests share: reproducible examples, a cache of their own, strict JAX where asked for."""

import contextlib
import os

import jax
import pytest
from hypothesis import settings

from experiments import cli

with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(1)

# Two devices, so that dividing tasks among devices is tested on every machine.
jax.config.update("jax_num_cpu_devices", 2)

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep the tests out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("JAXSPARSE_CACHE", str(cache))
        # What is compiled of C++ takes long, and is the same for all processes of the session.
        own = tmp_path_factory.getbasetemp()
        shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "native"
        shared.mkdir(exist_ok=True)
        (cache / "native").symlink_to(shared)
        yield


@pytest.fixture
def strict_ranks():
    """Make JAX refuse to broadcast arrays of different rank."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def compiled_once():
    """What a run does: keep compiled programs, which several tests of a module share."""
    cli.use_compilation_cache()
