"""The inner loop and its meta-gradient, which all methods share.

``phi_0 = theta,  phi_{k+1} = phi_k - a * g_k,  g_k = grad L_in(phi_k; B_k),  k = 0..K-1``
``h_k = grad L_out(phi_k),  G_k = g_0 + ... + g_{k-1}``
``d theta = mean of h_k,  d a = -mean of h_k * G_k``  (Eqs. 9, 10)

The means are over all iterates phi_1 .. phi_K, or over phi_K alone. The inner loop does not adapt
a parameter whose step size is None.
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

    To first order, the inner gradients are treated as constants: ``phi_K = theta - a * G`` with
    ``G = sum_k grad L(phi_k)``. A cotangent c of phi_K gives ``d theta = c`` and ``d a = -c * G``.
    There is no backpropagation through the loop, and its memory does not grow with K. To second
    order, the loop is differentiated and each step is rematerialised.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      params: theta, any pytree of floating arrays.
      step_sizes: a, a tree shaped like `params` (the output of a gate's `apply`). A scalar leaf is
        shared by the whole tensor. A leaf None keeps its parameter as it is.
      batch: the batch for `loss_fn`, the same at every step.
      steps: K, a Python int; 0 returns `params`.
      second_order: differentiate through the inner gradients.

    Returns:
      The adapted parameters phi_K, and `{"loss": [steps]}` with the loss before each step, as well
      as the metrics of `loss_fn`. No gradient flows through these.

    Raises:
      TypeError: `params` or `step_sizes` has a leaf that is not floating, or `steps` is not an int.
      ValueError: trees or shapes differ, `steps` is negative, or the loss is not a scalar.

    Examples:
      >>> phi, metrics = adapt(lambda w, x: (w - x) ** 2, jnp.array(1.0), jnp.array(0.5), 3.0, 1)
      >>> float(phi)
      3.0

    Source: von Oswald, Zhao et al. 2021, Eqs. 8-10; Finn et al. 2017, Sec. 5.2 (first order).
    """
    check_steps("steps", steps)
    check_step_sizes(step_sizes, params)
    params = jax.tree.map(jnp.asarray, params)
    gradient_at = _inner_gradient(loss_fn, step_sizes, prepared(loss_fn, batch))
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
    """The meta-gradient of the inner loop, with respect to theta and to the step sizes.

    ``d theta = mean of h_k,  d a = -mean of h_k * G_k``, with the symbols of this module's
    docstring. To second order, the loop is differentiated instead.

    Args:
      loss_fn: the inner loss, `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      params: theta.
      step_sizes: a, as in `adapt`.
      batches: B_0 .. B_{K-1}, a tree whose leaves have a leading axis of length K. If `steps` is
        given, a single batch that every step uses.
      outer_loss: `(params, inner) -> (scalar, dict of scalars)`. `inner` is None, or, for the
        "last" iterate, the losses and metrics of the K inner steps, [K, ...] each.
      steps: K, if every step uses the same batch.
      iterates: the outer loss is the mean over "all" phi_1 .. phi_K, or that of the "last".
      second_order: differentiate through the inner gradients.
      inner_clip: clamp each entry of the inner gradients to [-inner_clip, inner_clip].
      gradient_sum: which gradients G_k sums up (first order only): those "before" the inner steps,
        which the steps themselves use, or those "after" them, on the same batches.

    Returns:
      d theta in float32 or wider (second order: in the dtype of theta), d a like `step_sizes`, and
      metrics: the outer "loss" and its metrics, averaged over the iterates, and "inner_loss" [K],
      the loss before each step.

    Examples:
      >>> square = lambda w, x: (w - x) ** 2
      >>> d_params, d_sizes, _ = meta_gradient(
      ...     square, jnp.array(1.0), jnp.array(0.25), 3.0,
      ...     lambda w, inner: (square(w, 5.0), {}), steps=2)
      >>> float(d_params), float(d_sizes)
      (-5.0, -30.0)

    Source: von Oswald, Zhao et al. 2021, Eqs. 9-10.
    """
    check_step_sizes(step_sizes, params)
    batch, rows = (None, batches) if steps is None else (prepared(loss_fn, batches), None)
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
      step_sizes: a tree shaped like `params`. A scalar leaf is shared by the whole tensor. A leaf
        None keeps its parameter as it is.
      gradient: a tree shaped like `params`.

    Returns:
      The new parameters.

    Examples:
      >>> float(gated_step(jnp.array(1.0), jnp.array(0.5), jnp.array(2.0)))
      0.0

    Source: von Oswald, Zhao et al. 2021, Eq. 8.
    """

    def moved(a, p, g):
        if a is None:
            return p
        # Computed in the widest dtype: the gradient may be a float32 sum for float16 parameters.
        wide = common_dtype(p, a, g)
        return (p.astype(wide) - jnp.asarray(a, wide) * g.astype(wide)).astype(p.dtype)

    return jax.tree.map(moved, step_sizes, params, gradient, is_leaf=is_none)


def check_step_sizes(step_sizes: Tree, params: Tree) -> None:
    """Raise unless `params` is a tree of floating arrays and `step_sizes` fits it."""
    check_params("params", params)
    check_floating("step_sizes", step_sizes)
    with contextlib.suppress(ValueError):  # the trees differ, which `check_like` reports
        params = restrict(params, step_sizes)
    check_like("step_sizes", step_sizes, "params", params)


def add_meta_terms(sums: Any, share: float, h: Tree, gradient_sum: Tree) -> Any:
    """Add ``share * h_k`` and ``-share * h_k * G_k`` to the sums (d theta, d a)."""
    # The factor is applied to each term, not to the final sum: without it, XLA on the CPU chooses
    # tiled code that computes these sums several times slower.
    d_params, d_sizes = sums
    d_params = jax.tree.map(lambda d, x: d + share * x.astype(d.dtype), d_params, h)
    h = restrict(h, gradient_sum)
    d_sizes = jax.tree.map(
        lambda d, x, g: d - share * x.astype(d.dtype) * g, d_sizes, h, gradient_sum
    )
    return d_params, d_sizes


def add_gradient(gradient_sum: Tree, gradient: Tree) -> Tree:
    """`gradient_sum` + `gradient`, in the dtypes of the sum."""
    return jax.tree.map(lambda total, g: total + g.astype(total.dtype), gradient_sum, gradient)


def meta_metrics(inner_loss: jax.Array, outer: tuple[jax.Array, Any]) -> dict[str, jax.Array]:
    """The outer loss and its metrics, averaged over the iterates, and the inner losses."""
    loss, metrics = outer
    return jax.tree.map(jnp.mean, {"loss": loss, **metrics}) | {"inner_loss": inner_loss}


def prepared(loss_fn: Callable, batch: Any) -> Any:
    """`batch` with what the loss needs of it whatever its parameters.

    A loss may have a method `prepared(batch)` for it, whose output it takes instead of the batch.
    """
    own = getattr(loss_fn, "prepared", None)
    return batch if own is None else own(batch)


def summed_like(sizes: Tree, d_sizes: Tree) -> Tree:
    """`d_sizes` in the shapes of `sizes`: a shared step size gets the sum over its tensor."""
    return jax.tree.map(
        lambda a, d: (d if a.shape == d.shape else d.sum()).astype(a.dtype), sizes, d_sizes
    )


def zeros_to_sum(tree: Tree) -> Tree:
    """Zeros like `tree`, in float32 or wider: a sum in bfloat16 would lose small gradients."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, sum_dtype(x.dtype)), tree)


class _Loop(NamedTuple):
    """The inputs of the inner loop.

    Attributes:
      gradient_at: (phi, rows) -> ((loss, metrics), gradient of the adapted leaves).
      theta: the initial parameters.
      a: the step sizes.
      rows: the batch of each step, with a leading axis of length K; None if `gradient_at` holds
        one batch for all steps.
      steps: K.
    """

    gradient_at: Callable
    theta: Tree
    a: Tree
    rows: Any
    steps: int

    def moved(self, phi, a, rows):
        """phi after a step with the step sizes a, and the loss and metrics before it."""
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
    """phi_K, G_K and the sums of `visit`, with constant inner gradients.

    After each step, `visit(sums, phi, total, rows) -> (sums, metrics)`.
    """

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

    def add_iterate(sums, phi, total, inner=None):
        outer, h = outer_and_grad(phi, inner)
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
        own, outer = add_iterate(own, phi, total_after if after else total, inner)
    d_params, d_sizes = own
    return d_params, summed_like(loop.a, d_sizes), inner["loss"], outer


def _second_order(loop, outer_and_grad, every):
    """Backpropagation through the steps, written out so that each outer loss is computed once.

    ``c_k = [h_k] + c_{k+1} d phi_{k+1} / d phi_k,  d theta = c_0,  d a = sum_k c_k d phi_k / d a``
    with h_k the gradient of the outer loss at phi_k. Only phi is stored of each inner step; the
    step is recomputed.
    """
    share = 1.0 / loop.steps if every else 1.0

    def step(phi, rows):
        end, metrics = loop.moved(phi, loop.a, rows)
        return end, (phi, metrics)

    def step_back(carry, passed):
        cotangent, d_sizes = carry
        start, rows = passed
        end, pull, _ = jax.vjp(lambda p, a: loop.moved(p, a, rows), start, loop.a, has_aux=True)
        outer = None
        if every:
            outer, h = outer_and_grad(end, None)
            cotangent = jax.tree.map(lambda c, x: c + share * x, cotangent, h)
        cotangent, d_step = pull(cotangent)
        return (cotangent, jax.tree.map(lambda d, x: d + x.astype(d.dtype), d_sizes, d_step)), outer

    end, (starts, inner) = _scan(step, loop.theta, loop.rows, loop.steps)
    outer, cotangent = None, jax.tree.map(jnp.zeros_like, loop.theta)
    if not every:
        outer, cotangent = outer_and_grad(end, inner)
    start = cotangent, zeros_to_sum(loop.a)
    passed = starts, loop.rows
    (d_params, d_sizes), outers = _scan(step_back, start, passed, loop.steps, reverse=True)
    return d_params, summed_like(loop.a, d_sizes), inner["loss"], outers if every else outer


def _scan(step, carry, inputs, steps, reverse=False):
    """`jax.lax.scan`, which fails for 0 steps under `jax.disable_jit`."""
    if steps:
        return jax.lax.scan(step, carry, inputs, steps, reverse)
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
    kinds = jax.eval_shape(step, carry, row)[1]
    return carry, jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), kinds)
