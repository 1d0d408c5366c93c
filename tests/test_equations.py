"""docs/equations.md: every name and every command in it exists."""

import functools
import importlib
import re
from pathlib import Path

import pytest

import jaxsparse

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (Path(__file__).parent.parent / "docs" / "equations.md").read_text().splitlines()
    if line.startswith("|") and not line.startswith("|---")
]
NAMES = sorted({n for row in ROWS if len(row) == 4 for n in re.findall(r"`([\w.]+)`", row[2])})
COMMANDS = sorted({c for row in ROWS for c in re.findall(r"`python -m ([^`]+)`", row[-1])})


@pytest.mark.parametrize("name", NAMES)
def test_names_exist(name):
    # `jaxsparse.maml` is a function that has the name of its module: `maml.predict` is no name.
    assert callable(functools.reduce(getattr, name.split("."), jaxsparse))


def test_the_equations_are_named_where_they_are_computed():
    """The function that a row names cites the row's source in its docstring."""
    cited = {
        "inner.gated_step": "Eq. 8",
        "inner.meta_gradient": "Eqs. 9-10",
        "lamaml_step": "Algorithm 1",
        "cmaml_step": "Algorithm 2",
        "continual.bgd.bgd_step": "Algorithm 1",
    }
    assert cited.keys() <= set(NAMES)
    for name, source in cited.items():
        *path, last = name.split(".")
        module = importlib.import_module(".".join(["jaxsparse", *path]))
        assert source in functools.reduce(getattr, [last], module).__doc__


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, capsys):
    """Each command's flags and their values are listed by its --help."""
    name, *flags = command.split()
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    for flag in flags:
        word, _, value = flag.partition("=")
        if word.startswith("--"):
            assert word.replace("--no-run", "--run") in listed
        for given in [value] if value else [] if word.startswith("--") else [word]:
            assert given in listed
