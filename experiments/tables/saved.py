"""The results file of a table or figure: all its runs in one small file.

{"flags": {"seeds": 3}, "runs": {"rotations-er": {"config": ..., "result": ..., "rows": ...}}}

Of each run it holds the content of `config.json` (configuration, versions, device, digest of the
data), the result without the accuracy matrices, the rows of metrics that the table reads, and its
tests on other data.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxsparse.training import RunError, RunFolder, writing
from jaxsparse.training.errors import reading, trusting
from jaxsparse.training.files import replace_text

RESULTS = Path(__file__).resolve().parents[2] / "results"
_NOT_CONFIG = ("result", "rows", "evaluations")


class Saved(NamedTuple):
    """The content of a results file.

    Attributes:
      path: path of the file.
      flags: the flags of the table that differ from the defaults.
      runs: name -> what is kept of the run.
    """

    path: Path
    flags: dict[str, Any]
    runs: dict[str, dict[str, Any]]


class SavedRun(RunFolder):
    """A run in a results file, with the interface of a run folder."""

    def __init__(self, path: Path, unit: str, content: dict[str, Any]):
        super().__init__(path, unit)
        self._content = content

    def config(self) -> dict[str, Any]:
        """The content of the run's `config.json`."""
        return {name: value for name, value in self._content.items() if name not in _NOT_CONFIG}

    def result(self) -> dict[str, Any] | None:
        """The result of the run."""
        return self._content["result"]

    def rows(self) -> list[dict[str, Any]]:
        """The metrics of the run that the table reads."""
        return self._content["rows"]

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """A test of the run on other data, if it was saved."""
        return self._content.get("evaluations", {}).get(name)


def content(folder: RunFolder, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a results file keeps of a finished run; `Runner` adds rows and tests on other data."""
    record = folder.config()
    # The folders of the data and of the other run are private to the machine.
    public: dict[str, str | None] = {"data_dir": None}
    if record["config"].get("theta_from"):
        public["theta_from"] = Path(record["config"]["theta_from"]).name
    kept = {**record, "config": {**record["config"], **public}, "result": dict(result)}
    if "seeds" in result:
        kept["result"]["seeds"] = [_without_lists(seed) for seed in result["seeds"]]
    return kept


def loses(old: Mapping[str, Any], new: Mapping[str, Any] | None) -> bool:
    """Whether a run, or a test of the same run on other data, is in `old` but not in `new`."""
    if new is None:
        return True
    tests = old.get("evaluations", {}).keys() - new.get("evaluations", {}).keys()
    return bool(tests) and old["result"] == new["result"]


def _without_lists(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the accuracy matrices: they are large, and no table reads them."""
    return {name: value for name, value in entries.items() if not isinstance(value, list)}


def results() -> Path:
    """The folder of the results files, relative to the working folder if it is inside."""
    here = Path.cwd()
    return RESULTS.relative_to(here) if RESULTS.is_relative_to(here) else RESULTS


def file_of(name: str) -> Path:
    """The path of a results file; `name` is for example "table S5"."""
    return results() / f"{name.lower().replace(' ', '-')}.json"


def read(name: str) -> Saved:
    """Read the results file of a table or figure; a missing or damaged one is a `RunError`."""
    path = file_of(name)
    if not path.exists():
        raise RunError(f"no runs of {name} are saved: there is no file {path}")
    return _read(path)


def _read(path: Path) -> Saved:
    with reading(path):
        value = json.loads(path.read_text(encoding="utf-8"))
    with trusting(path):
        flags = {flag: _plain(entry) for flag, entry in value["flags"].items()}
        runs = {
            run: {**kept, "result": dict(kept["result"])} for run, kept in value["runs"].items()
        }
    return Saved(path, flags, runs)


def read_or_empty(name: str) -> Saved:
    """Read a results file as `read` does; a missing one has no runs."""
    path = file_of(name)
    return _read(path) if path.exists() else Saved(path, {}, {})


def read_all(name: str) -> list[Saved]:
    """Read all results files; that of `name` is the first one."""
    first = file_of(name)
    paths = sorted(results().glob("*.json"), key=lambda path: (path != first, path))
    return [_read(path) for path in paths]


def write(name: str, flags: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write the results file of a table or figure, one line for each entry of a run."""
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
    """A value of a flag: lists of JSON become tuples."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
