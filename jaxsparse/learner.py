"""What a learner is: a method as a pair of pure functions.

As an optax optimiser is ``(init, update)``, a learner is ``(init, step)``, made once with
everything that does not change inside. All learners are called alike.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Tree = Any
Metrics = dict[str, jax.Array]


class Learner(NamedTuple):
    """A method as a pair of pure functions.

    Attributes:
      init: `(params, key) -> state`, the state before the first batch; `params` are copied.
      step: `(state, batch, key) -> (state, metrics)`; jitted. The batch is a `StreamBatch`, for
        `maml` a pair (support, query) of tasks.

    Example:
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
    """A batch of a stream, with what was drawn from memory. A learner reads what it needs.

    Attributes:
      rows: the newest rows, a tree whose leaves lead with a row axis [n, ...]; for MER n is 1.
      replay: rows from memory, a tree like `rows`, [r, ...]; for MER [s, r, ...], for GEM
        [T, k, ...]; None for none.
      replay_weights: the weights of the replayed rows, [r] or [s, r]; None: all alike.
      observed: int32, for GEM: how many earlier tasks there are.

    Example:
      >>> StreamBatch(jnp.ones((10, 2)), replay=jnp.zeros((20, 2))).replay.shape
      (20, 2)
    """

    rows: Any
    replay: Any = None
    replay_weights: jax.Array | None = None
    observed: Any = None
