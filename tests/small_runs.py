"""Few-shot runs that take a second, on made-up images, and what their folders hold."""

import numpy as np
import pytest
from PIL import Image
from problems import quick_programs

from experiments import runs
from jaxsparse import nn
from jaxsparse.training import checkpoints

CLASSES, IMAGES = 3, 4


def write_images(root, channels=1, splits=("train", "val", "test")):
    """A tree of class folders: noise, a little lighter from class to class."""
    rng = np.random.default_rng(channels)
    for split in splits:
        for label in range(CLASSES):
            folder = root / split / f"{split}{label}"
            folder.mkdir(parents=True)
            for index in range(IMAGES):
                shape = (16, 16, channels)[: 2 if channels == 1 else 3]
                noise = rng.integers(0, 200, shape, dtype=np.uint8)
                Image.fromarray(noise + np.uint8(10 * label)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def flags(images, out):
    return [
        *("--dataset=folder", f"--data-dir={images}", "--image-size=16", f"--out={out}"),
        *("--ways=2", "--shots=1", "--query-shots=2", "--width=2", "--meta-batch-size=2"),
        *("--inner-steps=1", "--test-inner-steps=2", "--epochs=3", "--steps-per-epoch=3"),
        *("--val-tasks=20", "--test-tasks=25", "--blocks=xla"),  # nothing to compile in C++
    ]


def small_model(ways, width, image_shape, use_bias, blocks):
    """One convolution, which compiles in a third of the time of Conv4."""
    return nn.strided_cnn(ways, width, 1, (), image_shape)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Small networks, programs that compile quickly, no figures; signals are left alone."""
    with pytest.MonkeyPatch.context() as patch, quick_programs():
        patch.setattr(nn, "conv4", small_model)
        patch.setattr(runs, "draw_missing", lambda *unused: None)
        patch.setattr("signal.signal", lambda number, handler: None)
        yield


def everything(run):
    """The contents of all files of a folder."""
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def newest(run):
    """The arrays of the newest checkpoint, by name."""
    path = max((run / "checkpoints").iterdir(), key=lambda p: int(p.name))
    return checkpoints._read(path)


def below(arrays, prefix):
    """The arrays whose names begin with `prefix.`, without it."""
    start = f"{prefix}."
    return {n.removeprefix(start): x for n, x in arrays.items() if n.startswith(start)}


def refused(capsys, main, args):
    """The one line with which a command ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, args)))
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
