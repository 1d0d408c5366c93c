"""The documents: their commands are accepted and run at a small size; code and tutorials run.

`test_docstrings.py` has the examples of docstrings, `test_results.py` the tables.
"""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import jax
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image
from processes import open_run

import jaxsparse
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
from jaxsparse import data

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
    "fewshot": "--epochs=3 --steps-per-epoch=1 --meta-batch-size=2 --inner-steps=1"
    " --test-inner-steps=1 --val-tasks=20 --test-tasks=20",
    "continual": "--tasks=2 --samples-per-task=20",
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
    if not words and name == "plots":
        return False  # named without its runs
    if name == "reproduce":
        return "--no-run" in words and "--sweep" not in words
    return "paper" not in words


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the documents call NAME, ONE, OTHER, RUN, FEW and NEW."""
    here = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for name, extra in (("NAME", ""), ("ONE", ""), ("OTHER", "--method=fomaml")):
            fewshot.main(small("fewshot", f"--out=runs/fewshot/{name} {extra}"))
        continual.main(small("continual", "--data=glyphs --out=runs/continual/NAME"))
        online.main(small("online", "--data=glyphs --out=runs/online/NAME"))
        (here / "RUN").symlink_to(here / "runs/fewshot/NAME")
        letters = data.load("glyphs", "test")
        for label in range(3):
            start = letters.starts[label]
            for number in range(4):
                image = Image.fromarray(np.asarray(letters.images[start + number][..., 0]))
                folder = here / ("FEW" if number < 2 else "NEW") / f"class{label}"
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{number}.png")
    return here


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flags"), [c for c in COMMANDS if runs_here(*c)])
def test_commands_run_at_a_small_size(name, flags, place, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("WANDB_MODE", "offline")
    main = (FAMILIES | OTHERS | REPRODUCE)[name].main
    words = small(name, flags)
    written = {"fewshot": "run", "continual": "run", "online": "run", "predict": "predictions"}
    if name in written and "--resume" not in words:
        words.append(f"--out={tmp_path / written[name]}")
    elif "--out" in words:  # of plots and export
        at = words.index("--out") + 1
        words[at] = str(tmp_path / {"FILE": "file.safetensors"}.get(words[at], words[at]))
    try:
        main(words)
    except SystemExit as stop:
        said = capsys.readouterr().err
        if "is not there" in said or "not found" in said or "needs the data" in said:
            pytest.skip(f"no data: {said.strip()}")
        assert not stop.code, said


# ---- code blocks and tutorials

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)
]


def names_of(page):
    """What the blocks of a page take as given."""
    if page.stem != "data":
        return {}
    images = np.random.default_rng(0).integers(0, 255, (200, 28, 28), np.uint8)
    labels = np.arange(200) % 10
    sets = {
        "images": images, "labels": labels, "test_images": images, "test_labels": labels,
        "birds": data.from_arrays(images, labels, train=0.6, val=0.2, test=0.2),
        "cars": data.from_arrays(images, labels, train=0.6, val=0.2, test=0.2),
    }  # fmt: skip
    return {"jax": jax, "jaxsparse": jaxsparse, **sets}


def run_block(page, block):
    namespace = {"__name__": page.stem, **names_of(page)}
    exec(compile(block, str(page), "exec"), namespace)
    return namespace


@pytest.fixture
def as_users(monkeypatch):
    """Ranks may differ, as in users' code."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(*b, id=f"{b[0].stem}-{i}") for i, b in enumerate(BLOCKS) if "sin(" not in b[1]],
)
def test_code_blocks_run(page, block, as_users):
    run_block(page, block)


def test_sinusoids(as_users, capsys):
    """The example is short, learns, and prints what it claims."""
    ((page, block),) = (b for b in BLOCKS if "sin(" in b[1])
    assert len(block.splitlines()) <= 40
    names = run_block(page, block)
    assert names["after"] < 0.25 * names["before"]
    assert 0.1 < names["frozen"] < 0.9
    assert f"{names['after']:.2f} after" in capsys.readouterr().out


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 900


SIZES = {
    "what-froze": {"META_STEPS = 400": "META_STEPS = 10", "TEST_TASKS = 200": "TEST_TASKS = 4"},
    "own-network": {"META_STEPS = 200": "META_STEPS = 2", "tasks=100": "tasks=4"},
    "own-images": {
        "--epochs 5 --steps-per-epoch 60": "--epochs 1 --steps-per-epoch 1 --meta-batch-size 2",
        "--val-tasks 40 --test-tasks 100": "--val-tasks 20 --test-tasks 20 --inner-steps 1",
        "--width 16": "--width 2",
    },
    "own-stream": {
        "TASKS, EXAMPLES = 8, 1000": "TASKS, EXAMPLES = 2, 20",
        "GLANCES = 10, 3": "GLANCES = 10, 1",
    },
    "new-method": {"META_STEPS = 300": "META_STEPS = 2", "TEST_TASKS = 200": "TEST_TASKS = 4"},
}


def test_every_tutorial_has_a_small_size():
    assert {book.stem for book in TUTORIALS} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_tutorial_shows_what_it_printed(name):
    """The stored notebooks were run from top to bottom, without an error."""
    book = json.loads((ROOT / "docs" / "tutorials" / f"{name}.ipynb").read_text("utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and "error" not in {output["output_type"] for output in outputs}
    assert str(ROOT.parent) not in json.dumps(outputs), "a path of the machine that ran it"


LONG = ("own-network", "what-froze", "new-method")  # half a minute or more each, even when small


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=pytest.mark.slow) if x in LONG else x for x in SIZES],
)
def test_a_tutorial_runs(name, tmp_path, monkeypatch):
    book = nbformat.read(ROOT / "docs" / "tutorials" / f"{name}.ipynb", as_version=4)
    changes = dict(SIZES[name])
    for cell in book.cells:
        for old in [old for old in changes if old in cell.source]:
            cell.source = cell.source.replace(old, changes.pop(old))
    assert not changes, "what should be made smaller is not there"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles in half the time
    options = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=600, kernel_name="python3", resources=options).execute()
    printed = json.dumps(book.cells)
    assert "error: " not in printed  # of a command
