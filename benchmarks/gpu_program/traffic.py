"""Bytes that a kernel must read and write.

An array counts once for each kernel that reads or writes it, also if it could still be in a cache.
Of an array of which a kernel reads only slices, the slices count; of one that it updates in place,
the updates.
"""

from collections.abc import Iterator

from benchmarks.gpu_program.hlo import Computation, Instruction, Program, arrays, size

_SLICING = ("slice", "dynamic-slice", "gather")
_UPDATING = ("dynamic-update-slice", "scatter")


def moved(program: Program, computation: Computation, kernel: Instruction) -> float:
    """Bytes that a kernel reads and writes.

    Args:
      program: the program.
      computation: the computation with the kernel.
      kernel: a fusion, a custom call or any other instruction that runs as a kernel.

    Returns:
      Bytes.
    """
    operands = list(dict.fromkeys(kernel.operands))
    if kernel.op == "fusion":
        inner = program.computations[kernel.called("calls")[0]]
        return _read(inner) + _written(inner, inner.root)
    if kernel.op == "copy-start":
        return 2 * size(computation.shape(operands[0]))
    if kernel.op in _SLICING:
        indices = sum(size(computation.shape(name)) for name in operands[1:])
        return 2 * size(kernel.shape) + indices
    if kernel.op in _UPDATING:
        others = sum(size(computation.shape(name)) for name in operands[1:])
        return others + _updates(computation, kernel)
    reads = sum(size(computation.shape(name)) for name in operands)
    return reads + size(_without_workspace(kernel))


def _without_workspace(kernel: Instruction) -> str:
    """The results of a kernel; cuBLAS and cuDNN also return their workspace, as bytes."""
    if not kernel.target.startswith(("__cublas", "__cudnn")) or not kernel.shape.startswith("("):
        return kernel.shape
    kept = [(kind, n) for kind, n in arrays(kernel.shape)]
    if kept[-1][0] in ("u8", "s8"):
        kept.pop()
    return " ".join(f"{kind}[{','.join(map(str, n))}]" for kind, n in kept)


# ---- fusions


def _read(fused: Computation) -> float:
    return sum(_read_of(fused, i) for i in fused.instructions if i.op == "parameter")


def _read_of(fused: Computation, parameter: Instruction) -> float:
    """Bytes of a parameter that a fusion reads."""
    whole, parts = size(parameter.shape), 0.0
    for source, user in _uses(fused, parameter):
        if user.op in _SLICING and user.operands[0] == source:
            parts += size(user.shape)
        elif user.op == "dynamic-update-slice" and user.operands[0] == source:
            pass  # what it replaces is not read
        elif user.op == "scatter" and user.operands[0] == source:
            parts += _updates(fused, user)  # the entries that the updates are added to
        else:
            return whole
    return min(whole, parts)


def _uses(fused: Computation, source: Instruction) -> Iterator[tuple[str, Instruction]]:
    """(name that is read, reader) of all readers of an instruction, through bitcasts."""
    for user in fused.users[source.name]:
        if user.op == "bitcast":
            yield from _uses(fused, user)
        else:
            yield source.name, user


def _written(fused: Computation, result: Instruction) -> float:
    if result.op == "tuple":
        names = dict.fromkeys(result.operands)
        return sum(_written(fused, fused.by_name[name]) for name in names)
    if result.op == "bitcast":
        return _written(fused, fused.by_name[result.operands[0]])
    if result.op in _UPDATING and _is_parameter(fused, result.operands[0]):
        return _updates(fused, result)
    return size(result.shape)


def _is_parameter(fused: Computation, name: str) -> bool:
    source = fused.by_name[name]
    while source.op == "bitcast":
        source = fused.by_name[source.operands[0]]
    return source.op == "parameter"


def _updates(computation: Computation, kernel: Instruction) -> float:
    """Bytes of the updates of an array: operand 1, or those behind the indices of a scatter."""
    return size(computation.shape(kernel.operands[2 if kernel.op == "scatter" else 1]))
