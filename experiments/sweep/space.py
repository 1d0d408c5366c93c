"""The settings that a sweep chooses, and the values they may have."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, get_args, get_type_hints

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from jaxsparse.training import ConfigError

Space = dict[str, BaseDistribution]

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_FORMS = "want NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,..."


def parse_space(words: Sequence[str], config: Any, fixed: Sequence[str] = ()) -> Space:
    """Read the words of `--space`.

    Args:
      words: `NAME=LOW:HIGH`, `NAME=LOW:HIGH:log` or `NAME=VALUE,VALUE,...`; a name is a field of
        `config` that holds a number.
      config: the configuration of the run.
      fixed: fields that may not be chosen, because they define the problem.

    Returns:
      Name -> distribution, in the order of the words.

    Raises:
      ConfigError: a word cannot be read, or a value is not valid; the message names the word.

    Examples:
      >>> parse_space(["inner_lr=0.03:0.5:log"], ContinualConfig())
      {'inner_lr': FloatDistribution(high=0.5, log=True, low=0.03, step=None)}
    """
    space: Space = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.replace("-", "_")
        if not equals or not name or not text:
            raise ConfigError(f"--space {word!r}: {_FORMS}")
        kind = _kind(config, name, fixed, word)
        if name in space:
            raise ConfigError(f"--space {word!r}: {name} is given twice")
        space[name] = _distribution(text, kind, word)
        for value in _extremes(space[name]):
            _check_value(config, name, value, word)
    if not space:
        raise ConfigError(f"--space must name at least one setting: {_FORMS}")
    return space


def grid_points(space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """All combinations of the values of a space; ConfigError if it has a range.

    Examples:
      >>> grid_points({"glances": CategoricalDistribution((5, 10))})
      [{'glances': 5}, {'glances': 10}]
    """
    values = []
    for name, distribution in space.items():
        if not isinstance(distribution, CategoricalDistribution):
            raise ConfigError(
                f"--space {name}: --sampler grid needs values, such as {name}=0.1,0.3; got a range"
            )
        values.append(distribution.choices)
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]


def as_json(space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """A space as plain values, to compare and to store."""
    return {name: {"kind": type(d).__name__, **d._asdict()} for name, d in space.items()}


def _kind(config: Any, name: str, fixed: Sequence[str], word: str) -> type:
    """int or float: the type of a field that may be chosen."""
    hint = get_type_hints(type(config)).get(name)
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    usable = [kind for kind in (int, float) if kind in kinds]
    if hint is None:
        raise ConfigError(f"--space {word!r}: there is no setting {name!r}")
    if not usable:
        raise ConfigError(f"--space {word!r}: only numbers are chosen, {name} is not a number")
    if name in fixed:
        raise ConfigError(f"--space {word!r}: {name} defines the problem and cannot be chosen")
    return usable[0]


def _distribution(text: str, kind: type, word: str) -> BaseDistribution:
    if ":" not in text:
        values = [_number(part, kind, word) for part in text.split(",")]
        if len(set(values)) < len(values):
            raise ConfigError(f"--space {word!r}: the values must be different")
        return CategoricalDistribution(values)
    low_text, high_text, *rest = text.split(":")
    if rest not in ([], ["log"]):
        raise ConfigError(f"--space {word!r}: {_FORMS}")
    low, high, log = _number(low_text, kind, word), _number(high_text, kind, word), bool(rest)
    if not low < high:
        raise ConfigError(f"--space {word!r}: LOW must be below HIGH")
    if log and low <= 0:
        raise ConfigError(f"--space {word!r}: LOW must be above 0 with log, got {low_text}")
    if kind is int:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _number(text: str, kind: type, word: str) -> Any:
    # The regular expression rejects what `float` also accepts, such as `1_0` and `nan`.
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ConfigError(f"--space {word!r}: {text!r} is not a finite number")
    if kind is int:
        if not float(text).is_integer() or abs(float(text)) >= 2**31:
            raise ConfigError(f"--space {word!r}: {text!r} is not a whole number below 2^31")
        return int(float(text))
    return float(text)


def _extremes(distribution: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return distribution.low, distribution.high


def _check_value(config: Any, name: str, value: Any, word: str) -> None:
    try:
        dataclasses.replace(config, **{name: value})
    except ConfigError as error:
        raise ConfigError(f"--space {word!r}: {error}") from error
