"""Weights in one file: exported, read again to the bit."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from small_runs import everything, flags, images, quick  # noqa: F401

import jaxsparse
from experiments import evaluate, export, fewshot, predict
from jaxsparse.training import RunError
from jaxsparse.training.fewshot.weights import read_weights


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
    result = read_weights(file).result
    assert result["seeds"] == [own]
    # As in the result of a run with one seed.
    assert result["accuracy_std_over_seeds"] is None
    assert result["interval95_over_tasks"] == own["interval95"]


def test_evaluate_gives_the_accuracy_of_the_run(run, file, images, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    evaluate.main([str(file), f"--data-dir={images}"])
    (result,) = (tmp_path / "evaluations" / "own").iterdir()
    own = json.loads((run / "result.json").read_text())["seeds"][1]
    assert json.loads(result.read_text())["result"]["accuracy"] == own["accuracy"]


def test_a_test_of_other_weights_is_not_shown(run, file, images, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other" / "own.safetensors"
    export.main([str(run), f"--out={other}", "--seed=0"])
    evaluate.main([str(file), f"--data-dir={images}"])
    error = refused(evaluate.main, [other, f"--data-dir={images}"], capsys)
    assert "holds a test of other weights; give another --name" in error


@pytest.mark.parametrize("accuracy", [None, "x", float("nan")])
def test_a_result_that_no_run_writes_is_not_exported(accuracy, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    result = json.loads((copy / "result.json").read_text())
    result["seeds"][0]["accuracy"] = accuracy
    (copy / "result.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit) as stop:
        export.main([str(copy), f"--out={tmp_path / 'w.safetensors'}"])
    assert stop.value.code in (1, 2) and capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.slow
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


def changed(name, change):
    """A damage that changes one entry of the stored configuration and images."""

    def damage(data):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        record = json.loads(header["__metadata__"]["config"])
        (record["config"] if name in record["config"] else record["images"])[name] = change
        header["__metadata__"]["config"] = json.dumps(record)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return damage


def not_a_number(data):
    return data[:-4] + np.float32(np.nan).tobytes()


@pytest.mark.parametrize(
    "damage",
    [
        not_a_number,
        lambda data: data.replace(b'"dtype":"F32"', b'"dtype":"F16"'),
        changed("width", 10**12),
        changed("seeds", 3),
        changed("shape", [float("inf"), 28, 1]),
        changed("std", [0.0]),
        changed("mean", [float("nan")]),
        changed("mean", [0.0, 0.0, 0.0]),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"text, not weights",
        lambda data: safetensors.numpy.save({"theta/head/kernel": np.zeros(3, np.float32)}),
        lambda data: data.replace(b"theta/head/bias", b"theta/head/bios"),
        lambda data: re.sub(rb'"shape":\[(\d+),(\d+)\]', rb'"shape":[\2,\1]', data),
    ],
)
def test_a_damaged_file_is_one_line(damage, file, images, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(file.read_bytes()))
    refused(evaluate.main, [path, f"--data-dir={images}"], capsys)
    with pytest.raises(RunError, match=r"damaged\.safetensors"):
        jaxsparse.load_learner(path)


def test_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["glyphs-5way", "--support=x", "--query=x"]
    error = refused(predict.main, words, capsys)
    assert "there is no such run" in error and "glyphs-5way-5shot-sparse-maml" in error
