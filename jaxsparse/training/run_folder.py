"""The folder of a run: its configuration, metrics, checkpoints and result.

config.json      settings, versions and environment
metrics.jsonl    one row per epoch, task or interval
timing.jsonl     seconds of compilation and of every row
checkpoints/     the newest states, written by orbax, each with digests of its files and arrays
events.out.*     the same metrics for TensorBoard
result.json      written once, at the end
"""

import json
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxsparse.training.errors import RunError, reading, writing
from jaxsparse.training.files import is_partial, replace_text
from jaxsparse.training.locks import HOLDER, LOCK, locked
from jaxsparse.training.rows import append_line, flat, null_for_nan, parse_row, to_json, to_line
from jaxsparse.training.tensorboard import TensorBoard

_UNITS = ("epoch", "task", "interval")
_CONFIG, _ROWS, _RESULT = "config.json", "metrics.jsonl", "result.json"


class RunFolder:
    """Reads the folder of one run and, while its lock is held, writes to it.

    `unit` is what a row of metrics covers: an "epoch", a "task" or an "interval". Set `tensorboard`
    to None to write no TensorBoard events.
    """

    def __init__(self, path: Path, unit: str = "epoch"):
        self.path, self.unit = path, unit
        self.tensorboard: TensorBoard | None = TensorBoard(path)
        self._told: set[str] = set()  # files for which a warning about non-finite numbers was given

    # ---- opening

    @classmethod
    def create(cls, path: Path, config: dict[str, Any], unit: str = "epoch") -> "RunFolder":
        """Make the folder of a new run.

        The folder may exist if it is empty, or if it holds only what an interrupted `create` left.

        Raises:
          RunError: the folder holds another run or other files, another process is writing to it,
            or it cannot be written.
        """
        cls.check_new(path, config)
        folder = cls(path, unit)
        with folder.lock():
            cls.check_new(path, config)  # again: before the lock other processes could write here
            folder.begin(config)
        return folder

    @classmethod
    def create_unnamed(cls, path: Path) -> Path:
        """Make an empty folder at `path`; if it exists, at `path`-2, `path`-3, ..."""
        number, place = 1, path
        with writing(path, RunError):
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    place.mkdir()
                    return place
                except FileExistsError:
                    number += 1
                    place = path.with_name(f"{path.name}-{number}")

    @staticmethod
    def check_new(path: Path, config: Mapping[str, Any] | None = None) -> None:
        """Raise RunError unless a new run may be made at `path`.

        The folder may hold a run that has not started if its config.json has the entries of
        `config`.
        """
        with reading(path):
            if path.is_symlink() and not path.exists():
                raise RunError(f"{path} is a broken link, want a folder for the run")
            if not path.exists():
                return
            if not path.is_dir():
                raise RunError(f"{path} is a file, want a folder for the run")
            entries = {entry.name for entry in path.iterdir() if not _is_unfinished(entry.name)}
        if _CONFIG in entries:
            if entries == {_CONFIG} and config and _has_entries(path / _CONFIG, config):
                return
            place = shlex.quote(str(path))
            raise RunError(f"{path} holds another run; continue it with --resume {place}")
        if entries:
            raise RunError(f"{path} is not empty; name a new folder")

    @classmethod
    def open(cls, path: Path, unit: str = "epoch") -> "RunFolder":
        """Open the folder of an existing run; RunError if there is none."""
        with reading(path):
            if (path / _CONFIG).is_file():
                return cls(path, unit)
            cut_off = path.is_dir() and any(_is_unfinished(entry.name) for entry in path.iterdir())
        again = (
            f"; its creation was interrupted, start it again with --out {shlex.quote(str(path))}"
        )
        hint = again if cut_off else ""
        raise RunError(f"{path} holds no run: it has no config.json{hint}")

    @classmethod
    def is_there(cls, path: Path) -> bool:
        """Whether `path` holds a run; RunError if it cannot be read."""
        with reading(path):
            return (path / _CONFIG).is_file()

    @contextmanager
    def lock(self, wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Keep other processes from writing to the folder; close the event file at the end.

        `wait` is called again and again while another process holds the lock; it sleeps or raises.
        Without `wait`, a lock held by another process raises RunError.
        """
        with writing(self.path, RunError):
            self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, wait):
            self._sweep()
            try:
                yield
            finally:
                if self.tensorboard is not None:
                    self.tensorboard.close()

    def begin(self, config: dict[str, Any]) -> None:
        """Write config.json unless it exists. The caller holds the lock."""
        with writing(self.path, RunError):
            if not (self.path / _CONFIG).exists():
                replace_text(self.path / _CONFIG, to_json(config))

    def _sweep(self) -> None:
        """Remove partial files of killed processes. The caller holds the lock."""
        with suppress(OSError):
            for entry in list(self.path.iterdir()):
                if is_partial(entry.name, ".json") or is_partial(entry.name, ".jsonl"):
                    entry.unlink()

    def content(self) -> dict[str, Any]:
        """What another process must know of the folder: config.json ({} without one) and rows."""
        config = self.config() if self.is_there(self.path) else {}
        return {"config": config, "rows": self._readable_rows()[0]}

    # ---- small files

    def config(self) -> dict[str, Any]:
        """The contents of config.json; RunError if it cannot be read."""
        return _read_json(self.path / _CONFIG)

    def result(self) -> dict[str, Any] | None:
        """The contents of result.json; None before the end of the run."""
        path = self.path / _RESULT
        with reading(path):
            there = path.exists()
        return _read_json(path) if there else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json atomically; non-finite numbers become null."""
        with writing(self.path):
            replace_text(self.path / _RESULT, to_json(self._finite(_RESULT, result)))

    def log_timing(self, **seconds: Any) -> None:
        """Append a line to timing.jsonl."""
        with writing(self.path):
            append_line(self.path / "timing.jsonl", seconds)

    # ---- metrics

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics so far; row 0 is the state before training."""
        rows, problem = self._readable_rows()
        if problem:
            raise RunError(problem)
        return rows

    def keep_rows(self, last: int) -> None:
        """Drop the rows after row `last`, because the run resumes from an earlier checkpoint.

        With -1 all rows are dropped: the run starts again. RunError if earlier rows are missing.
        """
        rows, problem = self._readable_rows()
        kept = rows[: last + 1]
        if len(kept) != last + 1:
            raise RunError(problem or f"{self.path / _ROWS} lacks {self.unit}s up to {last}")
        with writing(self.path):
            replace_text(
                self.path / _ROWS, "".join(to_line(self._finite(_ROWS, row)) for row in kept)
            )
            if kept and self.tensorboard is not None:
                if not self.tensorboard.has_events():
                    for row in kept:
                        self.tensorboard.add(row["step"], self.scalars(row))
                self.tensorboard.restart(kept[-1]["step"] + 1)

    def add_row(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl and the TensorBoard events; non-finite numbers become null.

        Row 0 is written to TensorBoard together with row 1.
        """
        row = self._finite(_ROWS, row)
        with writing(self.path):
            append_line(self.path / _ROWS, row)
            if self.tensorboard is None:
                return
            self.tensorboard.add(row["step"], self.scalars(row))
            # If PyTorch is installed, importing tensorboardX takes seconds. It would delay the
            # start of the run.
            if row[self.unit] > 0:
                self.tensorboard.write()

    def scalars(self, row: dict[str, Any]) -> dict[str, float]:
        """The values of a row for TensorBoard and other loggers: means over the seeds, by name."""
        values = flat(null_for_nan(row)[0])
        return {name: value for name, value in values if name not in (self.unit, "step")}

    def _readable_rows(self) -> tuple[list[dict[str, Any]], str]:
        """The rows before the first unreadable one, and why it cannot be read ("" if all can)."""
        path = self.path / _ROWS
        rows: list[dict[str, Any]] = []
        with reading(path):
            text = _read_file(path) if path.exists() else b""
        *lines, torn = text.split(b"\n")
        for number, line in enumerate(lines):
            row = parse_row(line)
            if row is None or self._number(row) != number:
                what = f"line {number + 1} is not the row of {self.unit} {number}"
                return rows, f"{path} cannot be read: {what}"
            rows.append(row)
        # A killed process may have left an incomplete row.
        row = parse_row(torn)
        return rows if row is None or self._number(row) != len(rows) else [*rows, row], ""

    def _number(self, row: dict[str, Any]) -> Any:
        """The number of a row, whatever its unit: figures are drawn for runs of all families."""
        return next((row[name] for name in (self.unit, *_UNITS) if name in row), None)

    def _finite(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """`value` with null for non-finite numbers; warns once per file."""
        replaced, names = null_for_nan(value)
        if names and name not in self._told:
            self._told.add(name)
            listed = ", ".join(dict.fromkeys(names))
            warnings.warn(
                f"{self.path / name}: null for non-finite numbers: {listed}", stacklevel=3
            )
        return replaced


def _is_unfinished(name: str) -> bool:
    """Whether an interrupted `create` may leave a file of this name."""
    # The last name was used by earlier versions.
    ours = (LOCK, HOLDER, ".config.json.partial")
    return name in ours or is_partial(name, ".json") or is_partial(name)


def _has_entries(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether the configuration stored at `path` has these entries."""
    try:
        stored = _read_json(path)
    except RunError:
        return False
    wanted = json.loads(to_json(dict(config)))
    return all(stored.get(name) == value for name, value in wanted.items())


def _read_file(path: Path) -> bytes:
    if not path.is_file():  # reading a pipe would block
        raise RunError(f"{path} is not a file")
    return path.read_bytes()


def _read_json(path: Path) -> dict[str, Any]:
    with reading(path):
        value = json.loads(_read_file(path).decode())
    if not isinstance(value, dict):
        raise RunError(f"{path} cannot be read: want an object, got {to_line(value)[:40].strip()}")
    return value
