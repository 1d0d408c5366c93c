"""Tasks divided among devices: the same bits as on one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import jaxsparse
from jaxsparse import gates
from jaxsparse.training import FewShotConfig, largest_share, task_mesh

# `optax.adam` as a module-level object: the step is compiled once for the whole file.
ADAM = optax.adam(1e-2)


def loss_fn(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["w"] + params["b"][None])
    return jnp.mean((hidden @ params["v"] - y) ** 2)


def two_devices():
    return Mesh(np.array(jax.devices()[:2]), ("tasks",))


def tasks(count):
    keys = jax.random.split(jax.random.key(3), 4)
    x, y, qx, qy = (
        jax.random.normal(key, (count, 6, n)) for key, n in zip(keys, (3, 2, 3, 2), strict=True)
    )
    return (x, y), (qx, qy)


def learner(gate):
    keys = jax.random.split(jax.random.key(1), 3)
    params = {
        "w": jax.random.normal(keys[0], (3, 5)),
        "b": jax.random.normal(keys[1], (5,)),
        "v": jax.random.normal(keys[2], (5, 2)),
    }
    return jaxsparse.init_state(params, gate, ADAM, ADAM, jax.random.key(0))


def step(gate, mesh, count=4, **options):
    return jaxsparse.sparse_maml_step(
        learner(gate),
        tasks(count),
        loss_fn=loss_fn,
        gate=gate,
        inner_steps=3,
        theta_optimizer=ADAM,
        mask_optimizer=ADAM,
        mesh=mesh,
        **options,
    )


GATES = pytest.mark.parametrize(
    "gate", [gates.binary(0.1), gates.generated(0.1, embedding=4)], ids=["binary", "stochastic"]
)


@GATES
def test_a_meta_step_on_two_devices_gives_the_bits_of_one(gate):
    one, two = (jax.device_get(step(gate, mesh)[1]) for mesh in (None, two_devices()))
    chex.assert_trees_all_equal(one, two)
    one, two = (step(gate, mesh)[0]._replace(key=0) for mesh in (None, two_devices()))
    chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(two))


@GATES
@pytest.mark.parametrize("task_loop", ["vmap", 3])
def test_vmapped_tasks_on_two_devices_match_one_device_up_to_rounding(gate, task_loop):
    # With 3, the four tasks are two groups on one device, and one group on each of two.
    one, two = (
        step(gate, mesh, task_loop=task_loop)[0]._replace(key=0) for mesh in (None, two_devices())
    )
    chex.assert_trees_all_close(jax.device_get(one), jax.device_get(two), rtol=1e-5, atol=1e-7)


def test_each_device_adapts_to_its_own_tasks():
    gate = gates.binary(0.1)
    text = jaxsparse.sparse_maml_step.lower(
        learner(gate),
        tasks(4),
        loss_fn=loss_fn,
        gate=gate,
        inner_steps=3,
        theta_optimizer=ADAM,
        mask_optimizer=ADAM,
        mesh=two_devices(),
    ).as_text()
    assert "2x6x3xf32" in text  # two of the four tasks' support images


def test_evaluation_on_two_devices_gives_the_bits_of_one():
    gate = gates.constant(0.1)
    state = learner(gate)
    options = {"loss_fn": loss_fn, "inner_steps": 3}
    sizes = gate.apply(state.mask, None)
    one = jaxsparse.evaluate(state.params, sizes, tasks(4), **options)
    two = jaxsparse.evaluate(state.params, sizes, tasks(4), mesh=two_devices(), **options)
    chex.assert_trees_all_equal(jax.device_get(one), jax.device_get(two))


def test_works_under_vmap_over_seeds():
    gate = gates.binary(0.1)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), learner(gate))

    def meta_step(state):
        return jaxsparse.sparse_maml_step(
            state,
            tasks(4),
            loss_fn=loss_fn,
            gate=gate,
            inner_steps=3,
            theta_optimizer=ADAM,
            mask_optimizer=ADAM,
            mesh=two_devices(),
        )[0].params

    for leaf, want in zip(
        jax.tree.leaves(jax.vmap(meta_step)(states)),
        jax.tree.leaves(step(gate, None)[0].params),
        strict=True,
    ):
        np.testing.assert_allclose(leaf[1], want, rtol=1e-5, atol=1e-6)


def test_tasks_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match=r"mesh: got 2 devices, want a number that divides 3 tasks"
    ):
        step(gates.binary(0.1), two_devices(), count=3)


@pytest.mark.parametrize(
    ("batch", "cores", "share"), [(4, 16, 4), (4, 3, 2), (3, 8, 1), (20, 8, 5)]
)
def test_the_largest_share_divides_training_and_evaluation_batches(batch, cores, share):
    assert largest_share(FewShotConfig(meta_batch_size=batch), cores) == share


def test_one_device_makes_no_mesh():
    assert task_mesh(FewShotConfig(meta_batch_size=3)) is None
    assert task_mesh(FewShotConfig(meta_batch_size=4)).size == 2
