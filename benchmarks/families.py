"""Families: which forms can be compared on which cases."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from benchmarks.cases_continual import GlanceCase
from benchmarks.cases_fewshot import FewShotCase
from benchmarks.cases_resnet12 import ResNetCase

Trees = dict[str, dict[str, Any]]


class Form(Protocol):
    """One implementation of the step of a case.

    It may also have `meta_gradient()`, which returns trees like `result()`. It is then compared by
    its meta-gradient in the first step, otherwise by how the first step changes its results.
    """

    name: str

    def step(self) -> None:
        """Take one step in place; returns when the device has finished it."""

    def result(self) -> Trees:
        """The values that steps change, as NumPy arrays: {"params": {name: array}, ...}."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Cases of one kind and the forms that can take their steps.

    Attributes:
      name: its name in `python -m benchmarks.probe --family`.
      case: the dataclass of the cases. A case has `name`, `tasks_taken`, `inner_steps_taken` and
        `flops()` of one step, and `draw()`, which returns the tasks and the initial values of
        `result()`.
      ours: the form that the others must agree with.
      peers: the forms in PyTorch.
      forms: name -> "module:class". The class is called with the case, the arrays, the device
        ("cpu" or "gpu") and the precision. The module is imported late: a process that measures
        the memory of one framework must not load the other.
      compiled: forms that are compiled and so start faster with a warm cache.
      optional: forms that may fail without failing the comparison.
      fits: `(form's name, case) ->` whether the form supports the case.
    """

    name: str
    case: Callable[..., Any]
    ours: str
    peers: tuple[str, ...]
    forms: Mapping[str, str]
    compiled: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    fits: Callable[[str, Any], bool] = lambda form, case: True

    def case_of(self, fields: Mapping[str, Any]) -> Any:
        """The case with these fields, read from JSON; lists become tuples."""
        return self.case(**{n: tuple(x) if isinstance(x, list) else x for n, x in fields.items()})

    def make(
        self, form: str, case: Any, arrays: Any, device: str = "cpu", precision: str = "float32"
    ) -> Form:
        """Make the form of this name."""
        module, name = self.forms[form].split(":")
        return getattr(importlib.import_module(module), name)(case, arrays, device, precision)


SPARSE_MAML = Family(
    name="sparse-maml",
    case=FewShotCase,
    ours="jaxsparse",
    peers=("loop", "channels_last", "vmap", "compile"),
    forms={
        "jaxsparse": "benchmarks.ours_fewshot:MetaStep",
        "one device": "benchmarks.ours_fewshot:OneDevice",
        "seeds vmapped": "benchmarks.ours_fewshot:SeedsVmapped",
        "seeds mapped": "benchmarks.ours_fewshot:SeedsMapped",
        "loop": "benchmarks.torch_fewshot:Loop",
        "channels_last": "benchmarks.torch_fewshot:ChannelsLast",
        "vmap": "benchmarks.torch_fewshot:Vmap",
        "compile": "benchmarks.torch_fewshot:Compiled",
    },
    compiled=frozenset({"jaxsparse", "one device", "seeds vmapped", "seeds mapped", "compile"}),
    optional=frozenset({"compile"}),
)

GLANCE = Family(
    name="glance",
    case=GlanceCase,
    ours="jaxsparse",
    peers=("loop", "sums", "compile"),
    forms={
        "jaxsparse": "benchmarks.ours_continual:Glances",
        "loop": "benchmarks.torch_continual:Loop",
        "sums": "benchmarks.torch_continual:Sums",
        "compile": "benchmarks.torch_continual:Compiled",
    },
    compiled=frozenset({"jaxsparse", "compile"}),
    optional=frozenset({"compile"}),
    fits=lambda form, case: form != "sums" or not case.second_order,
)

RESNET12 = Family(
    name="resnet12",
    case=ResNetCase,
    ours="jaxsparse",
    peers=("loop", "channels_last"),
    forms={
        "jaxsparse": "benchmarks.ours_resnet12:MetaStep",
        "loop": "benchmarks.torch_resnet12:Loop",
        "channels_last": "benchmarks.torch_resnet12:ChannelsLast",
    },
    compiled=frozenset({"jaxsparse"}),
)

FAMILIES = {family.name: family for family in (SPARSE_MAML, GLANCE, RESNET12)}
