"""What all tests share: reproducible examples, a separate cache, and strict JAX on request."""

import contextlib
import os

import jax
import problems
import pytest
from hypothesis import settings

from experiments import cli

with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(1)

# Two devices, so that dividing tasks among devices is tested on every machine.
jax.config.update("jax_num_cpu_devices", 2)
# Arrays of different rank are never broadcast by accident.
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture
def quick_programs():
    """For tests that compare programs only with themselves, or up to rounding."""
    with problems.quick_programs():
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Give the tests their own cache folder, and share compiled programs among them."""
    own = tmp_path_factory.getbasetemp()
    # Compilation takes most of the tests' time; all processes of the session share its results.
    cache = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSPARSE_CACHE", str(cache))
        cli.use_compilation_cache()
        yield
