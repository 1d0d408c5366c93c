"""The account of a compiled program: kernels, bytes, operations and least time, loop by loop."""

import functools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from benchmarks.gpu_program import operations, traffic
from benchmarks.gpu_program.hlo import Computation, Instruction, Program, parse
from benchmarks.gpu_program.target import BANDWIDTH, LAUNCH

PRECISIONS = ("float32", "tensorfloat32")
Branches = Literal["least", "most"]

# They start no kernel. An asynchronous operation counts where it starts.
_NO_KERNEL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("copy-done", "call-done", "async-done"),
}
_CALLS = ("call", "call-start", "async-start", "conditional")


class Totals(NamedTuple):
    """Sums over kernels; all fields are additive.

    Attributes:
      kernels: their number.
      bytes: read and written.
      operations: floating-point operations of products and convolutions.
      float32, tensorfloat32: least seconds: for each kernel a launch and the larger of bytes /
        bandwidth and operations / rate.
      float32_operations, tensorfloat32_operations: least seconds of the operations alone.
    """

    kernels: float = 0.0
    bytes: float = 0.0
    operations: float = 0.0
    float32: float = 0.0
    tensorfloat32: float = 0.0
    float32_operations: float = 0.0
    tensorfloat32_operations: float = 0.0

    def plus(self, other: "Totals", times: float = 1) -> "Totals":
        """`self + times other`."""
        return Totals(*(a + times * b for a, b in zip(self, other, strict=True)))

    def as_entry(self) -> dict[str, Any]:
        """As a dict for JSON, in the units of the tables."""
        return {
            "kernels": self.kernels,
            "GB": self.bytes / 1e9,
            "GFLOP": self.operations / 1e9,
            "ms": {name: 1e3 * getattr(self, name) for name in PRECISIONS},
            "operations_ms": {
                name: 1e3 * getattr(self, f"{name}_operations") for name in PRECISIONS
            },
        }


class Kernel(NamedTuple):
    """A kernel and what it does, as `Totals` of one."""

    name: str
    op: str
    totals: Totals


class Part(NamedTuple):
    """The entry of a program or the body of a loop.

    Attributes:
      name: of its computation.
      trips: how often it runs each time it is reached.
      known: whether the program fixes `trips`.
      kernels: of one trip, without those of inner loops.
      loops: its inner loops, as parts.
    """

    name: str
    trips: float
    known: bool
    kernels: tuple[Kernel, ...]
    loops: tuple["Part", ...]

    def once(self) -> Totals:
        """The totals of one trip, with the inner loops."""
        totals = Totals()
        for kernel in self.kernels:
            totals = totals.plus(kernel.totals)
        for loop in self.loops:
            totals = totals.plus(loop.once(), loop.trips)
        return totals

    def all(self) -> Iterator["Part"]:
        """This part, and all loops inside it."""
        yield self
        for loop in self.loops:
            yield from loop.all()

    def inner_step(self, steps: int) -> Totals:
        """The totals of one inner step: a trip of the outermost loops with this number of trips.

        Second order has two such loops, forward and backward.
        """
        level = list(self.loops)
        while level:
            inner = [part.once() for part in level if part.known and part.trips == steps]
            if inner:
                return functools.reduce(Totals.plus, inner)
            level = [loop for part in level for loop in part.loops]
        return Totals()

    def largest(self, count: int) -> list[tuple[float, Kernel]]:
        """(trips, kernel) of the kernels with the most seconds in float32 over all trips."""
        found = sorted(self._weighted(1), key=lambda pair: -pair[0] * pair[1].totals.float32)
        return found[:count]

    def _weighted(self, trips: float) -> Iterator[tuple[float, Kernel]]:
        yield from ((trips, kernel) for kernel in self.kernels)
        for loop in self.loops:
            yield from loop._weighted(trips * loop.trips)


class Account(NamedTuple):
    """What a program does.

    Attributes:
      entry: the whole program; its loops are inside it.
      uncounted: custom calls whose operations are not known.
      unknown_loops: loops whose number of trips is not fixed by the program.
    """

    entry: Part
    uncounted: tuple[str, ...]
    unknown_loops: tuple[str, ...]


def account(text: str, *, trips: float = 0, branches: Branches = "least") -> Account:
    """Count what an optimised program does.

    Args:
      text: the program, from `compiled.as_text()`.
      trips: of loops whose number of trips is not in the program; 0 is the least.
      branches: of a conditional, count the branch with the least or the most time.

    Returns:
      An `Account`.

    Raises:
      ValueError: the text is no program.

    Examples:
      >>> text = compile_for_gpu(jnp.matmul, jnp.zeros((4, 2)), jnp.zeros((2, 3))).as_text()
      >>> account(text).entry.once().operations
      48.0
    """
    program = parse(text)
    return _Reader(program, trips, branches).account()


class _Reader:
    """Turns computations into parts."""

    def __init__(self, program: Program, trips: float, branches: Branches):
        self.program, self.trips, self.branches = program, trips, branches
        self.uncounted: dict[str, None] = {}

    def account(self) -> Account:
        entry = self.part(self.program.entry)
        unknown = tuple(dict.fromkeys(part.name for part in entry.all() if not part.known))
        return Account(entry, tuple(self.uncounted), unknown)

    def part(self, name: str, trips: float = 1, known: bool = True, condition: str = "") -> Part:
        kernels, loops = self.inside(name)
        if condition:  # evaluated before each trip, unless the number of trips is known
            tested, _ = self.inside(condition)
            kernels += tested
        return Part(name, trips, known, tuple(kernels), tuple(loops))

    def inside(self, name: str) -> tuple[list[Kernel], list[Part]]:
        """The kernels of a computation and its loops; branches and calls are resolved."""
        kernels: list[Kernel] = []
        loops: list[Part] = []
        computation = self.program.computations[name]
        for instruction in computation.instructions:
            if instruction.op in _NO_KERNEL:
                continue
            if instruction.op == "while":
                loops.append(self.loop(instruction))
            elif instruction.op in _CALLS:
                more, inner = self.called(instruction)
                kernels, loops = kernels + more, loops + inner
            else:
                kernels.append(self.kernel(computation, instruction))
        return kernels, loops

    def loop(self, instruction: Instruction) -> Part:
        (body,) = instruction.called("body")
        count = instruction.text(r'known_trip_count":\{"n":"(\d+)"')
        if count:
            return self.part(body, int(count))
        (condition,) = instruction.called("condition")
        return self.part(body, self.trips, known=False, condition=condition)

    def called(self, instruction: Instruction) -> tuple[list[Kernel], list[Part]]:
        if instruction.op != "conditional":
            (name,) = instruction.called("to_apply", "calls")
            return self.inside(name)
        names = instruction.called("true_computation", "false_computation", "branch_computations")
        branches = [self.part(name) for name in names]
        choose = min if self.branches == "least" else max
        chosen = choose(branches, key=lambda part: part.once().float32)
        return list(chosen.kernels), list(chosen.loops)

    def kernel(self, computation: Computation, instruction: Instruction) -> Kernel:
        if not operations.is_counted(instruction):
            self.uncounted[instruction.target] = None
        work = list(operations.work(self.program, computation, instruction))
        moved = traffic.moved(self.program, computation, instruction)
        least = [sum(w.seconds(precision) for w in work) for precision in PRECISIONS]
        bounds = [LAUNCH + max(moved / BANDWIDTH, seconds) for seconds in least]
        totals = Totals(1.0, moved, sum(w.flops for w in work), *bounds, *least)
        return Kernel(instruction.name, instruction.target or instruction.op, totals)
