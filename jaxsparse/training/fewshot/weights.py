"""What a run has learned in one file: theta, m, the configuration and the test result."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from jaxsparse.checks import leaves_by_name
from jaxsparse.training.errors import RunError, one_line, reading, writing
from jaxsparse.training.files import replacing

SUFFIX = ".safetensors"
FOLDER = Path(__file__).resolve().parents[2] / "pretrained"
_ENTRIES = ("config", "result")


class Weights(NamedTuple):
    """The content of a file of weights.

    Attributes:
      record: the configuration of the run, as in its config.json.
      result: its test result, as in its result.json.
      arrays: by name, such as "theta/conv1/kernel" and "mask/conv1/kernel".
      digest: SHA-256 of the file that they were read from.
    """

    record: dict[str, Any]
    result: dict[str, Any]
    arrays: dict[str, np.ndarray]
    digest: str = ""


def named_weights(theta: Any, mask: Any) -> dict[str, Any]:
    """The leaves of theta and of the mask parameters by their names in a file of weights."""
    return leaves_by_name({"theta": theta}) | leaves_by_name({"mask": mask})


def pretrained() -> tuple[str, ...]:
    """The names of the weights that come with jaxsparse; see `load_learner`.

    Examples:
      >>> "glyphs-5way-5shot-sparse-maml" in pretrained()
      True
    """
    return tuple(sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}")))


def weights_file(place: Path) -> Path | None:
    """The file of weights that `place` names; None if it names a folder, which may be missing.

    A name of `pretrained` is taken for one if there is no such file or folder.

    Raises:
      RunError: a single word is neither a file or folder nor such a name.
    """
    with reading(place):
        if place.is_dir():
            return None
        if place.exists():
            return place
    if len(place.parts) != 1:  # no name
        return None
    if str(place) in pretrained():
        return FOLDER / f"{place}{SUFFIX}"
    known = ", ".join(pretrained())
    raise RunError(f"{place}: there is no such run; weights that come with jaxsparse: {known}")


def read_weights(path: Path) -> Weights:
    """Read a file of weights.

    Raises:
      RunError: it is not one, or is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            stored = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        record, result = (json.loads(stored[name]) for name in _ENTRIES)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except KeyError as error:
        raise RunError(f"{path} has no {error}: it was not made by experiments.export") from error
    # AttributeError, TypeError: a dtype that NumPy does not have.
    except (
        safetensors.SafetensorError, OSError, ValueError, RecursionError, AttributeError, TypeError,
    ) as error:  # fmt: skip
        raise RunError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(record, dict) or not isinstance(result, dict):
        raise RunError(f"{path} has contents that no run writes")
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise RunError(f"{path}: {name} must be finite float32")
    return Weights(record, result, arrays, digest)


def write_weights(path: Path, weights: Weights) -> None:
    """Write a file of weights; an earlier file is replaced in one step.

    Raises:
      WriteError: it cannot be written.
    """
    texts: Mapping[str, Any] = {"config": weights.record, "result": weights.result}
    with writing(path):
        metadata = {name: json.dumps(value, allow_nan=False) for name, value in texts.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(safetensors.numpy.save(weights.arrays, metadata))
