"""Our timesteps of (sparse-)C-MAML on given batches, and the start for ours and PyTorch's."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse
from benchmarks.families import Trees
from benchmarks.ours_base import flat
from jaxsparse import nn
from jaxsparse.training.online.learners import inner_params, make_gate
from jaxsparse.training.seeds import place_runs

IMAGE = (28, 28, 1)
METRICS = ("loss", "adapted_loss")
ADAM_B1 = 0.9  # optax's and PyTorch's default


class Start(NamedTuple):
    """The start of a stream.

    Attributes:
      params: theta.
      fast: phi, drawn independently of theta, to detect a timestep that starts from the wrong one.
      mask: m.
      batches: (images [stored, rows, h, w, c], labels [stored, rows]).
    """

    params: Any
    fast: Any
    mask: Any
    batches: tuple[Any, Any]


def make_model(config: Any) -> Any:
    """The network of a configuration."""
    return nn.conv4(config.ways, config.width, IMAGE)


def draw(config: Any, seed: int = 0) -> Start:
    """Draw a start with the batches for one update; each has `ways` x `shots` images."""
    keys = jax.random.split(jax.random.key(seed), 4)
    labels = jnp.repeat(jnp.arange(config.ways, dtype=jnp.int32), config.shots)
    images = jax.random.uniform(keys[3], (config.capacity, labels.size, *IMAGE))
    batches = images, jnp.broadcast_to(labels, images.shape[:2])
    model = make_model(config)
    state, other = (init_state(config, model.init(key), keys[2], batches) for key in keys[:2])
    return Start(state.params, other.fast_params, state.mask, batches)


class Ours:
    """One stream: `jaxsparse.cmaml_step` called in a loop, its state donated."""

    name = "jaxsparse"

    def __init__(self, config: Any, starts: Sequence[Start], options: dict[str, Any] | None = None):
        """Start from one `Start` per stream; `options` are compiler options."""
        self.config, self.options, self.streams = config, options, len(starts)
        self.begin(starts)

    def begin(self, starts: Sequence[Start]) -> None:
        """Start again."""
        self.batches, self.state = starts[0].batches, make_state(self.config, starts[0])
        count = self.config.capacity
        self.each = [jax.tree.map(lambda x, i=i: x[i], self.batches) for i in range(count)]

    def compile(self) -> None:
        """Compile; call it before the first timestep."""
        step = jax.jit(make_step(self.config), donate_argnums=0)
        lowered: Any = step.lower(self.state, self.each[0])
        self.program = lowered.compile(compiler_options=self.options)

    def fill(self, count: int) -> None:
        """Set the stored batches to the stream's first batches."""
        buffer = jax.tree.map(jnp.copy, self.batches)
        self.state = self.state._replace(buffer=buffer, stored=self._number(count))

    def _number(self, count: int) -> Any:
        return jnp.int32(count)

    def learn(self, timesteps: int) -> dict[str, list[float]]:
        """Learn the stream's first batches, one per timestep; returns `METRICS` of each."""
        seen = []
        for batch in self.each[:timesteps]:
            self.state, metrics = self.program(self.state, batch)
            seen.append(metrics)
        jax.block_until_ready(self.state)
        return {name: [float(metrics[name]) for metrics in seen] for name in METRICS}

    def phi_now(self) -> dict[str, np.ndarray]:
        """Phi of the first stream, by name."""
        return flat(self._first(self.state.fast_params))

    def gradients(self) -> Trees:
        """The gradients of the first update, from Adam's first moments after it."""
        moments = {"theta": self.state.theta_opt[0].mu, "mask": self.state.mask_opt[0].mu}
        return {
            tree: {name: x / np.float32(1 - ADAM_B1) for name, x in flat(self._first(mu)).items()}
            for tree, mu in moments.items()
        }

    def _first(self, tree: Any) -> Any:
        return tree


class Seeds(Ours):
    """Several streams in one program, divided among the cores, as the experiment's --seeds."""

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"jaxsparse, {self.streams} seeds"

    def begin(self, starts: Sequence[Start]) -> None:
        """Start again."""
        self.placement = place_runs(len(starts))
        trees = [(start.batches, make_state(self.config, start)) for start in starts]
        batches, state = jax.tree.map(lambda *x: jnp.stack(x), *trees)
        turns = range(self.placement.turns)
        self.by_turn = [self.placement.put(batches, turn) for turn in turns]
        self.batches, self.state = self.by_turn[0], self.placement.put(state)

    def compile(self) -> None:
        """Compile; call it before the first timestep."""
        loop = make_loop(self.config)
        self.program = self.placement.over_steps(loop, compiler_options=self.options)
        self.learn(0)

    def _number(self, count: int) -> Any:
        return self.placement.put(np.full(self.streams, count, np.int32))

    def learn(self, timesteps: int) -> dict[str, list[float]]:
        """Learn each stream's first batches; returns `METRICS` of the first stream's timesteps."""
        seen = {
            name: np.zeros((self.streams, self.config.capacity), np.float32) for name in METRICS
        }
        start = self.state, self.placement.put(seen)
        self.state, seen = self.program(start, self.by_turn, None, 0, timesteps)
        jax.block_until_ready(self.state)
        return {name: self._first(column)[:timesteps].tolist() for name, column in seen.items()}

    def _first(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x)[0], tree)


def make_step(config: Any) -> Any:
    """`(state, batch) -> (state, METRICS)`: the timestep of the experiment."""
    model = make_model(config)
    step = functools.partial(
        jaxsparse.cmaml_step,
        loss_fn=jaxsparse.cross_entropy(model),
        gate=make_gate(config, model),
        inner_steps=config.inner_steps,
        detection_threshold=config.detection_threshold,
        modulation=config.modulation,
        **_optimizers(config),
    )

    def timestep(state, batch):
        state, metrics = step(state, batch)
        # Both losses are returned: XLA does not compute what is not used.
        return state, {name: metrics[name] for name in METRICS}

    return timestep


def make_loop(config: Any) -> Any:
    """`((state, METRICS of each), batches, None, first, last) -> (state, METRICS of each)`."""
    step = make_step(config)

    def loop(state_and_seen, batches, _, first, last):
        def timestep(t, carry):
            state, seen = carry
            state, metrics = step(state, jax.tree.map(lambda x: x[t], batches))
            return state, {name: seen[name].at[t].set(metrics[name]) for name in METRICS}

        return jax.lax.fori_loop(first, last, timestep, state_and_seen)

    return loop


def make_state(config: Any, start: Start) -> Any:
    """A state whose next timestep starts from phi, with no stored batches."""
    state = init_state(config, start.params, jax.random.key(0), start.batches)
    # Copies: the state is donated, and the start is used again.
    fast, mask = jax.tree.map(jnp.copy, (start.fast, start.mask))
    return state._replace(fast_params=fast, mask=mask, restart=jnp.zeros((), bool))


def init_state(config: Any, params: Any, key: jax.Array, batches: tuple[Any, Any]) -> Any:
    """The initial state of the experiment with these parameters."""
    return jaxsparse.init_cmaml_state(
        params,
        make_gate(config, make_model(config)),
        key,
        batch=jax.tree.map(lambda x: x[0], batches),
        capacity=config.capacity,
        inner_params=inner_params,
        **_optimizers(config),
    )


def _optimizers(config: Any) -> dict[str, Any]:
    theta, mask = (optax.adam(rate, b1=ADAM_B1) for rate in (config.theta_lr, config.mask_lr))
    return {"theta_optimizer": theta, "mask_optimizer": mask}
