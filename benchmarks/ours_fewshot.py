"""Our forms of a meta-step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import jaxsparse
from benchmarks.cases_fewshot import FewShotCase
from benchmarks.families import Trees
from benchmarks.ours_base import OurForm, flat, nested
from experiments import cli
from jaxsparse import gates


class MetaStep(OurForm):
    """`jaxsparse.sparse_maml_step` with Conv4, as a user calls it."""

    def __init__(
        self,
        case: FewShotCase,
        arrays: dict[str, Any],
        device: str = "cpu",  # ignored: JAX has one backend per process
        precision: str = "float32",
    ):
        cli.use_all_cores()
        self.case, self.precision = case, precision
        optimizer = optax.sgd(case.outer_lr, momentum=case.momentum, nesterov=True)
        tasks = (jax.tree.map(jnp.asarray, arrays[split]) for split in ("support", "query"))
        self.inputs = (jaxsparse.data.Task(*tasks),)
        gate = gates.binary(inner_lr=case.inner_lr)
        key = jax.random.key(0)
        state = jaxsparse.init_state(nested(arrays["params"]), gate, optimizer, optimizer, key)
        self.state = state._replace(mask=nested(arrays["mask"]))
        self.program = functools.partial(
            jaxsparse.sparse_maml_step,
            loss_fn=jaxsparse.cross_entropy(self._network()),
            gate=gate,
            inner_steps=case.inner_steps,
            theta_optimizer=optimizer,
            mask_optimizer=optimizer,
            mesh=self._mesh(),
        )

    def _network(self) -> jaxsparse.nn.Model:
        return jaxsparse.nn.conv4(self.case.ways, self.case.width, self.case.image, use_bias=False)

    def _mesh(self) -> Mesh | None:
        """A mesh that divides the tasks among the devices: CPU cores or GPUs."""
        count = max(n for n in range(1, jax.local_device_count() + 1) if self.case.tasks % n == 0)
        return Mesh(np.array(jax.local_devices()[:count]), ("tasks",)) if count > 1 else None

    def meta_gradient(self) -> Trees:
        """The gradients of the first step: they are SGD's momentum after it."""
        moments = {"params": self.state.theta_opt, "mask": self.state.mask_opt}
        return {tree: flat(moment[0].trace) for tree, moment in moments.items()}


class OneDevice(MetaStep):
    """The same on one device, with all cores for each operation, as without a mesh."""

    name = "one device"

    def _mesh(self) -> None:
        return None


class SeedsVmapped(OneDevice):
    """Several seeds in one program, in parallel: `jax.vmap` of the meta-step."""

    name = "seeds vmapped"

    def __init__(self, case: FewShotCase, *args: Any):
        super().__init__(case, *args)
        self.state, self.inputs = jax.tree.map(
            lambda x: jnp.stack([x] * case.seeds), (self.state, self.inputs)
        )
        self.program = jax.jit(self._over_seeds(self.program))

    def _over_seeds(self, step: Callable) -> Callable:
        return jax.vmap(step)

    def result(self) -> Trees:
        """The result of the last seed."""
        return _last_seed(super().result())

    def meta_gradient(self) -> Trees:
        """The meta-gradient of the last seed."""
        return _last_seed(super().meta_gradient())


class SeedsMapped(SeedsVmapped):
    """Several seeds in one program, one after the other: `jax.lax.map` of the meta-step."""

    name = "seeds mapped"

    def _over_seeds(self, step: Callable) -> Callable:
        return lambda states, tasks: jax.lax.map(lambda x: step(*x), (states, tasks))


def _last_seed(trees: Trees) -> Trees:
    return {tree: {name: x[-1] for name, x in leaves.items()} for tree, leaves in trees.items()}
