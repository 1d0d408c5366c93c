"""The folder of a run: its configuration, metrics, checkpoints and result.

config.json      what was asked for
metrics.jsonl    one row per epoch, or per task of a stream
timing.jsonl     seconds of compilation and of every row
checkpoints/     the newest states, by orbax; each carries a digest of its arrays
events.out.*     the same metrics for TensorBoard
result.json      written once, at the end
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsparse.training.errors import RunError, one_line, writing

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter


class RunFolder:
    """Reads one run's folder and, within `lock`, writes to it.

    `unit` names what a row of the metrics is about: an "epoch", or a "task" of a stream.
    """

    def __init__(self, path: Path, unit: str = "epoch"):
        self.path, self.unit = path, unit
        self._events: EventsWriter | None = None
        self._waiting: list[tuple[int, dict[str, float] | None]] = []  # for TensorBoard

    # ---- opening

    @classmethod
    def create(cls, path: Path, config: dict[str, Any], unit: str = "epoch") -> "RunFolder":
        """Make the folder of a new run.

        Raises:
          RunError: the folder holds another run or other files, or cannot be written.
        """
        cls.check_new(path)
        folder = cls(path, unit)
        with writing(path, RunError):
            path.mkdir(parents=True, exist_ok=True)
            _write_json(path / "config.json", config)
        return folder

    @staticmethod
    def check_new(path: Path) -> None:
        """Raise RunError unless a new run may be made at `path`."""
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, want a folder for the run")
        if (path / "config.json").exists():
            raise RunError(f"{path} holds another run; continue it with --resume {path}")
        if path.exists() and any(path.iterdir()):
            raise RunError(f"{path} is not empty; name a new folder")

    @classmethod
    def open(cls, path: Path, unit: str = "epoch") -> "RunFolder":
        """Open the folder of a run that is to go on.

        Raises:
          RunError: there is no run there.
        """
        if not (path / "config.json").is_file():
            raise RunError(f"{path} holds no run: no config.json there")
        return cls(path, unit)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing to the folder; close the event file at the end.

        Raises:
          RunError: another process is writing to it, or it cannot be written.
        """
        with writing(self.path, RunError):
            file = (self.path / ".lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{self.path} is being written by another process") from None
            try:
                yield
            finally:
                if self._events is not None:
                    with suppress(OSError):  # a full disk has been reported when a row was written
                        self._events.close()
                    self._events = None

    # ---- small files

    def config(self) -> dict[str, Any]:
        """The configuration of the run, as a dict.

        Raises:
          RunError: config.json cannot be read.
        """
        return _read_json(self.path / "config.json")

    def result(self) -> dict[str, Any] | None:
        """The result, or None before the end."""
        path = self.path / "result.json"
        return _read_json(path) if path.exists() else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, whole or not at all."""
        with writing(self.path):
            _write_json(self.path / "result.json", result)

    def log_timing(self, **seconds: Any) -> None:
        """Append a line to timing.jsonl."""
        with writing(self.path):
            _append_line(self.path / "timing.jsonl", seconds)

    # ---- metrics

    def rows(self) -> list[dict[str, Any]]:
        """The metrics of the epochs (or tasks) so far; number 0 is the state before training."""
        return list(_complete_rows(self.path / "metrics.jsonl"))

    def keep_rows(self, last: int) -> None:
        """Drop the rows after number `last`: the run goes on from an earlier checkpoint.

        Args:
          last: the last row to keep; -1 drops all: the run starts anew.

        Raises:
          RunError: rows up to that one are missing.
        """
        rows = self.rows()
        kept = [row for row in rows if row[self.unit] <= last]
        if last and [row[self.unit] for row in kept] != list(range(last + 1)):
            raise RunError(f"{self.path / 'metrics.jsonl'} lacks {self.unit}s before {last}")
        with writing(self.path):
            text = "".join(json.dumps(row) + "\n" for row in kept)
            _replace_text(self.path / "metrics.jsonl", text)
            if kept:
                self._waiting.append((kept[-1]["step"] + 1, None))
                if len(kept) == 1:  # then it was still waiting when the run was stopped
                    self._waiting.insert(0, (kept[0]["step"], self._scalars(kept[0])))

    def add_row(self, row: dict[str, Any]) -> None:
        """Append the metrics of an epoch (or task) to metrics.jsonl and the TensorBoard events."""
        with writing(self.path):
            _append_line(self.path / "metrics.jsonl", row)
            self._waiting.append((row["step"], self._scalars(row)))
            # tensorboardX takes seconds to import where PyTorch is installed: what is there before
            # the first epoch waits for its end, so that the run starts at once.
            if row[self.unit] > 0:
                self._write_events()

    def _scalars(self, row: dict[str, Any]) -> dict[str, float]:
        """What TensorBoard shows of a row."""
        return {name: value for name, value in _flat(row) if name not in (self.unit, "step")}

    def _write_events(self) -> None:
        # Written here and not by tensorboardX's SummaryWriter, whose background thread would
        # meet a full disk where nobody can report it.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._events is None:
            self._events = EventsWriter(str(self.path / "events"))
        while self._waiting:
            step, scalars = self._waiting.pop(0)
            if scalars is None:  # TensorBoard forgets what an earlier process wrote from here on
                start = SessionLog(status=SessionLog.START)
                self._events.write_event(Event(step=step, session_log=start, wall_time=time.time()))
            for name, value in (scalars or {}).items():
                one = summary.scalar(name, value)
                self._events.write_event(Event(step=step, summary=one, wall_time=time.time()))
        self._events.flush()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {one_line(error)}") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    # Innermost lists on one line: a matrix is a line for each of its rows.
    text = re.sub(
        r"\[\n\s*([^\[\]{}]*?)\n\s*\]",
        lambda found: "[" + re.sub(r"\n\s*", " ", found[1]) + "]",
        json.dumps(value, indent=2),
    )
    _replace_text(path, text + "\n")


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _append_line(path: Path, value: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def _complete_rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return  # the line a killed process was writing


def _flat(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The scalars of a row under slash-joined names, the mean where there are several seeds."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, float(np.mean(value))
