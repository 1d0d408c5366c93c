"""Checks that all configurations share. Each error message is one line."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from jaxsparse.checks import is_finite
from jaxsparse.gates import Init
from jaxsparse.training.errors import ConfigError, RunError
from jaxsparse.training.run_folder import RunFolder

Config = TypeVar("Config")


def check_types(config: Any) -> None:
    """Raise ConfigError unless every field has its type; an int is accepted for a float.

    NumPy's numbers become Python's, which the files of a run can hold.
    """
    for name, hint in get_type_hints(type(config)).items():
        kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        value = _plain(getattr(config, name))
        object.__setattr__(config, name, value)
        if not any(_is_of(value, kind) for kind in kinds):
            wanted = " or ".join(_NAMES.get(kind, "a word") for kind in kinds)
            raise ConfigError(f"{name} must be {wanted}, got {value!r}")


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "none",
    tuple[int, ...]: "whole numbers",
}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _is_of(value: Any, kind: Any) -> bool:
    if kind in (bool, NoneType):
        return isinstance(value, kind)
    if kind in (int, float):
        number = Integral if kind is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of(x, get_args(kind)[0]) for x in value)
    return isinstance(value, str)  # the choices of a Literal are checked by `check_choices`


def stored_config(folder: RunFolder, kind: type[Config], experiment: str) -> Config:
    """The configuration of a run; fields that are newer than the run have their defaults.

    Raises:
      RunError: the run is not one of this experiment.
    """
    return recorded_config(folder.config(), folder.path / "config.json", kind, experiment)


def recorded_config(
    record: dict[str, Any], path: Path, kind: type[Config], experiment: str
) -> Config:
    """The configuration in the content of a config.json; `path` is for the error."""
    stored = record.get("config")
    try:
        if record.get("experiment", experiment) != experiment:
            raise ConfigError(f"its experiment is {record['experiment']!r}")
        if not isinstance(stored, dict):
            raise ConfigError(f"'config' must be a dict, got {stored!r}")
        fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        if unknown := sorted(stored.keys() - fields):
            raise ConfigError(f"unknown settings: {', '.join(unknown)}")
        return kind(**stored)
    except ConfigError as error:
        raise RunError(f"{path} is not a run of {experiment}: {error}") from error


def check_positive(config: Any, names: Iterable[str]) -> None:
    """Raise ConfigError unless these fields are 1 or more (or None)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= 1:
            raise ConfigError(f"{name} must be 1 or more, got {value}")


def check_not_negative(config: Any, names: Iterable[str]) -> None:
    """Raise ConfigError unless these fields are finite and 0 or more."""
    for name in names:
        value = getattr(config, name)
        if value < 0 or not is_finite(value):
            wanted = "0 or more" if value < 0 else "finite"
            raise ConfigError(f"{name} must be {wanted}, got {value}")


def check_seeds(config: Any, names: Iterable[str]) -> None:
    """Raise ConfigError unless these fields, and all seeds of the run, are valid for JAX keys."""
    for name in names:
        if not 0 <= getattr(config, name) <= 2**31 - 2:
            raise ConfigError(f"{name} must lie in [0, 2^31 - 2], got {getattr(config, name)}")
    room = 2**31 - 1 - config.seed
    if config.seeds > room:
        raise ConfigError(
            f"seeds must be at most {room} from seed {config.seed}, got {config.seeds}"
        )


def check_choices(config: Any, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raise ConfigError unless each field is one of its choices."""
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            listed = ", ".join(allowed)
            raise ConfigError(f"{name} must be one of {listed}, got {getattr(config, name)!r}")


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


def parse_init(text: str, words: tuple[str, ...] = ("kaiming", "auto")) -> Init:
    """Read a mask initialisation: one of `words`, a finite number, or a range `low:high`.

    Examples:
      >>> parse_init("0.005:0.1")
      (0.005, 0.1)
    """
    if text in words:
        return text
    parts = text.split(":")
    # The regular expression rejects other forms that `float` accepts, such as `1_0`.
    values = tuple(map(float, parts)) if all(map(_NUMBER.fullmatch, parts)) else ()
    if not all(map(math.isfinite, values)):
        values = ()
    if len(values) == 1:
        return values[0]
    if len(values) == 2 and values[0] < values[1]:
        return (values[0], values[1])
    named = "".join(f"{word}, " for word in words if word != "auto")
    raise ConfigError(f"mask_init must be {named}a number or low:high, got {text!r}")
