"""The folder of a run that several processes compute: process 0 writes, the others follow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from jaxsparse.training import processes
from jaxsparse.training.run_folder import RunFolder


@contextmanager
def held(folder: RunFolder, wait: Callable[[], None] | None = None) -> Iterator[RunFolder]:
    """Lock a run's folder, and give the other processes a copy in memory.

    Args:
      folder: the folder; only process 0 reads and writes it.
      wait: as in `RunFolder.lock`.
    """
    if not processes.is_first():
        yield FolderInMemory(folder, processes.from_first(dict))
        return
    with folder.lock(wait):
        if jax.process_count() > 1:
            processes.from_first(folder.content)
        yield folder


class FolderInMemory(RunFolder):
    """A run's folder as the processes other than the first have it: nothing is written.

    Args:
      folder: the folder.
      content: `folder.content()` of process 0.
    """

    def __init__(self, folder: RunFolder, content: dict[str, Any]):
        super().__init__(folder.path, folder.unit)
        self._config, self._rows = content["config"], content["rows"]

    def begin(self, config: dict[str, Any]) -> None:
        """Keep `config` unless there is one."""
        self._config = self._config or config

    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        return self._config

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics so far."""
        return list(self._rows)

    def keep_rows(self, last: int) -> None:
        """Drop the rows after row `last`."""
        del self._rows[last + 1 :]

    def add_row(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self._rows.append(row)

    def log_timing(self, **seconds: Any) -> None:
        """Nothing: process 0 writes them."""

    def write_result(self, result: dict[str, Any]) -> None:
        """Nothing: process 0 writes it."""
