"""The folder of a run: its configuration, metrics, checkpoints and result.

config.json      what was asked for
metrics.jsonl    one row per epoch
timing.jsonl     compile and epoch seconds; the only file that differs between equal runs
checkpoints/     the newest states, by orbax; each carries a digest of its arrays
events.out.*     the same metrics for TensorBoard
result.json      written once, at the end
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxsparse.checks import leaves_by_name

Tree = Any
KEPT_CHECKPOINTS = 3


class RunError(Exception):
    """A run folder that cannot be used as asked; the message is one line."""


class WriteError(RunError):
    """Something could not be written (a full disk, say); what was there is left as it was."""


class RunFolder:
    """Reads one run's folder and, within `lock`, writes to it."""

    def __init__(self, path: Path):
        self.path = path
        self._events: EventsWriter | None = None

    # ---- opening

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> "RunFolder":
        """Make the folder of a new run.

        Raises:
          RunError: the folder holds another run or other files, or cannot be written.
        """
        cls.check_new(path)
        folder = cls(path)
        with folder.writing(RunError):
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
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of a run that is to go on.

        Raises:
          RunError: there is no run there.
        """
        if not (path / "config.json").is_file():
            raise RunError(f"{path} holds no run: no config.json there")
        return cls(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing to the folder; close the event file at the end.

        Raises:
          RunError: another process is writing to it, or it cannot be written.
        """
        with self.writing(RunError):
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

    @contextmanager
    def writing(self, error_type: type[RunError] = WriteError) -> Iterator[None]:
        """Turn what the file system (or orbax on its behalf) refuses into one line."""
        try:
            yield
        except RunError:
            raise
        except Exception as error:
            raise error_type(f"cannot write to {self.path}: {_line(error)}") from error

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
        with self.writing():
            _write_json(self.path / "result.json", result)

    def log_timing(self, **seconds: Any) -> None:
        """Append a line to timing.jsonl."""
        with self.writing():
            _append_line(self.path / "timing.jsonl", seconds)

    # ---- metrics

    def rows(self) -> list[dict[str, Any]]:
        """The metrics of the epochs so far; epoch 0 is the state before training."""
        return list(_complete_rows(self.path / "metrics.jsonl"))

    def keep_rows(self, epoch: int) -> None:
        """Drop the rows after `epoch`: the run goes on from an earlier checkpoint.

        Raises:
          RunError: rows of epochs up to that one are missing.
        """
        rows = self.rows()
        kept = [row for row in rows if row["epoch"] <= epoch]
        if epoch and [row["epoch"] for row in kept] != list(range(epoch + 1)):
            raise RunError(f"{self.path / 'metrics.jsonl'} lacks epochs before {epoch}")
        with self.writing():
            text = "".join(json.dumps(row) + "\n" for row in kept)
            _replace_text(self.path / "metrics.jsonl", text)
            if kept:
                # TensorBoard forgets what an earlier process wrote from this step on.
                start = SessionLog(status=SessionLog.START)
                self._write_event(Event(step=kept[-1]["step"] + 1, session_log=start))

    def add_row(self, row: dict[str, Any]) -> None:
        """Append an epoch's metrics to metrics.jsonl and to the TensorBoard events."""
        with self.writing():
            _append_line(self.path / "metrics.jsonl", row)
            for name, value in _flat(row):
                if name not in ("epoch", "step"):
                    scalar = summary.scalar(name, value)
                    self._write_event(Event(step=row["step"], summary=scalar))
            if self._events is not None:
                self._events.flush()

    def _write_event(self, event: Event) -> None:
        # Written here and not by tensorboardX's SummaryWriter, whose background thread would
        # meet a full disk where nobody can report it.
        if self._events is None:
            self._events = EventsWriter(str(self.path / "events"))
        event.wall_time = time.time()
        self._events.write_event(event)

    # ---- checkpoints

    def save(self, state: Tree, position: dict[str, int]) -> None:
        """Write a checkpoint, whole or not at all, and drop those beyond the newest three.

        Raises:
          WriteError: it could not be written; the earlier ones are as they were.
        """
        arrays = _named_arrays(state)
        record = {**position, "digest": _digest(arrays)}
        with self.writing(), self._manager() as manager:
            self._check_room(sum(array.nbytes for array in arrays.values()))
            manager.save(
                max(manager.all_steps(), default=0) + 1,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), position=ocp.args.JsonSave(record)
                ),
            )

    def _check_room(self, size: int) -> None:
        # Asked beforehand: a disk that fills up under orbax ends some of its tasks with
        # exceptions that nobody collects.
        free = shutil.disk_usage(self.path).free
        if free < 2 * size + 2**16:
            raise WriteError(
                f"cannot write to {self.path}: no space left on the device"
                f" ({free / 2**20:.1f} MiB free, a checkpoint wants {2 * size / 2**20:.1f})"
            )

    def restore(self, template: Tree, report: Callable[[str], None]) -> Tree | None:
        """The newest checkpoint that can be read whole, or None if there is none.

        One that cannot be read is reported and set aside under broken/; the one before is tried.

        Args:
          template: a state of the shapes and dtypes that are wanted.
          report: called with one line for each checkpoint set aside.

        Raises:
          RunError: there are checkpoints, but none can be read.
        """
        if not (self.path / "checkpoints").is_dir():
            return None
        with self.writing(), self._manager() as manager:
            numbers = sorted(manager.all_steps(), reverse=True)
            for number in numbers:
                try:
                    return self._read(manager, number, template)
                except Exception as error:  # whatever a garbled file makes orbax raise
                    report(f"checkpoint {number} of {self.path} cannot be read: {_line(error)}")
                    self._set_aside(number)
        if numbers:
            raise RunError(f"none of the checkpoints of {self.path} can be read")
        return None

    def _read(self, manager, number, template):
        wanted = jax.eval_shape(_raw_words, _by_path(template))
        restored = manager.restore(
            number,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(wanted), position=ocp.args.JsonRestore()
            ),
        )
        # In the order of the template's leaves: JAX sorts the names of a dict.
        arrays = {name: np.asarray(restored["state"][name]) for name in _by_path(template)}
        if _digest(arrays) != restored["position"]["digest"]:
            raise ValueError("its arrays do not match their digest")
        return _rebuild(template, arrays)

    def _set_aside(self, number: int) -> None:
        target = self.path / "broken" / f"{number}-{time.time_ns()}"
        target.parent.mkdir(exist_ok=True)
        shutil.move(self.path / "checkpoints" / str(number), target)

    @contextmanager
    def _manager(self) -> Iterator[ocp.CheckpointManager]:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT_CHECKPOINTS, enable_async_checkpointing=False
        )
        directory = (self.path / "checkpoints").resolve()
        manager = ocp.CheckpointManager(directory, options=options)
        try:
            yield manager
        finally:
            manager.close()


def _named_arrays(state: Tree) -> dict[str, np.ndarray]:
    """The leaves of `state` on the host, under their paths."""
    return {name: np.asarray(x) for name, x in _raw_words(_by_path(state)).items()}


def _by_path(state: Tree) -> dict[str, Any]:
    return {name.replace("/", "."): leaf for name, leaf in leaves_by_name(state).items()}


def _raw_words(leaves: dict[str, Any]) -> dict[str, Any]:
    return {name: jax.random.key_data(x) if _is_key(x) else x for name, x in leaves.items()}


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _rebuild(template: Tree, arrays: dict[str, np.ndarray]) -> Tree:
    def device(leaf, array):
        if _is_key(leaf):
            return jax.random.wrap_key_data(array)
        return jax.numpy.asarray(array, leaf.dtype)

    leaves, tree = jax.tree.flatten(template)
    return jax.tree.unflatten(tree, map(device, leaves, arrays.values()))


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {_line(error)}") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _replace_text(path, json.dumps(value, indent=2) + "\n")


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
