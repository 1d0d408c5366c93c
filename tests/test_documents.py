"""The documents: their commands are accepted and run at a small size; code and tutorials run.

`test_readme.py` has the examples of docstrings, `test_results.py` the tables.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
from processes import open_run

from experiments import (
    cli,
    continual,
    evaluate,
    export,
    fewshot,
    online,
    plots,
    predict,
    reproduce,
    sweep,
)
from experiments.tables.flags import Flags

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
FAMILIES = {"fewshot": fewshot, "continual": continual, "online": online}
OTHERS = {"evaluate": evaluate, "predict": predict, "export": export, "plots": plots}
REPRODUCE = {"reproduce": reproduce, "sweep": sweep}


def cells(notebook, kind):
    content = json.loads(notebook.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in content if cell["cell_type"] == kind]


def commands():
    """(program, flags) of each `python -m experiments...` in the documents, without doubles."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    text += "\n".join(cell for book in TUTORIALS for cell in cells(book, "markdown"))
    text = re.sub(r" *\\\n *", " ", text)
    found = re.findall(r"python -m experiments\.(\w+)([^`#\n|&;]*)", text)
    listed = dict.fromkeys((name, " ".join(flags.split())) for name, flags in found)
    # "..." stands for flags; a shell would fill in ${...}.
    return [(name, flags) for name, flags in listed if not re.search(r"\.\.\.|\$", flags)]


COMMANDS = commands()


def test_there_are_commands_of_every_program():
    assert {name for name, _ in COMMANDS} == {*FAMILIES, *OTHERS, *REPRODUCE}
    assert len(COMMANDS) > 80


@pytest.mark.parametrize(("name", "flags"), [c for c in COMMANDS if c[0] in FAMILIES])
def test_commands_that_train_are_accepted(name, flags, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(flags)
    if not {"--resume", "--help", "--distributed", "--theta-from"} & set(words):
        open_run(FAMILIES[name], [*words, f"--out={tmp_path / 'run'}"])


@pytest.mark.parametrize(("name", "flags"), [c for c in COMMANDS if c[0] not in FAMILIES])
def test_other_commands_have_these_flags(name, flags):
    if name == "reproduce":
        cli.parse(Flags, shlex.split(flags), Flags(), "reproduce")
    elif name in OTHERS and hasattr(OTHERS[name], "_DEFAULTS"):
        module = OTHERS[name]
        cli.parse(module.Flags, shlex.split(flags), module._DEFAULTS, name)


# ---- every command at a small size

SMALL = {
    "fewshot": "--epochs=1 --steps-per-epoch=2 --meta-batch-size=2 --inner-steps=1"
    " --test-inner-steps=1 --val-tasks=20 --test-tasks=20",
    "continual": "--tasks=2 --samples-per-task=20 --test-samples=20",
    "online": "--timesteps=12",
    "sweep": "--trials=2 --final-seeds=1",
}


def small(name, flags):
    """The words of a command that ends within seconds."""
    words = [*shlex.split(flags), *shlex.split(SMALL.get(name, ""))]
    if name == "fewshot" and "--resume" not in words:
        words += ["--channels", *"2222"] if "resnet12" in words else ["--width=2"]
    return words


def runs_here(name, flags):
    words = flags.split()
    if "--distributed" in words or name == "sweep":
        return False  # test_distributed and the tests of sweeps run these
    if name == "reproduce":
        return "--no-run" in words and "--sweep" not in words
    return "paper" not in words
