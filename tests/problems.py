"""Small problems that several test modules adapt to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import cross_entropy

TASKS, WAYS = 3, 3

# For programs that run once: compiled in half the time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Classifier:
    """A two-layer tanh classifier on five features."""

    @staticmethod
    def init(seed):
        draw = np.random.default_rng(seed).normal
        tree = {
            "hidden": {"w": 0.6 * draw(size=(5, 8)), "b": np.full(8, 0.1)},
            "head": {"w": 0.5 * draw(size=(8, WAYS)), "b": np.zeros(WAYS)},
        }
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    @staticmethod
    def apply(params, inputs):
        hidden, head = params["hidden"], params["head"]
        return jnp.tanh(inputs @ hidden["w"] + hidden["b"][None]) @ head["w"] + head["b"][None]


classification_loss = cross_entropy(Classifier)


def classification_tasks(seed, samples=7, shape=(5,)):
    """`(support, query)`, each `(inputs [T, n, *shape], labels [T, n])`."""
    rng = np.random.default_rng(seed)

    def batch():
        inputs = rng.normal(size=(TASKS, samples, *shape)).astype(np.float32)
        return jnp.asarray(inputs), jnp.asarray(rng.integers(WAYS, size=(TASKS, samples)))

    return batch(), batch()


def task_list(tasks):
    """The tasks one by one, without their leading axis."""
    count = len(jax.tree.leaves(tasks)[0])
    tasks = jax.tree.map(np.asarray, tasks)
    return [jax.tree.map(lambda x, i=i: x[i], tasks) for i in range(count)]
