"""Continual-learning metrics, computed from the accuracy matrix of a stream of tasks.

R[i, j] is the accuracy on task j after training on task i. Tasks are counted from 0.
"""

import jax
import jax.numpy as jnp

from jaxsparse.checks import described, is_array
from jaxsparse.clipping import common_dtype


def retained_accuracy(R: jax.Array) -> jax.Array:
    """RA: the accuracy on all tasks after the last one.

    ``RA = 1/T sum_j R[T-1, j]``

    Args:
      R: accuracies [..., T, T]; nested lists are accepted.

    Returns:
      An array [...], in the unit of R.

    Raises:
      TypeError: R is not an array of real numbers.
      ValueError: the last two axes are not equally long, or are empty.

    Examples:
      >>> float(retained_accuracy(jnp.array([[0.9, 0.1], [0.5, 0.7]])))
      0.6000000238418579

    Source: Riemer et al. 2019, MER, Sec. 5.
    """
    return _square(R)[..., -1, :].mean(-1)


def learning_accuracy(R: jax.Array) -> jax.Array:
    """LA: the accuracy on each task right after it was learned.

    ``LA = 1/T sum_j R[j, j]``

    Args:
      R: accuracies [..., T, T]; nested lists are accepted.

    Returns:
      An array [...], in the unit of R.

    Raises:
      TypeError: R is not an array of real numbers.
      ValueError: the last two axes are not equally long, or are empty.

    Examples:
      >>> round(float(learning_accuracy(jnp.array([[0.9, 0.1], [0.5, 0.7]]))), 6)
      0.8

    Source: Riemer et al. 2019, MER, Sec. 5.
    """
    return _diagonal(R).mean(-1)


def backward_transfer_interference(R: jax.Array) -> jax.Array:
    """BTI: the change in accuracy on each task through learning the later tasks.

    ``BTI = 1/T sum_j (R[T-1, j] - R[j, j]) = RA - LA``; negative if tasks are forgotten. The term
    of the last task is 0.

    Args:
      R: accuracies [..., T, T]; nested lists are accepted.

    Returns:
      An array [...], in the unit of R.

    Raises:
      TypeError: R is not an array of real numbers.
      ValueError: the last two axes are not equally long, or are empty.

    Examples:
      >>> float(backward_transfer_interference(jnp.array([[0.75, 0.1], [0.5, 0.7]])))
      -0.125

    Source: Riemer et al. 2019, MER, Sec. 5.
    """
    return (_square(R)[..., -1, :] - _diagonal(R)).mean(-1)


def forward_transfer(R: jax.Array, initial: jax.Array) -> jax.Array:
    """How much learning the earlier tasks improves the accuracy on a task before it is learned.

    ``FT = 1/T sum_{j>=1} (R[j-1, j] - b[j])``. The sum is divided by T although task 0 has no term,
    as in the public code of GEM and La-MAML.

    Args:
      R: accuracies [..., T, T]; nested lists are accepted.
      initial: b, accuracies before any training [..., T].

    Returns:
      An array [...], in the unit of R.

    Raises:
      TypeError: an argument is not an array of real numbers.
      ValueError: the shapes do not fit together.

    Examples:
      >>> float(forward_transfer(jnp.array([[0.75, 0.5], [0.5, 0.7]]), jnp.array([0.1, 0.25])))
      0.125

    Source: Lopez-Paz & Ranzato 2017, GEM, Sec. 2 (there divided by T - 1).
    """
    R, initial = _square(R), _floating("initial", initial)
    if initial.shape != R.shape[:-1]:
        raise ValueError(f"initial has shape {initial.shape}, want {R.shape[:-1]}")
    ahead = jnp.diagonal(R, offset=1, axis1=-2, axis2=-1)
    wide = common_dtype(ahead, initial)
    return (ahead.astype(wide) - initial[..., 1:].astype(wide)).sum(-1) / R.shape[-1]


def _square(R):
    R = _floating("R", R)
    if R.ndim < 2 or R.shape[-1] != R.shape[-2] or not R.shape[-1]:
        raise ValueError(f"R has shape {R.shape}, want [..., T, T]")
    return R


def _floating(name, values):
    """A floating array of accuracies; nested lists and integers (percent) are accepted."""
    wanted = TypeError(f"{name} must be an array of accuracies, got {described(values)}")
    if not all(map(is_array, jax.tree.leaves(values, is_leaf=lambda x: x is None))):
        raise wanted
    try:
        array = values if hasattr(values, "dtype") else jnp.asarray(values)
    except (TypeError, ValueError) as error:  # such as rows of different lengths
        raise wanted from error
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be floating, got {array.dtype}")
    return jnp.asarray(array, jnp.float32)


def _diagonal(R):
    return jnp.diagonal(_square(R), axis1=-2, axis2=-1)
