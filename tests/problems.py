"""Small problems that several test modules adapt to."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import cross_entropy

TASKS, WAYS = 3, 3


class Classifier:
    """A two-layer tanh classifier on five features."""

    @staticmethod
    def init(key):
        hidden_key, head_key = jax.random.split(key)
        return {
            "hidden": {"w": 0.6 * jax.random.normal(hidden_key, (5, 8)), "b": jnp.full(8, 0.1)},
            "head": {"w": 0.5 * jax.random.normal(head_key, (8, WAYS)), "b": jnp.zeros(WAYS)},
        }

    @staticmethod
    def apply(params, inputs):
        hidden, head = params["hidden"], params["head"]
        return jnp.tanh(inputs @ hidden["w"] + hidden["b"][None]) @ head["w"] + head["b"][None]


classification_loss = cross_entropy(Classifier)


def classification_tasks(seed, tasks=TASKS, samples=7, shape=(5,)):
    """`(support, query)`, each `(inputs [T, n, *shape], labels [T, n])`."""
    input_key, label_key = jax.random.split(jax.random.key(seed))
    inputs = jax.random.normal(input_key, (2, tasks, samples, *shape))
    labels = jax.random.randint(label_key, (2, tasks, samples), 0, WAYS)
    return (inputs[0], labels[0]), (inputs[1], labels[1])


def task_list(tasks):
    """The tasks one by one, without their leading axis."""
    count = len(jax.tree.leaves(tasks)[0])
    tasks = jax.tree.map(np.asarray, tasks)
    return [jax.tree.map(lambda x, i=i: x[i], tasks) for i in range(count)]
