"""The docstring examples of public modules run."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse

# All public modules except those whose examples need a folder or dataset of the user.
ELSEWHERE = (
    *("data.folder", "data.mini_imagenet", "data.classification", "data.episodes", "data.cache"),
    *("data.streams", "data.plain_pickles", "data.pictures", "data.files", "data.prepared"),
    *("machine", "user_cache", "training"),
)


def public_modules():
    found = pkgutil.walk_packages(jaxsparse.__path__, "jaxsparse.")
    names = [module.name.removeprefix("jaxsparse.") for module in found]
    return [n for n in names if not n.startswith(ELSEWHERE) and "._" not in f".{n}"]


CORE = public_modules()


@pytest.fixture(autouse=True)
def ranks_as_users_have_them(quick_programs):
    """Examples are users' code: they may broadcast arrays of different rank."""
    with jax.numpy_rank_promotion("allow"):
        yield


# These read real data, which takes a while the first time.
REAL = ("data.switching", "data.omniglot")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in REAL else n for n in CORE]
)
def test_docstring_examples(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # some write a file
    module = importlib.import_module(f"jaxsparse.{name}")
    extra = {
        "jax": jax,
        "jnp": jnp,
        "optax": optax,
        "jaxsparse": jaxsparse,
        "gates": jaxsparse.gates,
    }
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(module, extraglobs=extra):
        runner.run(test)
    assert runner.failures == 0, "see the captured output"


def test_public_functions_of_the_core_have_an_example():
    for name in set(jaxsparse.__all__) - {"Gate", "MetaState"}:
        thing = getattr(jaxsparse, name)
        if callable(thing):
            assert ">>>" in thing.__doc__, name
