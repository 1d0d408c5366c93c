"""JSON files, and the rows of a run's metrics."""

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


def to_json(value: dict[str, Any]) -> str:
    """JSON with indentation."""
    # Innermost lists on one line: a matrix has one line per row.
    text = re.sub(
        r"\[\n\s*([^\[\]{}]*?)\n\s*\]",
        lambda found: "[" + re.sub(r"\n\s*", " ", found[1]) + "]",
        json.dumps(value, indent=2, allow_nan=False),
    )
    return text + "\n"


def to_line(value: Any) -> str:
    """JSON on one line."""
    return json.dumps(value, allow_nan=False) + "\n"


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append a line atomically; remove an incomplete last line that a killed process left."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        end = os.lseek(file, 0, os.SEEK_END)
        if end:
            os.lseek(file, end - 1, os.SEEK_SET)
            if os.read(file, 1) != b"\n":
                end = path.read_bytes().rfind(b"\n") + 1
                os.ftruncate(file, end)
        left = to_line(value).encode()
        try:
            while left:
                left = left[os.write(file, left) :]
        except BaseException:
            with suppress(OSError):
                os.ftruncate(file, end)
            raise
    finally:
        os.close(file)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """A row of metrics, with numbers or lists or dicts of numbers; None if `line` is not one."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and _is_count(row.get("step")) and _holds_numbers(row)
    return row if whole else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_holds_numbers, value.values()))
    if isinstance(value, list):
        return all(x is None or isinstance(x, int | float) for x in value)
    return value is None or isinstance(value, int | float)


def null_for_nan(value: Any, name: str = "") -> tuple[Any, list[str]]:
    """`value` with None for non-finite numbers, and the names of these numbers."""
    if isinstance(value, float):
        return (value, []) if math.isfinite(value) else (None, [name])
    if isinstance(value, dict):
        found = {key: null_for_nan(x, f"{name}/{key}" if name else key) for key, x in value.items()}
        return {key: x for key, (x, _) in found.items()}, [
            n for _, ns in found.values() for n in ns
        ]
    if isinstance(value, list | tuple):
        listed = [null_for_nan(x, name) for x in value]
        return [x for x, _ in listed], [n for _, ns in listed for n in ns]
    return value, []


def flat(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The scalars of a row under slash-joined names; a list of seeds gives its mean."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, float(np.array(value, float).mean())  # null becomes NaN
