"""What a service must be able to do, and what it is told of a run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

# How a process leaves a run: at its end, because of a signal, because of an error.
Ending = Literal["finished", "stopped", "failed"]


class Run(NamedTuple):
    """A run as a service sees it.

    Attributes:
      path: the run's folder.
      family: "fewshot", "continual" or "online".
      settings: the contents of config.json by name, see `flat_settings`.
    """

    path: Path
    family: str
    settings: dict[str, Any]


class Service(Protocol):
    """The client of a service. All methods may raise; `Loggers` handles that.

    Attributes:
      place: where the run is shown, for the console; set by `open`.
    """

    place: str

    def open(self, run: Run, known: str | None) -> str:
        """Start a run, or continue the run with the id `known`; returns the run's id.

        The id differs from `known` if the service has no such run; then a new run was started.
        """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a step; later calls have larger steps."""

    def figure(self, path: Path) -> None:
        """Log a PNG file."""

    def result(self, path: Path, values: Mapping[str, float]) -> None:
        """Log result.json and its numbers."""

    def close(self, ending: Ending) -> None:
        """Wait until everything is sent."""


def flat_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of config.json by slash-joined names.

    The settings have their own names; other entries begin with `record/`.

    Examples:
      >>> flat_settings({"config": {"shots": 5}, "versions": {"jax": "0.10.2"}})
      {'shots': 5, 'record/versions/jax': '0.10.2'}
    """
    others = {name: value for name, value in record.items() if name != "config"}
    return dict([*_leaves(record.get("config", {})), *_leaves(others, "record/")])


def flat_result(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of result.json, without those in lists, by names that begin with `result/`."""
    numbers = _leaves(result, "result/")
    return {name: float(value) for name, value in numbers if _is_number(value)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
