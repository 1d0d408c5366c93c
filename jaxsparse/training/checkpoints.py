"""Checkpoints, written by orbax, with digests of the files and of the arrays.

A checkpoint is a folder `N/`. It holds `state/`, written by orbax, and `position/metadata`, a JSON
record: how far the run was, a digest of the arrays, and a digest of each file. The files are
checked before orbax reads them, so orbax never sees damaged files.
"""

import gc
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxsparse.training import processes
from jaxsparse.training.errors import RunError, WriteError, one_line, writing

Tree = Any
KEPT = 3
# Renamed fields of states, and the names that checkpoints store them under.
_STORED_NAMES = {"first_nonfinite_step": "bad_step"}
# The arrays are small, and all of them are on the first process's host when it writes them.
_FIRST_ONLY = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="jaxsparse"
)
# orbax and the libraries it uses may take other paths for glob patterns or URLs.
_PLAIN = re.compile(r"[A-Za-z0-9_./+=,@~-]+")


class Checkpoints:
    """The newest states of a run, under one folder."""

    def __init__(self, path: Path):
        self.path = path
        # Outside the folder of checkpoints: an unfinished one never has a checkpoint's name.
        self._partial = path.parent / ".checkpoint.partial"

    def save(self, state: Tree, position: dict[str, int]) -> None:
        """Write a checkpoint atomically, and delete all but the newest three.

        The first checkpoint of a run is read back at once, to find problems before hours of
        training. With several processes, the first one writes it.

        Raises:
          WriteError: the checkpoint could not be written; the earlier ones are unchanged.
        """
        arrays = _named_arrays(state)
        if not processes.is_first():
            return
        with writing(self.path):
            numbered = self._numbered()
            number = max(numbered, default=0) + 1
            try:
                _remove(self._partial)
                self._partial.mkdir()
                self._check_room(sum(array.nbytes for array in arrays.values()))
                _write(self._partial, arrays, position)
                if not numbered:
                    _read(self._partial)
                self.path.mkdir(exist_ok=True)
                self._partial.rename(self.path / str(number))
                for old in sorted(numbered)[: 1 - KEPT]:
                    # Renamed first, so that a kill never leaves half a checkpoint.
                    numbered[old].rename(self._partial)
                    _remove(self._partial)
            except BaseException:
                with suppress(OSError):
                    _remove(self._partial)
                raise

    def _check_room(self, size: int) -> None:
        # Checked before writing: after a failed write orbax keeps working in the background.
        free = shutil.disk_usage(self.path.parent).free
        if free < 2 * size + 2**16:
            raise WriteError(
                f"cannot write to {self.path}: no space left on the device"
                f" ({free / 2**20:.1f} MiB free, a checkpoint needs {2 * size / 2**20:.1f})"
            )
        if hasattr(os, "posix_fallocate"):  # it also respects quotas and file size limits
            places = [self._partial / "room1", self._partial / "room2"]
            for place in places:
                with place.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size + 2**15)
            for place in places:
                place.unlink()

    def restore(self, template: Tree, report: Callable[[str], None] | None) -> Tree | None:
        """The state of the newest undamaged checkpoint; None if there are no checkpoints.

        Newer, damaged checkpoints are reported and moved to broken/. Nothing is moved if no
        checkpoint can be read, or if its leaves differ from the template's.

        Args:
          template: a state with the wanted shapes and dtypes.
          report: called with one line for each checkpoint that is moved; None: nothing is moved.

        Raises:
          RunError: no checkpoint can be read, or its leaves differ from the template's.
        """
        arrays = processes.arrays_from_first(lambda: self._newest(template, report))
        return None if arrays is None else _rebuild(template, arrays)

    def _newest(
        self, template: Tree, report: Callable[[str], None] | None
    ) -> dict[str, np.ndarray] | None:
        damaged: list[tuple[int, str]] = []
        for number, path in sorted(self._numbered().items(), reverse=True):
            try:
                arrays = _read(path)
            except Damaged as error:
                damaged.append((number, str(error)))
                continue
            except OSError as error:
                raise RunError(f"{path} cannot be read: {one_line(error)}") from error
            _check_leaves(path, arrays, template)
            if report is None:
                return arrays
            for broken, why in damaged:
                report(f"checkpoint {broken} in {self.path} cannot be read: {why}")
                with writing(self.path):
                    self._set_aside(broken)
            return arrays
        if damaged:
            number, why = damaged[0]
            raise RunError(
                f"none of the checkpoints in {self.path} can be read, and nothing was changed;"
                f" checkpoint {number}: {why}"
            )
        return None

    def _numbered(self) -> dict[int, Path]:
        """The checkpoints by number."""
        try:
            paths = list(self.path.iterdir())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {one_line(error)}") from error
        return {int(p.name): p for p in paths if re.fullmatch("[0-9]{1,18}", p.name)}

    def _set_aside(self, number: int) -> None:
        target = self.path.parent / "broken" / f"{number}-{time.time_ns()}"
        target.parent.mkdir(exist_ok=True)
        self._numbered()[number].rename(target)


class Damaged(Exception):
    """A checkpoint differs from what was written; the message is one line."""


# ---- one checkpoint


def _write(folder: Path, arrays: dict[str, np.ndarray], position: dict[str, int]) -> None:
    def save(checkpointer, path):
        checkpointer.save(path / "state", args=ocp.args.StandardSave(arrays))

    _with_orbax(folder, save)
    files = {str(path.relative_to(folder)): _file_digest(path) for path in _files(folder)}
    record = {**position, "digest": _digest(arrays), "files": files}
    (folder / "position").mkdir()
    with (folder / "position" / "metadata").open("w") as file:
        file.write(json.dumps(record))
        file.flush()
        os.fsync(file.fileno())


def _read(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, without a check of their names and shapes.

    Raises:
      Damaged: the files differ from what was written.
      OSError: the file system cannot read them; they may be undamaged.
    """
    try:
        record = json.loads((folder / "position" / "metadata").read_bytes())
        wanted, files = record["digest"], record.get("files", {})
        broken = [name for name, digest in files.items() if _file_digest(folder / name) != digest]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        name = str(error.filename).removeprefix(f"{folder}{os.sep}")
        raise Damaged(f"{name}: {one_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"position/metadata: {one_line(error)}") from error
    if broken:
        raise Damaged(f"{broken[0]} does not match its digest")
    try:
        tree = _with_orbax(folder, lambda checkpointer, path: checkpointer.restore(path / "state"))
        arrays = {name: np.asarray(array) for name, array in tree.items()}
    except (RuntimeError, AttributeError) as error:
        # Only happens without file digests (older versions), or with another version of orbax.
        raise Damaged(one_line(error)) from error
    if _digest(arrays) != wanted:
        raise Damaged("its arrays do not match their digest")
    return arrays


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---- orbax


def _with_orbax(folder: Path, action: Callable[[ocp.Checkpointer, Path], Any]) -> Any:
    """Call `action(checkpointer, path)`, where `path` leads to `folder`.

    Raises:
      RuntimeError: it failed; the message is one line. orbax's own error is not chained: it would
        keep tasks alive that print errors when the process ends.
    """
    with _plain_path(folder) as path, _quiet() as stay_quiet:
        try:
            handler = ocp.StandardCheckpointHandler(multiprocessing_options=_FIRST_ONLY)
            with ocp.Checkpointer(handler, multiprocessing_options=_FIRST_ONLY) as checkpointer:
                return action(checkpointer, path)
        except Exception as error:  # orbax raises many types of errors
            stay_quiet()
            failure = one_line(_first_cause(error)).replace(str(path), str(folder))
        gc.collect()
    raise RuntimeError(failure)


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _plain_path(folder: Path) -> Iterator[Path]:
    """A path to `folder` that is not taken for a pattern or URL: itself, or a temporary link."""
    whole = folder.absolute()
    if _PLAIN.fullmatch(str(whole)):
        yield whole
        return
    place = next((p for p in (tempfile.gettempdir(), "/tmp") if _PLAIN.fullmatch(p)), None)
    if place is None:
        raise RunError(
            f"{folder} has characters other than letters, digits and _./+=,@~-; then the path"
            f" TMPDIR must have none of them, got {tempfile.gettempdir()}"
        )
    with tempfile.TemporaryDirectory(prefix="jaxsparse-", dir=place) as own:
        link = Path(own) / "folder"
        link.symlink_to(whole)
        yield link


@contextmanager
def _quiet() -> Iterator[Callable[[], None]]:
    """Suppress what orbax's leftover tasks and threads print when it fails.

    Call the result to keep their last error suppressed after the block: they may run on for a
    while.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    in_threads, show = threading.excepthook, sys.unraisablehook

    def unless_closed(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    afterwards = [show]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    threading.excepthook = lambda unused: None
    sys.unraisablehook = lambda unused: None
    try:
        yield lambda: afterwards.append(unless_closed)
    finally:
        threading.excepthook, sys.unraisablehook = in_threads, afterwards[-1]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---- trees


def _named_arrays(state: Tree) -> dict[str, np.ndarray]:
    """The leaves of `state` on the host, by their paths."""
    return {name: np.asarray(x) for name, x in _raw_words(_by_path(state)).items()}


def _by_path(state: Tree) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _name(path: tuple) -> str:
    """The path of a leaf as `a.b.0`; different paths have different names."""
    parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
    parts = [_STORED_NAMES.get(part, part) for part in parts]
    return ".".join(quote(part, safe="").replace(".", "%2E") for part in parts) or "."


def _raw_words(leaves: dict[str, Any]) -> dict[str, Any]:
    return {name: jax.random.key_data(x) if _is_key(x) else x for name, x in leaves.items()}


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _implementation(key: Any) -> Any:
    """The PRNG implementation of a key, or of a key's shape and dtype."""
    found: list[Any] = []
    jax.eval_shape(lambda x: found.append(jax.random.key_impl(x)), key)
    return found[0]


def _check_leaves(path: Path, arrays: dict[str, np.ndarray], template: Tree) -> None:
    """Raise RunError unless the arrays have the names, shapes and dtypes of the template."""
    wanted = jax.eval_shape(_raw_words, _by_path(template))
    for name in {**wanted, **arrays}:
        got, want = (_described(leaves.get(name)) for leaves in (arrays, wanted))
        if got != want:
            raise RunError(
                f"{path} was saved by another program or in another environment: {name} is {got},"
                f" want {want}; nothing was changed"
            )


def _described(leaf: Any) -> str:
    return "absent" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _rebuild(template: Tree, arrays: dict[str, np.ndarray]) -> Tree:
    def device(name, leaf):
        if _is_key(leaf):
            words = jax.numpy.asarray(arrays[name])
            return jax.random.wrap_key_data(words, impl=_implementation(leaf))
        return jax.numpy.asarray(arrays[name])

    leaves = [device(name, leaf) for name, leaf in _by_path(template).items()]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
