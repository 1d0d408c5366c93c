"""Read a finished sweep from its folder; Optuna is not needed."""

import json
from pathlib import Path
from typing import Any

from jaxsparse.training import RunError
from jaxsparse.training.errors import reading, trusting
from jaxsparse.training.rows import to_line

TRIALS = "trials.json"


def trials_of(out: Path, settings: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The trials with a value from the best on; None if there is no finished sweep in `out`.

    Args:
      out: the folder of the sweep.
      settings: the settings that the sweep must have, except for those that it chooses.

    Raises:
      RunError: the folder holds a sweep with other settings, or its file is damaged.
    """
    path = out / TRIALS
    if not path.exists():
        return None
    with reading(path):
        stored = json.loads(path.read_text(encoding="utf-8"))
    with trusting(path):
        setup, wanted = stored["setup"]["config"], json.loads(to_line(settings))
        shared = setup.keys() & wanted.keys()
        if {name: setup[name] for name in shared} != {name: wanted[name] for name in shared}:
            raise RunError(f"{out} holds another sweep; choose another --out")
        return [trial for trial in stored["trials"] if trial["state"] == "COMPLETE"]


def winner_path(out: Path, number: int) -> Path:
    """The folder of the run of a sweep's best trial."""
    return out / f"winner-{number:05}"
