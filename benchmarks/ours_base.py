"""Shared by our forms."""

import functools
from typing import Any

import jax
import numpy as np

from benchmarks.families import Trees


class OurForm:
    """A jitted step, called as a user calls it.

    Attributes:
      state: the state that steps update.
      inputs: the other arguments of a step.
      program: `(state, *inputs) -> (state, metrics)`, a jitted function or a partial of one.
      precision: precision of matrix products and convolutions.
    """

    name = "jaxsparse"
    state: Any
    inputs: tuple[Any, ...]
    program: Any
    precision: str

    def step(self) -> None:
        """Take one step; returns when it is finished."""
        with jax.default_matmul_precision(self.precision):
            self.state, _ = self.program(self.state, *self.inputs)
        jax.block_until_ready(self.state)

    def temp_bytes(self) -> int:
        """Temporary memory of the compiled step, without its arguments and results."""
        program: Any = self.program
        options: dict[str, Any] = {}
        if isinstance(program, functools.partial):
            program, options = program.func, program.keywords
        with jax.default_matmul_precision(self.precision):
            compiled = program.lower(self.state, *self.inputs, **options).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def result(self) -> Trees:
        """The current parameters and masks, flat by name."""
        # Copies: the arrays are donated to the next step.
        trees = {"params": flat(self.state.params), "mask": flat(self.state.mask)}
        return {t: {n: x.copy() for n, x in tree.items()} for t, tree in trees.items()}


def nested(tree: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """{"conv1/kernel": x} -> {"conv1": {"kernel": x}}, to any depth, with JAX arrays."""
    out: dict[str, Any] = {}
    for name, x in tree.items():
        *groups, leaf = name.split("/")
        inner = out
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[leaf] = jax.numpy.asarray(x)
    return out


def flat(tree: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """The inverse of `nested`; leaves that are None are left out."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves
    }
