"""What can be compared with what: a family of cases and its contestants."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from benchmarks import cases, glance

Trees = dict[str, dict[str, Any]]


class Contestant(Protocol):
    """One way to take the step of a case.

    One that also has `meta_gradient()`, trees like those of `result()`, is compared by that after
    its first step; the others by how far their results have moved from where they started.
    """

    name: str

    def step(self) -> None:
        """Take one step in place; return when it is done, on the device, too."""

    def result(self) -> Trees:
        """What the steps change, as NumPy arrays: {"params": {name: array}, ...}."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Cases of one kind and the contestants that take their steps.

    Attributes:
      name: what `python -m benchmarks.probe --family` calls it.
      case: makes a case of its fields. A case is a dataclass with `name`, `tasks_taken`,
        `inner_steps_taken` and `flops()`, all of one step.
      draw: the arrays of a case: those that `result()` has, where they start, and the tasks.
      ours: the contestant that the others have to agree with.
      peers: PyTorch's contestants.
      forms: where each contestant lives, "module:class", called with the case, the arrays,
        the device ("cpu" or "gpu") and the precision. Imported when it is asked for: a process
        that measures one framework's memory must not hold the other one.
      compiled: contestants that compile, and so start faster with a warm cache.
      optional: contestants that may fail without failing the comparison.
      fits: whether a contestant, by name, can do a case at all.
    """

    name: str
    case: Callable[..., Any]
    draw: Callable[[Any], dict[str, Any]]
    ours: str
    peers: tuple[str, ...]
    forms: Mapping[str, str]
    compiled: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    fits: Callable[[str, Any], bool] = lambda form, case: True

    def make(
        self, form: str, case: Any, arrays: Any, device: str = "cpu", precision: str = "float32"
    ) -> Contestant:
        """The contestant `form`, before its first step."""
        module, name = self.forms[form].split(":")
        return getattr(importlib.import_module(module), name)(case, arrays, device, precision)


def _sparse_maml_case(image: Any = (28, 28, 1), **fields: Any) -> cases.Case:
    return cases.Case(image=tuple(image), **fields)


SPARSE_MAML = Family(
    name="sparse-maml",
    case=_sparse_maml_case,
    draw=cases.draw,
    ours="jaxsparse",
    peers=("loop", "channels_last", "vmap", "compile"),
    forms={
        "jaxsparse": "benchmarks.ours:Ours",
        "one device": "benchmarks.ours:OneDevice",
        "seeds vmapped": "benchmarks.ours:SeedsVmapped",
        "seeds mapped": "benchmarks.ours:SeedsMapped",
        "loop": "benchmarks.peers:Form",
        "channels_last": "benchmarks.peers:ChannelsLast",
        "vmap": "benchmarks.peers:Vmap",
        "compile": "benchmarks.peers:Compiled",
    },
    compiled=frozenset({"jaxsparse", "one device", "seeds vmapped", "seeds mapped", "compile"}),
    optional=frozenset({"compile"}),
)


def _glance_case(**fields: Any) -> glance.GlanceCase:
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return glance.GlanceCase(**{**fields, **lists})


GLANCE = Family(
    name="glance",
    case=_glance_case,
    draw=glance.draw,
    ours="jaxsparse",
    peers=("loop", "sums", "compile"),
    forms={
        "jaxsparse": "benchmarks.glance_ours:OursGlance",
        "loop": "benchmarks.glance_peers:GlanceLoop",
        "sums": "benchmarks.glance_peers:GlanceSums",
        "compile": "benchmarks.glance_peers:GlanceCompiled",
    },
    compiled=frozenset({"jaxsparse", "compile"}),
    optional=frozenset({"compile"}),
    fits=lambda form, case: form != "sums" or not case.second_order,
)

FAMILIES = {family.name: family for family in (SPARSE_MAML, GLANCE)}
