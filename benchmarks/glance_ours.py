"""Our glances on the arrays of a case."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from benchmarks.glance import GlanceCase
from benchmarks.ours import flat, nested
from jaxsparse import gates


class OursGlance:
    """`jaxsparse.lamaml_step`, scanned over the glances, as a user calls it."""

    name = "jaxsparse"

    def __init__(
        self,
        case: GlanceCase,
        arrays: dict[str, Any],
        device: str = "cpu",  # JAX has one backend per process: it was chosen before
        precision: str = "float32",
        **options: Any,
    ):
        self.case, self.precision = case, precision
        if case.convolutions:
            sizes = (case.channels, case.convolutions, case.hidden)
            model = jaxsparse.nn.strided_cnn(case.ways, *sizes, case.image)
        else:
            model = jaxsparse.nn.mlp(case.ways, case.hidden, case.image)
        loss_fn = jaxsparse.cross_entropy(model)
        gate = gates.rectified(case.inner_lr)
        if case.method == "sparse-lamaml":
            gate = gates.binary(case.inner_lr, slope=case.slope, init=case.inner_lr)
        sgd = optax.sgd(case.mask_lr)
        params, mask = (jax.tree.map(jnp.asarray, nested(arrays[t])) for t in ("params", "mask"))
        key = jax.random.key(0)
        state = jaxsparse.init_lamaml_state(params, gate, key, mask_optimizer=sgd)
        self.state = state._replace(mask=mask)
        self.batch, self.replay = (
            jax.tree.map(jnp.asarray, arrays[rows]) for rows in ("batch", "replay")
        )
        self.orders = jnp.asarray(arrays["orders"])

        def glances(state, batch, replay, orders):
            def glance(state, drawn):
                replayed, order = drawn
                rows = jax.tree.map(lambda x: x[order], batch)
                return jaxsparse.lamaml_step(
                    state,
                    rows,
                    replayed,
                    None,  # the order is given: PyTorch takes the same
                    loss_fn=loss_fn,
                    gate=gate,
                    mask_optimizer=sgd,
                    inner_batch_size=case.inner_rows,
                    second_order=case.second_order,
                    clip_norm=case.clip_norm,
                    **options,
                )

            state, metrics = jax.lax.scan(glance, state, (replay, orders))
            return state, metrics["loss"]

        self._glances = jax.jit(glances, donate_argnums=0)

    def step(self) -> None:
        """All glances at the batch; returns when they are done."""
        with jax.default_matmul_precision(self.precision):
            self.state, self.losses = self._glances(
                self.state, self.batch, self.replay, self.orders
            )
        jax.block_until_ready(self.state)

    def temp_bytes(self) -> int:
        """What the compiled program allocates beside its arguments and results."""
        with jax.default_matmul_precision(self.precision):
            lowered = self._glances.lower(self.state, self.batch, self.replay, self.orders)
        analysis: Any = lowered.compile().memory_analysis()
        return analysis.temp_size_in_bytes

    def result(self) -> dict[str, dict[str, np.ndarray]]:
        """The parameters and masks now, flat by name."""
        # Copies: the next step is given the arrays' memory.
        trees = {"params": flat(self.state.params), "mask": flat(self.state.mask)}
        return {t: {n: x.copy() for n, x in tree.items()} for t, tree in trees.items()}
