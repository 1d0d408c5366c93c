"""RA, BTI, LA and forward transfer against matrices worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxsparse import metrics

# Three tasks: learned at 90, 80 and 70, kept at 60, 65 and 70.
R = jnp.array([[90.0, 20.0, 10.0], [75.0, 80.0, 30.0], [60.0, 65.0, 70.0]])
INITIAL = jnp.array([12.0, 8.0, 10.0])


def test_by_hand():
    assert float(metrics.retained_accuracy(R)) == 65.0
    assert float(metrics.learning_accuracy(R)) == 80.0
    assert float(metrics.backward_transfer_interference(R)) == -15.0
    # (20 - 8 + 30 - 10) / 3
    assert float(metrics.forward_transfer(R, INITIAL)) == pytest.approx(32 / 3)


def test_what_is_not_measured_does_not_matter():
    measured = jnp.array([[1, 1, 0], [0, 1, 1], [1, 1, 1]])
    diagonal = jnp.where(measured, R, jnp.nan)
    assert float(metrics.retained_accuracy(diagonal)) == 65.0
    assert float(metrics.backward_transfer_interference(diagonal)) == -15.0
    assert float(metrics.forward_transfer(diagonal, INITIAL)) == pytest.approx(32 / 3)


def test_leading_axes_are_those_of_seeds():
    both = jnp.stack([R, R[::-1]])
    assert metrics.retained_accuracy(both).tolist() == [65.0, 40.0]
    one_by_one = jax.vmap(metrics.forward_transfer)(both, jnp.stack([INITIAL, INITIAL]))
    assert metrics.forward_transfer(both, jnp.stack([INITIAL, INITIAL])) == pytest.approx(
        one_by_one
    )


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"R has shape \(2, 3\), want \[\.\.\., T, T\]"):
        metrics.retained_accuracy(R[:2])
    with pytest.raises(ValueError, match=r"initial has shape \(2,\), want \(3,\)"):
        metrics.forward_transfer(R, INITIAL[:2])
