"""Our meta-step on the arrays of a case."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import jaxsparse
from benchmarks import machine
from benchmarks.cases import Arrays, Case
from experiments import cli
from jaxsparse import gates


class Ours:
    """`jaxsparse.sparse_maml_step` with Conv4, as a user calls it."""

    name = "jaxsparse"

    def __init__(
        self,
        case: Case,
        arrays: Arrays,
        device: str = "cpu",  # JAX has one backend per process: it was chosen before
        precision: str = "float32",
        **options: Any,
    ):
        cli.use_cores(machine.cores())
        self.case, self.precision = case, precision
        model = jaxsparse.nn.conv4(case.ways, case.width, case.image, use_bias=False)
        optimizer = optax.sgd(case.outer_lr, momentum=case.momentum, nesterov=True)
        self.tasks = jaxsparse.data.Task(
            *(jax.tree.map(jnp.asarray, arrays[split]) for split in ("support", "query"))
        )
        gate = gates.binary(inner_lr=case.inner_lr)
        key = jax.random.key(0)
        state = jaxsparse.init_state(nested(arrays["params"]), gate, optimizer, optimizer, key)
        self.state = state._replace(mask=jax.tree.map(jnp.asarray, nested(arrays["mask"])))
        self._step: Any = functools.partial(
            jaxsparse.sparse_maml_step,
            loss_fn=jaxsparse.cross_entropy(model),
            gate=gate,
            inner_steps=case.inner_steps,
            theta_optimizer=optimizer,
            mask_optimizer=optimizer,
            mesh=self._mesh(),
            **options,
        )

    def _mesh(self) -> Mesh | None:
        """The tasks divided among this machine's devices: CPU cores, or GPUs."""
        count = max(n for n in range(1, jax.local_device_count() + 1) if self.case.tasks % n == 0)
        return Mesh(np.array(jax.local_devices()[:count]), ("tasks",)) if count > 1 else None

    def step(self) -> None:
        """One meta-step; returns when it is done."""
        with jax.default_matmul_precision(self.precision):
            self.state, _ = self._step(self.state, self.tasks)
        jax.block_until_ready(self.state)

    def temp_bytes(self) -> int:
        """What the compiled meta-step allocates beside its arguments and results."""
        step: Any = self._step
        options: dict[str, Any] = {}
        if isinstance(step, functools.partial):  # of the jitted step; else it is jitted itself
            step, options = step.func, step.keywords
        with jax.default_matmul_precision(self.precision):
            program = step.lower(self.state, self.tasks, **options).compile()
        return program.memory_analysis().temp_size_in_bytes

    def result(self) -> dict[str, dict[str, np.ndarray]]:
        """The parameters and masks now, flat by name."""
        return {"params": flat(self.state.params), "mask": flat(self.state.mask)}

    def meta_gradient(self) -> dict[str, dict[str, np.ndarray]]:
        """The gradients of the first step: SGD's momentum after it, since it starts at zero."""
        moments = {"params": self.state.theta_opt, "mask": self.state.mask_opt}
        return {tree: flat(moment[0].trace) for tree, moment in moments.items()}


class OneDevice(Ours):
    """The same on one device, whose cores share every operation: what a plain call does."""

    name = "one device"

    def _mesh(self) -> None:
        return None


class SeedsVmapped(OneDevice):
    """Several seeds in one program, side by side: `jax.vmap` of the meta-step."""

    name = "seeds vmapped"

    def __init__(self, case: Case, arrays: Arrays, device: str = "cpu", precision: str = "float32"):
        super().__init__(case, arrays, device, precision)
        self.state, self.tasks = jax.tree.map(
            lambda x: jnp.stack([x] * case.seeds), (self.state, self.tasks)
        )
        self._step = jax.jit(self._over_seeds(self._step))

    def _over_seeds(self, step: Callable) -> Callable:
        return jax.vmap(step)

    def result(self) -> dict[str, dict[str, np.ndarray]]:
        """The last seed's."""
        return _last_seed(super().result())

    def meta_gradient(self) -> dict[str, dict[str, np.ndarray]]:
        """The last seed's."""
        return _last_seed(super().meta_gradient())


class SeedsMapped(SeedsVmapped):
    """Several seeds in one program, one after the other: `jax.lax.map` of the meta-step."""

    name = "seeds mapped"

    def _over_seeds(self, step: Callable) -> Callable:
        return lambda states, tasks: jax.lax.map(lambda x: step(*x), (states, tasks))


def _last_seed(trees: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    return {tree: {name: x[-1] for name, x in leaves.items()} for tree, leaves in trees.items()}


def nested(tree: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """{"conv1/kernel": x} -> {"conv1": {"kernel": x}}"""
    out: dict[str, dict[str, np.ndarray]] = {}
    for name, x in tree.items():
        group, leaf = name.split("/")
        out.setdefault(group, {})[leaf] = x
    return out


def flat(tree: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """The inverse of `nested`."""
    return {f"{g}/{leaf}": np.asarray(x) for g, group in tree.items() for leaf, x in group.items()}
