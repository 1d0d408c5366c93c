"""Replay buffers: the reservoir's distribution, rings against a queue, what is refused."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsparse.continual import buffer

DRAWS = 120_000


def keys(seed, count=DRAWS):
    return jax.random.split(jax.random.key(seed), count)


def test_a_reservoir_fills_in_order():
    kept = buffer.init_buffer((jnp.zeros(2, jnp.uint8), jnp.int32(0)), capacity=5)
    rows = jnp.arange(8, dtype=jnp.uint8).reshape(4, 2), jnp.arange(4)
    kept = buffer.add(kept, rows, jax.random.key(0))
    assert int(kept.age) == int(kept.size) == 4
    assert kept.rows[0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [0, 0]]
    assert kept.rows[1].tolist() == [0, 1, 2, 3, 0]
    assert kept.rows[0].dtype == jnp.uint8


def test_the_row_after_a_full_buffer_is_kept_as_theory_says():
    # The 10th row draws one of 11 numbers; 4 of them are slots.
    full = buffer.ReplayBuffer(jnp.zeros(4), jnp.int32(9))
    after = jax.vmap(lambda key: buffer.add(full, jnp.ones(1), key).rows)(keys(1))
    taken = np.asarray(after)
    counts = [*taken.sum(0), (taken.sum(1) == 0).sum()]
    assert sum(counts) == DRAWS
    expected = np.array([1, 1, 1, 1, 7]) * DRAWS / 11
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("batches", [(6,), (3, 3), (1, 1, 1, 1, 1, 1), (2, 4)])
def test_each_row_survives_as_often_however_the_rows_are_batched(batches):
    capacity, rows = 2, 6

    def offer(key):
        kept = buffer.init_buffer(jnp.int32(0), capacity)
        start = 0
        for index, count in enumerate(batches):
            numbers = jnp.arange(start + 1, start + count + 1)
            kept = buffer.add(kept, numbers, jax.random.fold_in(key, index))
            start += count
        return kept.rows

    kept = np.asarray(jax.jit(jax.vmap(offer))(keys(2)))
    assert (kept[:, 0] != kept[:, 1]).all()
    for number in range(1, rows + 1):
        # Once the buffer is full, a row is accepted with probability c / (a + 1). Every later row
        # replaces a given slot with probability 1 / (a + 1).
        entered = 1.0 if number <= capacity else capacity / (number + 1)
        later = range(max(number, capacity) + 1, rows + 1)
        chance = entered * np.prod([1 - 1 / (age + 1) for age in later])
        found = (kept == number).any(1).sum()
        assert stats.binomtest(int(found), DRAWS, chance).pvalue > 1e-3, number


def test_what_is_not_accepted_changes_nothing():
    kept = buffer.add(buffer.init_buffer(jnp.float32(0), 3), jnp.ones(2), jax.random.key(0))
    same = buffer.add(kept, jnp.full(2, 7.0), jax.random.key(1), accept=jnp.array(False))
    assert same.rows.tolist() == kept.rows.tolist()
    assert int(same.age) == 2


def test_samples_are_uniform_and_with_replacement():
    kept = buffer.add(buffer.init_buffer(jnp.int32(0), 7), jnp.arange(1, 5), jax.random.key(0))
    rows, weights = jax.vmap(lambda key: buffer.sample(kept, key, 2))(keys(3))
    assert (np.asarray(weights) == 1).all()
    pairs = np.zeros((4, 4))
    np.add.at(pairs, tuple(np.asarray(rows).T - 1), 1)
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_samples_of_a_buffer_with_fewer_rows():
    empty = buffer.init_buffer(jnp.float32(0), 7)
    assert buffer.sample(empty, jax.random.key(0), 3)[1].tolist() == [0, 0, 0]
    two = buffer.add(empty, jnp.ones(2), jax.random.key(0))
    rows, weights = buffer.sample(two, jax.random.key(1), 3)
    assert weights.tolist() == [1, 1, 0]
    assert rows[:2].tolist() == [1, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_task_memory_is_a_queue_for_each_task(count):
    slots, tasks = 3, 2
    memory = buffer.init_memory(jnp.int32(0), tasks, slots)
    queues = [deque([0] * slots, maxlen=slots) for _ in range(tasks)]
    write = jax.jit(buffer.write)
    for turn in range(7):
        task = turn % tasks
        rows = 10 * turn + 1 + np.arange(count)
        memory = write(memory, task, jnp.asarray(rows))
        queues[task].extend(rows.tolist())
        for kept, queue in zip(memory.rows.tolist(), queues, strict=True):
            assert sorted(kept) == sorted(queue)
    same = write(memory, 0, jnp.full(count, 99), jnp.array(False))
    assert same.rows.tolist() == memory.rows.tolist()
    assert same.written.tolist() == memory.written.tolist()


def test_earlier_tasks_are_equally_likely():
    memory = buffer.init_memory(jnp.int32(0), tasks=3, slots=2)
    for task in range(3):
        memory = buffer.write(memory, task, jnp.array([10 * task, 10 * task + 1]))
    rows, weights = jax.vmap(lambda key: buffer.sample_earlier(memory, 2, key, 1))(keys(4))
    assert (np.asarray(weights) == 1).all()
    numbers, counts = np.unique(np.asarray(rows), return_counts=True)
    assert numbers.tolist() == [0, 1, 10, 11]
    assert stats.chisquare(counts).pvalue > 1e-3
    assert buffer.sample_earlier(memory, 0, jax.random.key(0), 2)[1].tolist() == [0, 0]
    empty = buffer.init_memory(jnp.int32(0), tasks=2, slots=1)
    assert buffer.sample_earlier(empty, 1, jax.random.key(0), 2)[1].tolist() == [0, 0]


def test_rows_that_do_not_fit_are_named():
    kept = buffer.init_buffer((jnp.zeros(3), jnp.int32(0)), 4)
    key = jax.random.key(0)
    with pytest.raises(
        ValueError, match=r"rows\[0\] has rows of shape \(2,\), float32; buffer has \(3,\)"
    ):
        buffer.add(kept, (jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32)), key)
    with pytest.raises(ValueError, match="rows must have the tree"):
        buffer.add(kept, jnp.zeros((1, 3)), key)
    with pytest.raises(ValueError, match="same leading row axis"):
        buffer.add(kept, (jnp.zeros((2, 3)), jnp.zeros(1, jnp.int32)), key)
    for make in (
        lambda: buffer.init_buffer(jnp.zeros(3), 0),
        lambda: buffer.init_memory(jnp.zeros(3), 2, 0),
        lambda: buffer.sample(kept, key, 0),
    ):
        with pytest.raises(ValueError, match="must be 1 or more, got 0"):
            make()
