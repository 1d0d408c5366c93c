"""The weights that come with jaxsparse: small, as documented, and in use."""

import json
from pathlib import Path

import pytest

import jaxsparse
from experiments import evaluate
from jaxsparse.training.fewshot.weights import FOLDER, read_weights

PAGE = Path(__file__).resolve().parent.parent / "docs" / "pretrained.md"


def test_they_are_eight_and_small():
    wanted = {
        f"{data}-5way-{shots}shot-{method}"
        for data in ("glyphs", "omniglot")
        for shots in (1, 5)
        for method in ("sparse-maml", "fomaml")
    }
    assert set(jaxsparse.pretrained()) == wanted
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3_000_000


@pytest.mark.parametrize("name", jaxsparse.pretrained())
def test_the_page_has_their_figures(name):
    """Accuracy and interval of the stored results, and a network that fits."""
    own = read_weights(FOLDER / f"{name}.safetensors").result["seeds"][0]
    figure = f"{100 * own['accuracy']:.2f} +- {100 * own['interval95']:.2f}"
    (row,) = (line for line in PAGE.read_text("utf-8").splitlines() if f"`{name}`" in line)
    assert figure in row
    learner = jaxsparse.load_learner(name)
    assert learner.image_shape == (28, 28, 1) and learner.config.width == 32


@pytest.mark.slow
def test_they_reach_their_figures(tmp_path, monkeypatch):
    """Tested again on their own test tasks; on another machine the last bits may differ."""
    monkeypatch.chdir(tmp_path)
    for shots, low in ((1, 0.60), (5, 0.80)):
        name = f"glyphs-5way-{shots}shot-sparse-maml"
        evaluate.main([name])
        (result,) = (tmp_path / "evaluations" / name).iterdir()
        got = json.loads(result.read_text())["result"]["accuracy"]
        want = read_weights(FOLDER / f"{name}.safetensors").result["accuracy"]
        assert got == pytest.approx(want, abs=0.005) and got > low
