"""`experiments.predict`: images in folders, a CSV and a contact sheet; wrong input is one line."""

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from small_runs import everything, flags, images, quick  # noqa: F401

from experiments import fewshot, predict
from jaxsparse.data.pictures import read_image
from jaxsparse.training.fewshot.trained import load_learner


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("predict") / "run"
    fewshot.main(flags(images, out))
    return out


def arguments(run, images, out):  # noqa: F811
    few = images / "few"
    if not few.exists():
        for name in ("test0", "test1"):
            shutil.copytree(images / "test" / name, few / name)
    return [str(run), f"--support={few}", "--query", str(images / "test" / "test2"), f"--out={out}"]


def test_the_table_has_the_learner_s_probabilities(run, images, tmp_path, capsys):  # noqa: F811
    before = everything(run)
    words = arguments(run, images, tmp_path / "out")
    predict.main(words)
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    learner = load_learner(run)

    def read(name):
        files = sorted((images / "test" / name).iterdir())
        return np.stack([read_image(file, learner.image_shape) for file in files])

    support = np.concatenate([read("test0"), read("test1")])
    adapted = learner.adapt(support, ["test0"] * 4 + ["test1"] * 4)
    want = adapted.predict(read("test2"))
    assert [row["file"].rpartition("/")[2] for row in rows] == [f"{i}.png" for i in range(4)]
    for row, probabilities in zip(rows, want, strict=True):
        for name, value in zip(("test0", "test1"), probabilities, strict=True):
            assert float(row[name]) == pytest.approx(value, abs=6e-5)
        assert row["prediction"] == ("test0", "test1")[probabilities.argmax()]
    with Image.open(tmp_path / "out" / "predictions.png") as sheet:
        assert sheet.width > 500
    assert "of 4 images" in capsys.readouterr().out
    assert everything(run) == before


def wrong(words, capsys):
    with pytest.raises(SystemExit) as stop:
        predict.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


def test_wrong_input_is_one_line(run, images, tmp_path, capsys):  # noqa: F811
    words = arguments(run, images, tmp_path / "out")
    (tmp_path / "there").mkdir()
    assert "is there already" in wrong([*words, f"--out={tmp_path / 'there'}"], capsys)
    assert "File name too long" in wrong([*words, "--query", 300 * "a"], capsys)
    (tmp_path / "file").write_text("")
    for out in ("file/x", "file/x/y"):
        line = wrong([*words, f"--out={tmp_path / out}"], capsys)
        assert "is not a folder that can be written to" in line
    assert "holds no run" in wrong([str(tmp_path), *words[1:]], capsys)
    assert "has 3 classes, the network has 2" in wrong(
        [*words, f"--support={images / 'test'}"], capsys
    )
    assert "is not there" in wrong([*words, "--query", str(tmp_path / "no.png")], capsys)
    assert "holds no images" in wrong([*words, "--query", str(tmp_path / "there")], capsys)
    assert "no class folders" in wrong([*words, f"--support={tmp_path / 'there'}"], capsys)
    assert "has the seeds 0 to 0, not 7" in wrong([*words, "--seed=7"], capsys)
    (tmp_path / "text.png").write_text("no image")
    assert "not a readable image" in wrong([*words, "--query", str(tmp_path / "text.png")], capsys)
    assert "--support" in wrong([words[0]], capsys)
    assert not (tmp_path / "out").exists()


def test_names_of_query_images(run, images, tmp_path, capsys):  # noqa: F811
    """Linked folders are read once, hidden files are not; names may be any bytes."""
    new = tmp_path / "new"
    (new / "more").mkdir(parents=True)
    image = images / "test" / "test2" / "0.png"
    odd = os.fsdecode(b"caf\xe9.png")
    for name in ('a $x$, "b".png', odd, ".hidden.png", "more/c.png"):
        shutil.copy(image, new / name)
    (new / "back").symlink_to(new)
    (new / ".more").symlink_to(images)
    words = arguments(run, images, tmp_path / "out")
    predict.main([*words[:3], str(new), words[4]])
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    names = [row["file"].rpartition("/")[2] for row in rows]
    assert names == ['a $x$, "b".png', "caf\\udce9.png", "c.png"]
