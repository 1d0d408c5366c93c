"""The results file of a table or figure: the runs that it is made of, in one small file.

{"flags": {"seeds": 3}, "runs": {"rotations-er": {"config": ..., "result": ..., "rows": ...}}}

A run is what its `config.json` holds (configuration, versions, device, digest of the data), its
result without the matrices of accuracies, and the rows of its metrics where a table reads them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxsparse.training import RunFolder, writing
from jaxsparse.training.errors import reading, trusting
from jaxsparse.training.files import replace_text

RESULTS = Path(__file__).resolve().parents[2] / "results"
_OWN = ("result", "rows")


class Saved(NamedTuple):
    """The content of a results file.

    Attributes:
      path: of the file.
      flags: those that the table was made with, where they are not the defaults.
      runs: by name, what is kept of each run.
    """

    path: Path
    flags: dict[str, Any]
    runs: dict[str, dict[str, Any]]


class SavedRun(RunFolder):
    """A run in a results file, read as the folder of a run is."""

    def __init__(self, path: Path, unit: str, content: dict[str, Any]):
        super().__init__(path, unit)
        self._content = content

    def config(self) -> dict[str, Any]:
        """What the run's `config.json` held."""
        return {name: value for name, value in self._content.items() if name not in _OWN}

    def result(self) -> dict[str, Any] | None:
        """The result of the run."""
        return self._content["result"]

    def rows(self) -> list[dict[str, Any]]:
        """The metrics of the run, as far as a table reads them."""
        return self._content["rows"]


def content(folder: RunFolder, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a results file keeps of a finished run; rows are added by who reads them."""
    record = folder.config()
    # Where somebody's data lies is no part of a result.
    kept = {**record, "config": {**record["config"], "data_dir": None}, "result": dict(result)}
    if "seeds" in result:
        kept["result"]["seeds"] = [_without_lists(seed) for seed in result["seeds"]]
    return kept


def _without_lists(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Without the matrices of accuracies, most of a result and read by no table."""
    return {name: value for name, value in entries.items() if not isinstance(value, list)}


def results() -> Path:
    """The folder of the results files, as one names it from the working folder."""
    here = Path.cwd()
    return RESULTS.relative_to(here) if RESULTS.is_relative_to(here) else RESULTS


def file_of(name: str) -> Path:
    """The results file of "table S5", say."""
    return results() / f"{name.lower().replace(' ', '-')}.json"


def read(name: str) -> Saved:
    """The results file of a table or figure.

    Raises:
      RunError: it is not there, or holds something else.
    """
    path = file_of(name)
    with reading(path):
        value = json.loads(path.read_text(encoding="utf-8"))
    with trusting(path):
        flags = {flag: _plain(entry) for flag, entry in value["flags"].items()}
        runs = {
            run: {**kept, "result": dict(kept["result"])} for run, kept in value["runs"].items()
        }
    return Saved(path, flags, runs)


def write(name: str, flags: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write the results file of a table or figure, a run's entry on one line.

    Raises:
      WriteError: it cannot be written; what was there is as it was.
    """
    lines = [
        f'"{run}": {{\n' + ",\n".join(_entry(*item) for item in kept.items()) + "\n}"
        for run, kept in sorted(runs.items())
    ]
    text = f'{{\n"flags": {json.dumps(flags)},\n"runs": {{\n' + ",\n".join(lines) + "\n}\n}\n"
    path = file_of(name)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
    return path


def _entry(name: str, value: Any) -> str:
    return f"{json.dumps(name)}: {json.dumps(value, allow_nan=False, separators=(',', ':'))}"


def _plain(value: Any) -> Any:
    """A value of a flag: JSON has lists where flags have tuples."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
