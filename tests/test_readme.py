"""The README's code blocks and the docstring examples of public modules run."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
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
def ranks_as_users_have_them():
    """Examples are users' code: they may broadcast arrays of different rank."""
    with jax.numpy_rank_promotion("allow"):
        yield


def run(block):
    namespace = {"__name__": "readme"}
    exec(compile(block, str(README), "exec"), namespace)
    return namespace


def test_other_blocks_run():
    for block in BLOCKS:
        if "sin(" not in block:
            run(block)


def test_sinusoids(capsys):
    """The example is short, learns, and prints what it claims."""
    (block,) = (b for b in BLOCKS if "sin(" in b)
    assert len(block.splitlines()) <= 40
    names = run(block)
    assert names["after"] < 0.25 * names["before"]
    assert 0.1 < names["frozen"] < 0.9
    assert f"{names['after']:.2f} after" in capsys.readouterr().out


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
