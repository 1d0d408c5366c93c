"""The text of an optimised XLA program, read into computations of instructions."""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      shape: the shape of its result as text, such as "f32[2,3]{1,0}", or "(f32[2]{0}, s32[])".
      op: the name of the operation, such as "fusion".
      operands: the names of the instructions it reads, in order.
      rest: the attributes behind the operands, as text.
      root: whether it is the result of its computation.
    """

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str
    root: bool = False

    def called(self, *attributes: str) -> list[str]:
        """The computations that these attributes name, such as "calls" or "body"."""
        pattern = rf"\b(?:{'|'.join(attributes)})=(?:%([\w.\-]+)|\{{([^}}]*)\}})"
        found = re.findall(pattern, self.rest)
        return [name for one, many in found for name in ([one] if one else re.findall(_NAME, many))]

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """The numbers of an attribute such as lhs_contracting_dims={1,2}; () without it."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.rest)
        return tuple(int(x) for x in found[1].split(",") if x) if found else ()

    def text(self, pattern: str) -> str | None:
        """The first group of a regular expression in the attributes."""
        found = re.search(pattern, self.rest)
        return found[1] if found else None

    @property
    def target(self) -> str:
        """The target of a custom call; "" for other operations."""
        return self.text(r'custom_call_target="([^"]*)"') or ""


class Computation:
    """Instructions in their order, and by name."""

    def __init__(self, name: str, instructions: list[Instruction]):
        self.name, self.instructions = name, tuple(instructions)
        self.by_name = {i.name: i for i in instructions}

    @property
    def root(self) -> Instruction:
        """The result."""
        return next((i for i in self.instructions if i.root), self.instructions[-1])

    def shape(self, name: str) -> str:
        """The shape of an instruction, as text."""
        return self.by_name[name].shape

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """The instructions that read each instruction."""
        out: dict[str, list[Instruction]] = {i.name: [] for i in self.instructions}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                out[operand].append(instruction)
        return out


class Program(NamedTuple):
    """All computations by name; `entry` is the name of the first that runs."""

    computations: Mapping[str, Computation]
    entry: str


_NAME = r"%([\w.\-]+)"
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")


def parse(text: str) -> Program:
    """Read a program as `compiled.as_text()` prints it.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    lines: list[Instruction] = []
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, lines = head[2], []
            entry = name if head[1] else entry
        elif line.startswith("}") and name:
            computations[name], name = Computation(name, lines), ""
        elif name and (found := _LINE.match(line)):
            lines.append(_instruction(found[2], found[3], bool(found[1])))
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    return Program(computations, entry)


def _instruction(name: str, line: str, root: bool) -> Instruction:
    """The parts of `shape op(operands), attributes`."""
    end = _closing(line) if line.startswith("(") else line.index(" ")
    shape, rest = line[:end], line[end:].lstrip()
    op, rest = rest.split("(", 1)
    end = _closing(f"({rest}") - 1
    operands = tuple(re.findall(_NAME, rest[: end - 1]))
    return Instruction(name, shape, op, operands, rest[end:], root)


def _closing(text: str) -> int:
    """The end of the parenthesis that opens `text`: the index behind the closing one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place + 1
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


# ---- shapes

_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d\w*)\[([\d,]*)\]")


def arrays(shape: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The dtype and the dimensions of an array, or of each array of a tuple."""
    for dtype, dims in _ARRAY.findall(shape):
        yield dtype, tuple(int(x) for x in dims.split(",") if x)


def dtype(shape: str) -> str:
    """The dtype of the first array."""
    return next(arrays(shape))[0]


def dims(shape: str) -> tuple[int, ...]:
    """The dimensions of the first array."""
    return next(arrays(shape))[1]


def size(shape: str) -> float:
    """Bytes of an array, or of all arrays of a tuple.

    Examples:
      >>> size("(f32[2,3]{1,0}, pred[], s4[8]{0})")
      29.0
    """
    return sum(_bits(kind) * math.prod(n) / 8 for kind, n in arrays(shape))


def _bits(kind: str) -> int:
    if kind in ("token", "opaque"):
        return 0
    # As in s32, bf16, c64 and f8e4m3fn.
    return 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
