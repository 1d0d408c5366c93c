"""The gated inner loop and its first-order rule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxsparse.checks import check_floating, check_like, check_params, check_steps, scalar_loss
from jaxsparse.clipping import common_dtype, sum_dtype
from jaxsparse.precision import float32_by_default

Tree = Any


@float32_by_default
def adapt(
    loss_fn: Callable,
    params: Tree,
    step_sizes: Tree,
    batch: Any,
    steps: int,
    *,
    second_order: bool = False,
) -> tuple[Tree, dict[str, jax.Array]]:
    """Adapt `params` to `batch` with `steps` gated gradient steps.

    ``phi_0 = theta,  phi_{k+1} = phi_k - a * grad L(phi_k),  k = 0..K-1``.

    To first order the inner gradients are constants, so ``phi_K = theta - a * G`` with
    ``G = sum_k grad L(phi_k)``: the loop carries G alone, its memory does not grow with K, nothing
    is back-propagated through it, and a cotangent c of phi_K gives ``d theta = c`` and
    ``d a = -c * G``. To second order the loop is differentiated, each step rematerialised.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      params: theta, any pytree of floating arrays.
      step_sizes: a, a tree shaped like `params` (a gate's `apply`); a scalar leaf is shared by
        the whole tensor.
      batch: what `loss_fn` takes; the same at every step.
      steps: K, a Python int; 0 returns `params`.
      second_order: differentiate through the inner gradients.

    Returns:
      The adapted parameters phi_K, and `{"loss": [steps]}` with the losses before each step (and
      the metrics of `loss_fn`, likewise), which carry no gradient.

    Raises:
      TypeError: `params` or `step_sizes` has a leaf that is not floating; `steps` is no int.
      ValueError: the trees or shapes differ, `steps` is negative, the loss is not a scalar.

    Example:
      >>> phi, metrics = adapt(lambda w, x: (w - x) ** 2, jnp.array(1.0), jnp.array(0.5), 3.0, 1)
      >>> float(phi)
      3.0

    Source: von Oswald, Zhao et al. 2021, Eqs. 8-10; Finn et al. 2017, Sec. 5.2 (first order).
    """
    check_steps("steps", steps)
    check_params("params", params)
    check_floating("step_sizes", step_sizes)
    check_like("step_sizes", step_sizes, "params", params)
    params = jax.tree.map(jnp.asarray, params)
    loop = _second_order_loop if second_order else _first_order_loop
    return loop(
        jax.value_and_grad(scalar_loss(loss_fn), has_aux=True), params, step_sizes, batch, steps
    )


def _first_order_loop(loss_and_grad, params, step_sizes, batch, steps):
    theta, a = stop_gradient(params), stop_gradient(step_sizes)

    def step(gradient_sum, _):
        phi = descend(theta, a, gradient_sum)
        (loss, metrics), gradient = loss_and_grad(phi, batch)
        return jax.tree.map(_accumulate, gradient_sum, gradient), {"loss": loss, **metrics}

    # Half-precision parameters keep a float32 sum: K small gradients would drown in eight bits.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, sum_dtype(x.dtype)), params)
    gradient_sum, metrics = _repeat(step, zeros, steps)
    gradient_sum, metrics = stop_gradient((gradient_sum, metrics))
    return descend(params, step_sizes, gradient_sum), metrics


def _second_order_loop(loss_and_grad, params, step_sizes, batch, steps):
    @jax.checkpoint
    def step(phi, _):
        (loss, metrics), gradient = loss_and_grad(phi, batch)
        return descend(phi, step_sizes, gradient), {"loss": loss, **metrics}

    phi, metrics = _repeat(step, params, steps)
    return phi, stop_gradient(metrics)


def descend(params: Tree, step_sizes: Tree, gradient: Tree) -> Tree:
    """``params - step_sizes * gradient``, in the dtype of `params`.

    Args:
      params: any pytree of floating arrays.
      step_sizes: shaped like `params`; a scalar leaf is shared by the whole tensor.
      gradient: shaped like `params`.

    Returns:
      The moved parameters.

    Example:
      >>> float(descend(jnp.array(1.0), jnp.array(0.5), jnp.array(2.0)))
      0.0

    Source: von Oswald, Zhao et al. 2021, Eq. 8.
    """

    def moved(p, a, g):
        # In the widest of the three, as a sum of gradients is wider than half-precision parameters.
        wide = common_dtype(p, a, g)
        return (p.astype(wide) - jnp.asarray(a, wide) * g.astype(wide)).astype(p.dtype)

    return jax.tree.map(moved, params, step_sizes, gradient)


def _repeat(step, carry, steps):
    """`jax.lax.scan` without inputs, which has no zero steps where compilation is disabled."""
    if steps:
        return jax.lax.scan(step, carry, length=steps)
    kinds = jax.eval_shape(step, carry, None)[1]
    return carry, jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), kinds)


def _accumulate(total, gradient):
    return total + gradient.astype(total.dtype)
