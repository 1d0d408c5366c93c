"""What online learners keep of a stream: a reservoir of rows, or the newest rows of each task."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_like_rows, check_steps

Tree = Any


class ReplayBuffer(NamedTuple):
    """A reservoir of fixed size.

    Attributes:
      rows: a tree whose leaves lead with the slots [capacity, ...].
      age: int32, the number of rows offered so far; the first min(age, capacity) slots are filled.

    Example:
      >>> buffer = init_buffer(jnp.zeros(3), capacity=200)
      >>> buffer.rows.shape
      (200, 3)
    """

    rows: Tree
    age: jax.Array

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return len(jax.tree.leaves(self.rows)[0])

    @property
    def size(self) -> jax.Array:
        """int32, the number of slots that are filled."""
        return jnp.minimum(self.age, self.capacity)


def init_buffer(row: Tree, capacity: int) -> ReplayBuffer:
    """An empty reservoir.

    Args:
      row: one row, a tree of arrays or of `jax.ShapeDtypeStruct`: its shapes and dtypes count.
      capacity: the number of slots.

    Returns:
      A `ReplayBuffer` of zeros, of age 0.

    Raises:
      ValueError: capacity below 1.

    Example:
      >>> buffer = init_buffer((jnp.zeros((28, 28, 1), jnp.uint8), jnp.int32(0)), capacity=200)

    Source: Vitter 1985, Random sampling with a reservoir.
    """
    return ReplayBuffer(_slots(row, (_positive("capacity", capacity),)), jnp.zeros((), jnp.int32))


def add(
    buffer: ReplayBuffer, rows: Tree, key: jax.Array, accept: jax.Array | bool = True
) -> ReplayBuffer:
    """Offer rows one after the other; written together.

    The a-th row ever offered (a = 1, 2, ...) takes slot a - 1 while there is one that is empty;
    then it draws ``p`` uniformly from ``{0, ..., a}`` and takes slot p if ``p < capacity``: it is
    kept with probability ``capacity / (a + 1)``.

    Args:
      buffer: what it is added to.
      rows: a tree like `buffer.rows`, leaves [n, ...].
      key: a PRNG key.
      accept: bool; False leaves the buffer as it is.

    Returns:
      The buffer with the rows in.

    Raises:
      ValueError: rows of another tree, shape or dtype than the buffer's.

    Example:
      >>> buffer = add(init_buffer(jnp.float32(0), 3), jnp.arange(2.0), jax.random.key(0))
      >>> buffer.rows.tolist(), int(buffer.age)
      ([0.0, 1.0, 0.0], 2)

    Source: Riemer et al. 2019, MER, public code (textbook reservoirs draw from a values, not a+1).
    """
    (count,) = check_like_rows("rows", rows, "buffer", buffer.rows)
    ages = buffer.age + 1 + jnp.arange(count, dtype=jnp.int32)
    drawn = jax.random.randint(key, (count,), 0, ages + 1, jnp.int32)
    slots = jnp.where(ages <= buffer.capacity, ages - 1, drawn)
    # Written at once, where a row that a later one of the batch would overwrite has to yield.
    later = jnp.triu(jnp.ones((count, count), bool), 1)
    overwritten = jnp.any(later & (slots[:, None] == slots[None, :]), axis=1)
    slots = jnp.where(accept & ~overwritten, slots, buffer.capacity)
    written = jax.tree.map(lambda b, r: b.at[slots].set(r, mode="drop"), buffer.rows, rows)
    return ReplayBuffer(written, jnp.where(accept, buffer.age + count, buffer.age))


def sample(buffer: ReplayBuffer, key: jax.Array, count: int) -> tuple[Tree, jax.Array]:
    """Draw rows uniformly and with replacement, no more than there are.

    Args:
      buffer: what is drawn from.
      key: a PRNG key.
      count: rows to draw.

    Returns:
      The rows, leaves [count, ...], and their weights float32 [count]: 1 for the first
      ``min(count, size)``, else 0 (such rows are not to be used).

    Raises:
      TypeError, ValueError: count is no positive integer.

    Example:
      >>> buffer = add(init_buffer(jnp.float32(0), 3), jnp.ones(1), jax.random.key(0))
      >>> rows, weights = sample(buffer, jax.random.key(1), 2)
      >>> rows.tolist(), weights.tolist()
      ([1.0, 1.0], [1.0, 0.0])

    Source: Gupta et al. 2020, La-MAML, Algorithm 1 (Sample), as its public code draws.
    """
    most = jnp.maximum(buffer.size, 1)
    slots = jax.random.randint(key, (_positive("count", count),), 0, most, jnp.int32)
    rows = jax.tree.map(lambda x: x.at[slots].get(mode="promise_in_bounds"), buffer.rows)
    return rows, (jnp.arange(count, dtype=jnp.int32) < buffer.size).astype(jnp.float32)


class TaskMemory(NamedTuple):
    """The newest rows of each task: a ring for each.

    Attributes:
      rows: a tree whose leaves lead with tasks and slots [T, n, ...].
      written: int32 [T], the number of rows ever written for each task.

    Example:
      >>> memory = init_memory(jnp.zeros(3), tasks=20, slots=10)
      >>> memory.rows.shape
      (20, 10, 3)
    """

    rows: Tree
    written: jax.Array


def init_memory(row: Tree, tasks: int, slots: int) -> TaskMemory:
    """An empty memory.

    Args:
      row: one row, a tree of arrays or of `jax.ShapeDtypeStruct`.
      tasks: T, the number of tasks.
      slots: n, rows kept of each.

    Returns:
      A `TaskMemory` of zeros.

    Raises:
      TypeError, ValueError: tasks or slots is no positive integer.

    Example:
      >>> init_memory(jnp.zeros(3), tasks=2, slots=4).written.tolist()
      [0, 0]

    Source: Lopez-Paz & Ranzato 2017, GEM, Sec. 3.
    """
    shape = (_positive("tasks", tasks), _positive("slots", slots))
    return TaskMemory(_slots(row, shape), jnp.zeros(tasks, jnp.int32))


def write(
    memory: TaskMemory, task: jax.Array, rows: Tree, accept: jax.Array | bool = True
) -> TaskMemory:
    """Put a task's newest rows in the place of its oldest.

    Args:
      memory: what is written to.
      task: int32, the task.
      rows: a tree like `memory.rows`, leaves [b, ...]; of more than n rows the last n are kept.
      accept: bool; False leaves the memory as it is.

    Returns:
      The memory with the rows in.

    Raises:
      ValueError: rows of another tree, shape or dtype than the memory's.

    Example:
      >>> memory = write(init_memory(jnp.float32(0), 2, 2), 1, jnp.arange(3.0))
      >>> memory.rows.tolist()
      [[0.0, 0.0], [2.0, 1.0]]

    Source: Lopez-Paz & Ranzato 2017, GEM, Algorithm 1.
    """
    (count,) = check_like_rows("rows", rows, "memory", memory.rows, behind=2)
    size = jax.tree.leaves(memory.rows)[0].shape[1]
    kept = min(count, size)
    first = memory.written[task] + count - kept
    slots = (first + jnp.arange(kept, dtype=jnp.int32)) % size
    slots = jnp.where(accept, slots, size)
    written = jax.tree.map(
        lambda m, r: m.at[task, slots].set(r[count - kept :], mode="drop"), memory.rows, rows
    )
    return TaskMemory(written, memory.written.at[task].add(jnp.where(accept, jnp.int32(count), 0)))


def sample_earlier(
    memory: TaskMemory, task: jax.Array, key: jax.Array, count: int
) -> tuple[Tree, jax.Array]:
    """Draw rows of the tasks before `task`, uniformly over these tasks and their slots.

    Args:
      memory: what is drawn from; the earlier tasks have filled their slots.
      task: int32, the present task.
      key: a PRNG key.
      count: rows to draw, with replacement.

    Returns:
      The rows, leaves [count, ...], and their weights float32 [count]: all 1, or all 0 in the
      first task.

    Raises:
      TypeError, ValueError: count is no positive integer.

    Example:
      >>> memory = write(init_memory(jnp.float32(0), 2, 1), 0, jnp.ones(1))
      >>> sample_earlier(memory, 1, jax.random.key(0), 2)[0].tolist()
      [1.0, 1.0]

    Source: Chaudhry et al. 2019, A-GEM, Algorithm 1.
    """
    task_key, slot_key = jax.random.split(key)
    shape = (_positive("count", count),)
    tasks = jax.random.randint(task_key, shape, 0, jnp.maximum(task, 1), jnp.int32)
    filled = jnp.minimum(memory.written[tasks], jax.tree.leaves(memory.rows)[0].shape[1])
    slots = jax.random.randint(slot_key, shape, 0, jnp.maximum(filled, 1), jnp.int32)
    rows = jax.tree.map(lambda x: x[tasks, slots], memory.rows)
    return rows, jnp.broadcast_to(jnp.asarray(task > 0, jnp.float32), shape)


def _slots(row, shape):
    kinds = jax.eval_shape(lambda x: x, row)
    return jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), x.dtype), kinds)


def _positive(name, number):
    check_steps(name, number)
    if number < 1:
        raise ValueError(f"{name} must be 1 or more, got {number}")
    return number
