"""The `Learner` type: a method as a pair of pure functions.

An optax optimiser is a pair ``(init, update)``; a learner is a pair ``(init, step)``. It is created
once and holds everything that does not change during training. All learners have the same
interface.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Tree = Any
Metrics = dict[str, jax.Array]


class Learner(NamedTuple):
    """A method as a pair of pure functions.

    Attributes:
      init: `(params, key) -> state`, the initial state. It copies `params`.
      step: `(state, batch, key) -> (state, metrics)`, jitted. The batch is a `StreamBatch`. For
        `maml`, it is a pair (support, query) of tasks.

    Examples:
      >>> adam = optax.adam(1e-3)
      >>> learner = jaxsparse.maml(
      ...     lambda w, x: jnp.sum((w - x) ** 2), gates.binary(0.1), inner_steps=5,
      ...     theta_optimizer=adam, mask_optimizer=adam)
      >>> state = learner.init(jnp.zeros(2), jax.random.key(0))
      >>> tasks = jnp.ones((3, 2)), jnp.ones((3, 2))  # support and query of three tasks
      >>> state, metrics = learner.step(state, tasks, jax.random.key(1))
    """

    init: Callable[[Tree, jax.Array], Any]
    step: Callable[[Any, Any, jax.Array | None], tuple[Any, Metrics]]


class StreamBatch(NamedTuple):
    """A batch of a stream, with rows drawn from memory. Each learner uses the fields it needs.

    Attributes:
      rows: the newest rows (examples), a tree whose leaves have a leading row axis [n, ...]. For
        MER, n is 1.
      replay: rows from memory, a tree like `rows`, [r, ...]; for MER [s, r, ...], for GEM
        [T, k, ...]. None without replay.
      replay_weights: the weights of the replayed rows, [r] or [s, r]; None: all the same.
      observed: int32, the number of earlier tasks; only for GEM.

    Examples:
      >>> StreamBatch(jnp.ones((10, 2)), replay=jnp.zeros((20, 2))).replay.shape
      (20, 2)
    """

    rows: Any
    replay: Any = None
    replay_weights: jax.Array | None = None
    observed: Any = None
