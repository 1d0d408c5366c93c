"""The inner loop of every method, and the rule for its meta-gradient.

``phi_0 = theta,  phi_{k+1} = phi_k - a * g_k,  g_k = grad L_in(phi_k; B_k),  k = 0..K-1``
``h_k = grad L_out(phi_k),  G_k = g_0 + ... + g_{k-1}``
``d theta = mean of h_k,  d a = -mean of h_k * G_k  over the iterates that count``  (Eqs. 9, 10)

A leaf whose step size is None stays out of the inner loop: the losses read it, no step moves it.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxsparse._tree import combine, is_none, restrict
from jaxsparse.checks import check_floating, check_like, check_params, check_steps, scalar_loss
from jaxsparse.clipping import common_dtype, sum_dtype
from jaxsparse.precision import float32_by_default

Tree = Any
MetaIterates = Literal["all", "last"]
GradientSum = Literal["before", "after"]


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
    ``G = sum_k grad L(phi_k)``: the memory of the loop does not grow with K, nothing is
    back-propagated through it, and a cotangent c of phi_K gives ``d theta = c`` and
    ``d a = -c * G``. To second order the loop is differentiated, each step rematerialised.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      params: theta, any pytree of floating arrays.
      step_sizes: a, a tree shaped like `params` (a gate's `apply`); a scalar leaf is shared by
        the whole tensor. None in place of a leaf keeps that parameter as it is.
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
    check_step_sizes(step_sizes, params)
    params = jax.tree.map(jnp.asarray, params)
    gradient_at = _inner_gradient(loss_fn, step_sizes, batch)
    loop = _Loop(gradient_at, params, step_sizes, None, steps)
    if second_order:
        step = jax.checkpoint(lambda phi, _: loop.moved(phi, step_sizes, None))
        phi, metrics = _scan(step, params, None, steps)
        return phi, stop_gradient(metrics)
    constant = loop._replace(theta=stop_gradient(params), a=stop_gradient(step_sizes))
    (_, total, _), (metrics, _) = _first_order_steps(constant)
    total, metrics = stop_gradient((total, metrics))
    return gated_step(params, step_sizes, total), metrics


def meta_gradient(
    loss_fn: Callable,
    params: Tree,
    step_sizes: Tree,
    batches: Any,
    outer_loss: Callable,
    *,
    steps: int | None = None,
    iterates: MetaIterates = "last",
    second_order: bool = False,
    inner_clip: float | None = None,
    gradient_sum: GradientSum = "before",
) -> tuple[Tree, Tree, dict[str, jax.Array]]:
    """The meta-gradient of the inner loop: by theta and by the step sizes.

    ``d theta = mean of h_k,  d a = -mean of h_k * G_k``, as at the head of this file, with the
    mean over phi_1 .. phi_K or of phi_K alone. To second order the loop is differentiated.

    Args:
      loss_fn: the inner loss, `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      params: theta.
      step_sizes: a, as in `adapt`.
      batches: B_0 .. B_{K-1}, a tree whose leaves lead with an axis of K; with `steps` the one
        batch of every step.
      outer_loss: `params -> (scalar, dict of scalars)`.
      steps: K, where every step takes the same batch.
      iterates: those that count, "all" or the "last".
      second_order: differentiate through the inner gradients.
      inner_clip: clamp each entry of the inner gradients to [-inner_clip, inner_clip].
      gradient_sum: to first order, where the gradients of the sums G_k in d a are taken: "before"
        each inner step, as the step itself takes it, or "after" it, on the same batch.

    Returns:
      d theta in float32 or wider, d a like `step_sizes`, and metrics: the means of the outer
      "loss" and its metrics over the iterates, and "inner_loss" [K] before each step.

    Example:
      >>> square = lambda w, x: (w - x) ** 2
      >>> d_params, d_sizes, _ = meta_gradient(
      ...     square, jnp.array(1.0), jnp.array(0.25), 3.0, lambda w: (square(w, 5.0), {}), steps=2)
      >>> float(d_params), float(d_sizes)
      (-5.0, -30.0)

    Source: von Oswald, Zhao et al. 2021, Eqs. 9-10.
    """
    check_step_sizes(step_sizes, params)
    batch, rows = (None, batches) if steps is None else (batches, None)
    count = len(jax.tree.leaves(batches)[0]) if steps is None else steps
    gradient_at = _inner_gradient(loss_fn, step_sizes, batch, inner_clip)
    loop = _Loop(gradient_at, jax.tree.map(jnp.asarray, params), step_sizes, rows, count)
    outer_and_grad = jax.value_and_grad(outer_loss, has_aux=True)
    if second_order:
        derived = _second_order(loop, outer_and_grad, iterates == "all")
    else:
        derived = _first_order(loop, outer_and_grad, iterates == "all", gradient_sum == "after")
    d_params, d_sizes, inner_loss, outer = derived
    return d_params, d_sizes, meta_metrics(inner_loss, outer)


def gated_step(params: Tree, step_sizes: Tree, gradient: Tree) -> Tree:
    """``params - step_sizes * gradient``, in the dtype of `params`.

    Args:
      params: any pytree of floating arrays.
      step_sizes: shaped like `params`; a scalar leaf is shared by the whole tensor, None leaves a
        parameter as it is.
      gradient: shaped like `params`.

    Returns:
      The moved parameters.

    Example:
      >>> float(gated_step(jnp.array(1.0), jnp.array(0.5), jnp.array(2.0)))
      0.0

    Source: von Oswald, Zhao et al. 2021, Eq. 8.
    """

    def moved(a, p, g):
        if a is None:
            return p
        # In the widest of the three, as a sum of gradients is wider than half-precision parameters.
        wide = common_dtype(p, a, g)
        return (p.astype(wide) - jnp.asarray(a, wide) * g.astype(wide)).astype(p.dtype)

    return jax.tree.map(moved, step_sizes, params, gradient, is_leaf=is_none)


def check_step_sizes(step_sizes: Tree, params: Tree) -> None:
    """Raise unless `params` is a tree of floating arrays and `step_sizes` fits it."""
    check_params("params", params)
    check_floating("step_sizes", step_sizes)
    with contextlib.suppress(ValueError):  # another tree, of which `check_like` speaks
        params = restrict(params, step_sizes)
    check_like("step_sizes", step_sizes, "params", params)


def add_meta_terms(sums: Any, share: float, h: Tree, gradient_sum: Tree) -> Any:
    """Add an iterate's ``share * h_k`` and ``-share * h_k * G_k`` to the sums of both."""
    # Each term is weighted here, not their sum after the loop: a constant factor keeps XLA
    # from its tiled code for the CPU, which runs such sums several times slower.
    d_params, d_sizes = sums
    d_params = jax.tree.map(lambda d, x: d + share * x.astype(d.dtype), d_params, h)
    h = restrict(h, gradient_sum)
    d_sizes = jax.tree.map(
        lambda d, x, g: d - share * x.astype(d.dtype) * g, d_sizes, h, gradient_sum
    )
    return d_params, d_sizes


def add_gradient(gradient_sum: Tree, gradient: Tree) -> Tree:
    """A sum of gradients with one more in it, in the sum's dtypes."""
    return jax.tree.map(lambda total, g: total + g.astype(total.dtype), gradient_sum, gradient)


def meta_metrics(inner_loss: jax.Array, outer: tuple[jax.Array, Any]) -> dict[str, jax.Array]:
    """Means of the outer loss and its metrics over the iterates; the inner losses beside them."""
    loss, metrics = outer
    return jax.tree.map(jnp.mean, {"loss": loss, **metrics}) | {"inner_loss": inner_loss}


def summed_like(sizes: Tree, d_sizes: Tree) -> Tree:
    """The gradient by the step sizes; one shared by a tensor collects what its entries receive."""
    return jax.tree.map(
        lambda a, d: (d if a.shape == d.shape else d.sum()).astype(a.dtype), sizes, d_sizes
    )


def zeros_to_sum(tree: Tree) -> Tree:
    """Zeros to add gradients up in, float32 or wider: eight bits would drown small ones."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, sum_dtype(x.dtype)), tree)


class _Loop(NamedTuple):
    """What the inner steps are made of.

    Attributes:
      gradient_at: (phi, rows) -> ((loss, metrics), gradient of the leaves that move).
      theta: where they start.
      a: the step sizes.
      rows: each step's batch, its leaves leading with an axis of K; None: `gradient_at` has it.
      steps: K.
    """

    gradient_at: Callable
    theta: Tree
    a: Tree
    rows: Any
    steps: int

    def moved(self, phi, a, rows):
        """phi after a step of the sizes a, and the loss and metrics before it."""
        (loss, metrics), gradient = self.gradient_at(phi, rows)
        return gated_step(phi, a, gradient), {"loss": loss, **metrics}


def _inner_gradient(loss_fn, step_sizes, batch, clip=None):
    own_loss = scalar_loss(loss_fn)

    def gradient_at(phi, rows):
        def loss(part):
            return own_loss(combine(part, phi), batch if rows is None else rows)

        value, gradient = jax.value_and_grad(loss, has_aux=True)(restrict(phi, step_sizes))
        if clip is not None:
            gradient = jax.tree.map(lambda g: jnp.clip(g, -clip, clip), gradient)
        return value, gradient

    return gradient_at


def _first_order_steps(loop, visit=None, sums=None):
    """phi_K, G_K and what `visit` adds up at each iterate, with constant inner gradients."""

    def step(carry, rows):
        phi, total, sums = carry
        (loss, metrics), gradient = loop.gradient_at(phi, rows)
        total = add_gradient(total, gradient)
        phi, outer = gated_step(loop.theta, loop.a, total), None
        if visit is not None:
            sums, outer = visit(sums, phi, total, rows)
        return (phi, total, sums), ({"loss": loss, **metrics}, outer)

    start = loop.theta, zeros_to_sum(restrict(loop.theta, loop.a)), sums
    return _scan(step, start, loop.rows, loop.steps)


def _first_order(loop, outer_and_grad, every, after):
    share = 1.0 / loop.steps if every else 1.0
    zeros = zeros_to_sum(restrict(loop.theta, loop.a))

    def add_iterate(sums, phi, total):
        outer, h = outer_and_grad(phi)
        return add_meta_terms(sums, share, h, total), outer

    def visit(sums, phi, total, rows):
        total_after, own = sums
        if after:
            total_after = add_gradient(total_after, loop.gradient_at(phi, rows)[1])
        if not every:
            return (total_after, own), None
        own, outer = add_iterate(own, phi, total_after if after else total)
        return (total_after, own), outer

    sums = zeros if after else None, (zeros_to_sum(loop.theta), zeros)
    end, (inner, outer) = _first_order_steps(loop, visit, sums)
    phi, total, (total_after, own) = end
    if not every:
        own, outer = add_iterate(own, phi, total_after if after else total)
    d_params, d_sizes = own
    return d_params, summed_like(loop.a, d_sizes), inner["loss"], outer


def _second_order(loop, outer_and_grad, every):
    """The steps retraced from the last to the first, each outer loss evaluated once.

    ``c_k = [h_k] + c_{k+1} d phi_{k+1} / d phi_k,  d theta = c_0,  d a = sum_k c_k d phi_k / d a``
    with h_k the gradient of what phi_k adds to the outer loss. Of the inner steps only phi is kept.
    """
    share = 1.0 / loop.steps if every else 1.0

    def step(phi, rows):
        end, metrics = loop.moved(phi, loop.a, rows)
        return end, (phi, metrics["loss"])

    def step_back(carry, passed):
        cotangent, d_sizes = carry
        start, rows = passed
        end, pull, _ = jax.vjp(lambda p, a: loop.moved(p, a, rows), start, loop.a, has_aux=True)
        outer = None
        if every:
            outer, h = outer_and_grad(end)
            cotangent = jax.tree.map(lambda c, x: c + share * x, cotangent, h)
        cotangent, d_step = pull(cotangent)
        return (cotangent, jax.tree.map(jnp.add, d_sizes, d_step)), outer

    end, (starts, inner_loss) = _scan(step, loop.theta, loop.rows, loop.steps)
    outer, cotangent = None, jax.tree.map(jnp.zeros_like, loop.theta)
    if not every:
        outer, cotangent = outer_and_grad(end)
    start = cotangent, jax.tree.map(jnp.zeros_like, loop.a)
    passed = starts, loop.rows
    (d_params, d_sizes), outers = _scan(step_back, start, passed, loop.steps, reverse=True)
    return d_params, d_sizes, inner_loss, outers if every else outer


def _scan(step, carry, inputs, steps, reverse=False):
    """`jax.lax.scan`, which has no zero steps where compilation is disabled."""
    if steps:
        return jax.lax.scan(step, carry, inputs, steps, reverse)
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
    kinds = jax.eval_shape(step, carry, row)[1]
    return carry, jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), kinds)
