"""Runs divided among devices: which device has which run, and takes which of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from jaxsparse.training.seeds import Placement


class Devices:
    """The part of a mesh that decides which device takes which step; only two devices exist."""

    def __init__(self, size):
        self.size = size
        self.devices = np.array(jax.devices()[:1] * size)


def on_two(runs):
    return Placement(runs, Mesh(np.array(jax.devices()[:2]), ("seeds",)))


COUNTS = st.tuples(st.integers(2, 9), st.integers(0, 12)).map(lambda c: (c[0], c[0] + c[1]))


@given(COUNTS, st.integers(0, 50), st.integers(0, 70))
def test_every_step_of_every_run_is_taken_once_and_in_order(counts, first, steps):
    devices, runs = counts
    placement = Placement(runs, Devices(devices))
    if runs % devices == 0:
        assert placement.turns == 1
        return
    assert placement.turns == devices
    at = dict.fromkeys(range(runs), first)
    for turn, (begins, ends) in enumerate(placement.shares(first, first + steps)):
        order = placement.order(turn)
        assert len(order) == len(begins) == len(ends) == devices * (runs // devices + 1)
        busy = [run for run, a, b in zip(order, begins, ends, strict=True) if b > a]
        assert len(busy) == len(set(busy))  # no run is on two devices at once
        for run, begin, end in zip(order, begins, ends, strict=True):
            if end > begin:
                assert begin == at[run]
                at[run] = end
    assert set(at.values()) == {first + steps}


@given(COUNTS, st.integers(1, 40))
def test_all_devices_have_the_same_work(counts, parts):
    """Each takes n/d times the steps of one run: one part per turn, except in the last turn."""
    devices, runs = counts
    if runs % devices == 0:
        return
    steps = parts * devices
    shares = Placement(runs, Devices(devices)).shares(0, steps)
    taken = np.stack([(b - a).reshape(devices, -1).sum(1) for a, b in shares])
    np.testing.assert_array_equal(taken[:-1], parts)
    np.testing.assert_array_equal(taken.sum(0), runs * parts)


def test_surplus_runs_move_from_device_to_device():
    """Eight runs on three devices: 0 to 5 stay on theirs, 6 and 7 move from device to device."""
    placement = Placement(8, Devices(3))
    orders = [placement.order(turn).tolist() for turn in range(3)]
    assert [order[2::3] for order in orders] == [[6, 7, 7], [7, 6, 7], [7, 7, 6]]
    assert {tuple(order[i] for i in (0, 1, 3, 4, 6, 7)) for order in orders} == {(0, 1, 2, 3, 4, 5)}


@pytest.mark.parametrize("runs", [1, 2, 3, 4, 5])
def test_put_keeps_the_values(runs):
    tree = {"a": np.arange(runs * 6.0).reshape(runs, 2, 3), "b": np.arange(runs)}
    placement = on_two(runs) if runs > 1 else Placement(1, None)
    placed = placement.put(tree)
    assert len(placed["b"]) == 2 * -(-runs // 2) or runs == 1
    jax.tree.map(np.testing.assert_array_equal, placement.to_host(placed), tree)


def in_python(x, factor, shift, first, last):
    for i in range(first, last):
        x = (31 * x + factor * i + shift) % 10007
    return x


@pytest.mark.parametrize("runs", [2, 3, 4, 5])
def test_steps_of_runs_on_two_devices(runs):
    def recur(x, factor, shift, first, last):
        def step(i, x):
            return (31 * x + factor * i + shift) % 10007

        return jax.lax.fori_loop(first, last, step, x)

    placement = on_two(runs)
    factors = np.arange(3, 3 + runs)
    by_turn = [placement.put(factors, turn) for turn in range(placement.turns)]
    advance = placement.over_steps(recur)
    state, want = placement.put(jnp.arange(runs) + 100), [100 + run for run in range(runs)]
    for first, last in ((0, 1), (1, 1), (1, 8), (8, 30)):
        state = advance(state, by_turn, jnp.int32(5), first, last)
        want = [in_python(x, f, 5, first, last) for x, f in zip(want, factors, strict=True)]
        assert placement.to_host(state).tolist() == want


def test_functions_of_runs_on_two_devices():
    placement = on_two(3)
    add = placement.over_runs(lambda x, y: x + y, (0, None))
    assert placement.to_host(add(placement.put(np.arange(3)), 10)).tolist() == [10, 11, 12]
