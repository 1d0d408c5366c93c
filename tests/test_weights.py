"""Weights in one file: exported, read again to the bit; those that come with jaxsparse."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from small_runs import everything, flags, images, quick  # noqa: F401

import jaxsparse
from experiments import evaluate, export, fewshot, predict
from jaxsparse.training import RunError
from jaxsparse.training.fewshot.weights import FOLDER, read_weights

PAGE = Path(__file__).resolve().parent.parent / "docs" / "pretrained.md"


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("weights") / "run"
    fewshot.main([*flags(images, out), "--seeds=2"])
    return out


@pytest.fixture
def file(run, tmp_path):
    export.main([str(run), f"--out={tmp_path / 'own.safetensors'}", "--seed=1"])
    return tmp_path / "own.safetensors"


def refused(main, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


def test_a_file_holds_what_the_seed_learned(run, file):
    want, got = jaxsparse.load_learner(run, seed=1), jaxsparse.load_learner(file)
    assert got.config.seed == 1 and got.config.seeds == 1
    assert (got.image_shape, got.mean, got.std) == (want.image_shape, want.mean, want.std)
    jax.tree.map(np.testing.assert_array_equal, (got.params, got.mask), (want.params, want.mask))
    # Another library reads the same arrays by their names.
    arrays = safetensors.numpy.load_file(file)
    np.testing.assert_array_equal(arrays["theta/head/kernel"], want.params["head"]["kernel"])
    np.testing.assert_array_equal(arrays["mask/head/kernel"], want.mask["head"]["kernel"])
    own = json.loads((run / "result.json").read_text())["seeds"][1]
    assert read_weights(file).result["seeds"] == [own]


def test_evaluate_gives_the_accuracy_of_the_run(run, file, images, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    evaluate.main([str(file), f"--data-dir={images}"])
    (result,) = (tmp_path / "evaluations" / "own").iterdir()
    own = json.loads((run / "result.json").read_text())["seeds"][1]
    assert json.loads(result.read_text())["result"]["accuracy"] == own["accuracy"]


def test_every_method_fits_its_file(images, tmp_path):  # noqa: F811
    """sparse-MAML+ has the largest tree: a network generates its masks."""
    flagged = [*flags(images, tmp_path / "run"), "--method=sparse-maml-plus", "--embedding=3"]
    fewshot.main(flagged)
    export.main([str(tmp_path / "run"), f"--out={tmp_path / 'w.safetensors'}"])
    want, got = (jaxsparse.load_learner(tmp_path / name) for name in ("run", "w.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, (got.params, got.mask), (want.params, want.mask))


def test_what_cannot_be_exported_is_one_line(run, file, tmp_path, capsys):
    before, old = everything(run), file.read_bytes()
    assert "is there already" in refused(export.main, [run, "--out", file], capsys)
    assert "ends with .safetensors" in refused(export.main, [run, "--out", "x.npz"], capsys)
    out = tmp_path / "new.safetensors"
    assert "seeds 0 to 1, not 7" in refused(export.main, [run, "--out", out, "--seed=7"], capsys)
    assert "holds no run" in refused(export.main, [tmp_path / "none", "--out", out], capsys)
    assert file.read_bytes() == old and everything(run) == before and not out.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"text, not weights",
        lambda data: safetensors.numpy.save({"theta/head/kernel": np.zeros(3, np.float32)}),
        lambda data: data.replace(b"theta/head/bias", b"theta/head/bios"),
        lambda data: re.sub(rb'"shape":\[2,2\]', b'"shape":[4,1]', data),
    ],
)
def test_a_damaged_file_is_one_line(damage, file, images, tmp_path, capsys):  # noqa: F811
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(file.read_bytes()))
    assert str(path) in refused(evaluate.main, [path, f"--data-dir={images}"], capsys)
    with pytest.raises(RunError, match=r"damaged\.safetensors"):
        jaxsparse.load_learner(path)


def test_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["glyphs-5way", "--support=x", "--query=x"]
    error = refused(predict.main, words, capsys)
    assert "there is no such run" in error and "glyphs-5way-5shot-sparse-maml" in error


# ---- those that come with jaxsparse


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
