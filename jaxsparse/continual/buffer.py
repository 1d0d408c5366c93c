"""Replay memories: a reservoir of rows (examples), or the newest rows of each task."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_like_rows, check_steps

Tree = Any


class ReplayBuffer(NamedTuple):
    """A reservoir of fixed size.

    Attributes:
      rows: a tree whose leaves have a leading axis of slots [capacity, ...].
      age: int32, the number of rows added so far; the first min(age, capacity) slots are filled.

    Examples:
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
      row: one row, a tree of arrays or of `jax.ShapeDtypeStruct`. Only shapes and dtypes are used.
      capacity: the number of slots.

    Returns:
      A `ReplayBuffer` of zeros, with age 0.

    Raises:
      TypeError, ValueError: capacity is not a positive integer.

    Examples:
      >>> buffer = init_buffer((jnp.zeros((28, 28, 1), jnp.uint8), jnp.int32(0)), capacity=200)

    Source: Vitter 1985, Random sampling with a reservoir.
    """
    return ReplayBuffer(_slots(row, (_positive("capacity", capacity),)), jnp.zeros((), jnp.int32))


def add(
    buffer: ReplayBuffer, rows: Tree, key: jax.Array, accept: jax.Array | bool = True
) -> ReplayBuffer:
    """Reservoir sampling: add rows as if one after the other.

    While there are empty slots, row number a of the stream (a = 1, 2, ...) is stored in slot a - 1.
    After that, draw ``p`` uniformly from ``{0, ..., a}`` and store the row in slot p if
    ``p < capacity``, else drop it. So it is stored with probability ``capacity / (a + 1)``.

    Args:
      buffer: the `ReplayBuffer`.
      rows: a tree like `buffer.rows`, leaves [n, ...].
      key: a PRNG key.
      accept: bool; False leaves the buffer as it is.

    Returns:
      The new buffer.

    Raises:
      ValueError: the tree, shapes or dtypes of the rows differ from those of the buffer.

    Examples:
      >>> buffer = add(init_buffer(jnp.float32(0), 3), jnp.arange(2.0), jax.random.key(0))
      >>> buffer.rows.tolist(), int(buffer.age)
      ([0.0, 1.0, 0.0], 2)

    Source: Riemer et al. 2019, MER, public code (textbook reservoirs draw from a values, not a+1).
    """
    (count,) = check_like_rows("rows", rows, "buffer", buffer.rows)
    ages = buffer.age + 1 + jnp.arange(count, dtype=jnp.int32)
    drawn = jax.random.randint(key, (count,), 0, ages + 1, jnp.int32)
    slots = jnp.where(ages <= buffer.capacity, ages - 1, drawn)
    # All rows are written in one scatter, so rows that a later row would overwrite are dropped.
    later = jnp.triu(jnp.ones((count, count), bool), 1)
    overwritten = jnp.any(later & (slots[:, None] == slots[None, :]), axis=1)
    slots = jnp.where(accept & ~overwritten, slots, buffer.capacity)
    written = jax.tree.map(lambda b, r: b.at[slots].set(r, mode="drop"), buffer.rows, rows)
    return ReplayBuffer(written, jnp.where(accept, buffer.age + count, buffer.age))


def sample(buffer: ReplayBuffer, key: jax.Array, count: int) -> tuple[Tree, jax.Array]:
    """Draw rows uniformly with replacement, at most as many as the buffer holds.

    Args:
      buffer: the `ReplayBuffer`.
      key: a PRNG key.
      count: the number of rows to draw.

    Returns:
      The rows, leaves [count, ...], and their weights float32 [count]: 1 for the first
      ``min(count, size)``, else 0. Rows with weight 0 must not be used.

    Raises:
      TypeError, ValueError: count is not a positive integer.

    Examples:
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
    """The newest rows of each task: a ring buffer per task.

    Attributes:
      rows: a tree whose leaves have leading axes of tasks and slots [T, n, ...].
      written: int32 [T], the number of rows written so far for each task.

    Examples:
      >>> memory = init_memory(jnp.zeros(3), tasks=20, slots=10)
      >>> memory.rows.shape
      (20, 10, 3)
    """

    rows: Tree
    written: jax.Array


def init_memory(row: Tree, tasks: int, slots: int) -> TaskMemory:
    """An empty memory.

    Args:
      row: one row, a tree of arrays or of `jax.ShapeDtypeStruct`. Only shapes and dtypes are used.
      tasks: T, the number of tasks.
      slots: n, the number of rows to keep per task.

    Returns:
      A `TaskMemory` of zeros.

    Raises:
      TypeError, ValueError: tasks or slots is not a positive integer.

    Examples:
      >>> init_memory(jnp.zeros(3), tasks=2, slots=4).written.tolist()
      [0, 0]

    Source: Lopez-Paz & Ranzato 2017, GEM, Sec. 3.
    """
    shape = (_positive("tasks", tasks), _positive("slots", slots))
    return TaskMemory(_slots(row, shape), jnp.zeros(tasks, jnp.int32))


def write(
    memory: TaskMemory, task: jax.Array, rows: Tree, accept: jax.Array | bool = True
) -> TaskMemory:
    """Replace the oldest rows of a task by new ones.

    Args:
      memory: the `TaskMemory`.
      task: int32, the index of the task.
      rows: a tree like `memory.rows`, leaves [b, ...]. If b > n, the last n are kept.
      accept: bool; False leaves the memory as it is.

    Returns:
      The new memory.

    Raises:
      ValueError: the tree, shapes or dtypes of the rows differ from those of the memory.

    Examples:
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
    """Draw rows of the tasks before `task`: a task uniformly, then one of its rows uniformly.

    Args:
      memory: the `TaskMemory`.
      task: int32, the index of the current task.
      key: a PRNG key.
      count: the number of rows to draw, with replacement.

    Returns:
      The rows, leaves [count, ...], and their weights float32 [count]: 1, or 0 if the task has no
      rows, as during the first task.

    Raises:
      TypeError, ValueError: count is not a positive integer.

    Examples:
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
    return rows, ((task > 0) & (filled > 0)).astype(jnp.float32)


def _slots(row, shape):
    kinds = jax.eval_shape(lambda x: x, row)
    return jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), x.dtype), kinds)


def _positive(name, number):
    check_steps(name, number, least=1)
    return number
