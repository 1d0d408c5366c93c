"""Small problems that several test modules adapt to."""

import contextlib
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import cross_entropy
from jaxsparse.checks import leaves_by_name
from jaxsparse.nn.model import InputLayer

TASKS, WAYS = 3, 3

# For programs that run once: they compile in half the time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@contextlib.contextmanager
def quick_programs():
    """Within, all programs compile in half the time: their machine code is not optimised."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


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


def after_products(params, products):
    head = params["head"]
    return jnp.tanh(products + params["hidden"]["b"][None]) @ head["w"] + head["b"][None]


def not_used(*args):
    raise AssertionError("this form of the network is not to be used")


def split_loss(inputs=lambda x: x, apply=after_products, whole=not_used):
    """The classifier's loss, split after the products of the first layer."""
    layer = InputLayer("hidden/w", inputs, apply)
    return cross_entropy(types.SimpleNamespace(apply=whole, input_layer=layer))


def classification_tasks(seed, samples=7, shape=(5,)):
    """`(support, query)`, each `(inputs [T, n, *shape], labels [T, n])`."""
    rng = np.random.default_rng(seed)

    def batch():
        inputs = rng.normal(size=(TASKS, samples, *shape)).astype(np.float32)
        return jnp.asarray(inputs), jnp.asarray(rng.integers(WAYS, size=(TASKS, samples)))

    return batch(), batch()


def task_list(tasks):
    """The tasks as a list, without their leading axis."""
    count = len(jax.tree.leaves(tasks)[0])
    tasks = jax.tree.map(np.asarray, tasks)
    return [jax.tree.map(lambda x, i=i: x[i], tasks) for i in range(count)]


def loss_and_gradient(params, rows, weights):
    """The weighted mean cross-entropy of the tanh classifier and its gradient, in NumPy."""
    inputs, labels = rows
    hidden = np.tanh(inputs @ params["hidden/w"] + params["hidden/b"])
    logits = hidden @ params["head/w"] + params["head/b"]
    logits -= logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    shares = weights / weights.sum()
    loss = -shares @ log_p[np.arange(len(labels)), labels]
    d_logits = (np.exp(log_p) - np.eye(WAYS)[labels]) * shares[:, None]
    d_hidden = d_logits @ params["head/w"].T * (1 - hidden**2)
    return loss, {
        "head/b": d_logits.sum(0),
        "head/w": hidden.T @ d_logits,
        "hidden/b": d_hidden.sum(0),
        "hidden/w": inputs.T @ d_hidden,
    }


def clip(tree, bound):
    """A tree of NumPy arrays scaled to a norm of at most `bound`, and its norm before scaling."""
    norm = np.sqrt(sum(np.sum(x**2) for x in tree.values()))
    scale = 1.0 if bound is None else min(1.0, bound / (norm + 1e-6))
    return {n: scale * x for n, x in tree.items()}, norm


def rows(seed, *shape):
    """Inputs [*shape, 5] and labels [*shape] for the tanh classifier."""
    random = np.random.default_rng(seed)
    return (
        jnp.asarray(random.normal(size=(*shape, 5)), jnp.float32),
        jnp.asarray(random.integers(WAYS, size=shape)),
    )


def float64(tree):
    """The leaves of a tree by name, as NumPy's float64."""
    return {n: np.asarray(x, np.float64) for n, x in leaves_by_name(tree).items()}


def to_numpy(batch):
    """Inputs in float64, and labels."""
    return np.asarray(batch[0], np.float64), np.asarray(batch[1])


def assert_trees_close(got, want, rtol=1e-5, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)
