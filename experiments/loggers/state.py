"""loggers.json in a run's folder: which loggers the run has, and what each was sent."""

import json
from pathlib import Path
from typing import Any

from jaxsparse.training.errors import RunError, reading, writing
from jaxsparse.training.files import replace_text
from jaxsparse.training.rows import to_json

_FILE = "loggers.json"


def read_state(path: Path) -> dict[str, Any]:
    """The record in the folder `path`; {} if there is none.

    It has "loggers", a list of names, and for each service "id" of its run, "step" of the last row
    that it was sent (-1: none) and "finished".

    Raises:
      RunError: it cannot be read.
    """
    file = path / _FILE
    with reading(file):
        state = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    services = {n: v for n, v in state.items() if n != "loggers"} if _is_dict(state) else None
    if services is None or not all(map(_is_service, services.values())):
        raise RunError(f"{file} has contents that no run writes")
    return state


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_service(value: Any) -> bool:
    return (
        _is_dict(value)
        and isinstance(value.get("id"), str)
        and isinstance(value.get("step"), int)
        and isinstance(value.get("finished"), bool)
    )


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write the record atomically."""
    with writing(path / _FILE):
        replace_text(path / _FILE, to_json(state))
