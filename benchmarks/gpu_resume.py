"""A small few-shot run on JAX's default device: run twice, and stopped and resumed."""

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsparse.data import ImageSet
from jaxsparse.training import FewShotConfig, Hooks, RunFolder, Stopped, run
from jaxsparse.training.fewshot.tested import EXPERIMENT, finished, load_tested

_CLASSES, _EACH = 8, 10


def runs(tiny: bool) -> dict[str, dict[str, list[Any]]]:
    """What three runs of one configuration learned.

    They are one "run once", one "run twice", and one "stopped and resumed" in its second epoch.

    Args:
      tiny: small networks and images.

    Returns:
      For each run its losses and the parameters that it tested.

    Examples:
      >>> runs(tiny=True)["run once"]["loss"]
    """
    config = FewShotConfig(
        width=4 if tiny else 64,
        blocks="pallas",
        shots=1,
        query_shots=5,
        inner_steps=2,
        test_inner_steps=2,
        epochs=2,
        steps_per_epoch=4,
        val_tasks=20,
        test_tasks=20,
    )
    data = {name: images(i, 16 if tiny else 28) for i, name in enumerate(_SPLITS)}
    found = {}
    with tempfile.TemporaryDirectory(prefix="jaxsparse-checks-") as place:
        for name in ("run once", "run twice", "stopped and resumed"):
            record = {"experiment": EXPERIMENT, "config": dataclasses.asdict(config)}
            folder = RunFolder.create(Path(place) / name.replace(" ", "-"), record)
            if name == "stopped and resumed":
                stop_in_second_epoch(config, data, folder)
            run(config, data, folder, Hooks())
            found[name] = _learned(folder, data["test"].image_shape)
    return found


_SPLITS = ("train", "validation", "test")


def images(seed: int, size: int) -> ImageSet:
    """Classes of random images: one prototype per class, and noise."""
    random = np.random.default_rng(seed)
    prototypes = random.integers(0, 128, (_CLASSES, 1, size, size, 1))
    noise = random.integers(0, 128, (_CLASSES, _EACH, size, size, 1))
    names = tuple(map(str, range(_CLASSES)))
    counts = np.full(_CLASSES, _EACH, np.int32)
    return ImageSet((prototypes + noise).astype(np.uint8), counts, names, (0.5,), (0.25,))


def stop_in_second_epoch(config: FewShotConfig, data: Any, folder: RunFolder) -> None:
    """Run until the second epoch; the state is saved then."""
    epochs = [0]
    hooks = Hooks(
        progress=lambda progress: epochs.append(progress.epoch),
        should_stop=lambda: epochs[-1] > 0,
    )
    with contextlib.suppress(Stopped):
        run(config, data, folder, hooks)
        raise RuntimeError("the run was not stopped")


def _learned(folder: RunFolder, image_shape: tuple[int, int, int]) -> dict[str, list[Any]]:
    (params, mask), *_ = load_tested(finished(folder.path), image_shape).members
    return {
        "loss": [row["loss"] for row in folder.rows() if "loss" in row],
        "params": jax.tree.leaves(jax.device_get(params)),
        "mask": jax.tree.leaves(jax.device_get(mask)),
    }
