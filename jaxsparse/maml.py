"""Meta-learning over a batch of tasks: one meta-step, and evaluation after adaptation."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxsparse.checks import check_leading_axis, check_steps, copy_arrays, is_integer
from jaxsparse.gates import Gate, sparsity
from jaxsparse.inner import adapt, meta_gradient
from jaxsparse.losses import query_loss
from jaxsparse.machine import default_platform
from jaxsparse.precision import float32_by_default
from jaxsparse.updates import apply_gate_per_task, cast, check_gate, init_optimizer, update

Tree = Any
TaskLoop = Literal["auto", "vmap", "scan"] | int


class MetaState(NamedTuple):
    """Everything a meta-step changes.

    Attributes:
      params: theta, the meta-learned initialisation.
      mask: m, the gate's mask parameters.
      theta_opt: the optax state for theta.
      mask_opt: the optax state for m.
      step: int32, the number of meta-steps so far.
      key: the PRNG key that stochastic gates draw from.
    """

    params: Tree
    mask: Tree
    theta_opt: optax.OptState
    mask_opt: optax.OptState
    step: jax.Array
    key: jax.Array


def init_state(
    params: Tree,
    gate: Gate,
    theta_optimizer: optax.GradientTransformation,
    mask_optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> MetaState:
    """The state before the first meta-step: theta as given, m from the gate.

    ``theta_0 = params,  m_0 = gate.init(key, params)``

    Args:
      params: theta, any pytree of floating arrays.
      gate: creates the mask parameters.
      theta_optimizer: an optax transformation for theta.
      mask_optimizer: an optax transformation for m.
      key: a PRNG key.

    Returns:
      A `MetaState`.

    Raises:
      TypeError: `params` has a leaf that is not floating.

    Examples:
      >>> sgd = optax.sgd(0.1)
      >>> state = init_state({"w": jnp.ones(3)}, gates.binary(0.1), sgd, sgd, jax.random.key(0))

    Source: von Oswald, Zhao et al. 2021, Algorithm of Sec. 3.
    """
    mask_key, key = jax.random.split(key)
    params = copy_arrays("params", params)
    check_gate(gate)
    mask = gate.init(mask_key, params)
    return MetaState(
        params,
        mask,
        init_optimizer("theta_optimizer", theta_optimizer, params),
        init_optimizer("mask_optimizer", mask_optimizer, mask),
        jnp.zeros((), jnp.int32),
        key,
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "loss_fn",
        "gate",
        "inner_steps",
        "theta_optimizer",
        "mask_optimizer",
        "second_order",
        "task_loop",
        "mesh",
    ),
)
@float32_by_default
def sparse_maml_step(
    state: MetaState,
    tasks: Any,
    *,
    loss_fn: Callable,
    gate: Gate,
    inner_steps: int,
    theta_optimizer: optax.GradientTransformation,
    mask_optimizer: optax.GradientTransformation,
    second_order: bool = False,
    task_loop: TaskLoop = "auto",
    mesh: Mesh | None = None,
) -> tuple[MetaState, dict[str, jax.Array]]:
    """One meta-step of gated MAML: adapt to each task, then update theta and m on the query losses.

    ``J(theta, m) = 1/T sum_t L(phi_K(theta, gate(m); support_t), query_t)``

    The optimisers of theta and m get ``dJ/d theta`` and ``dJ/dm``, to first order by default (see
    `adapt`).

    The step is jitted. It compiles once for the same functions and shapes, so create `loss_fn`,
    `gate` and the optimisers once, outside the training loop. Matrix products are float32. For
    faster ones on a GPU, call it under `jax.default_matmul_precision("tensorfloat32")`.

    Args:
      state: a `MetaState`; its arrays are not donated.
      tasks: `Task(support, query)` (any pair), every leaf with a leading task axis [T, ...].
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      gate: computes step sizes from the mask parameters; a stochastic gate does so for each task.
      inner_steps: K, the number of inner steps on the support batch.
      theta_optimizer: the optax transformation for theta, the same as in `init_state`.
      mask_optimizer: the optax transformation for m, the same as in `init_state`.
      second_order: differentiate through the inner gradients.
      task_loop: "vmap" adapts to all tasks in parallel. "scan" adapts to one task after the other,
        so that the activations of a task fit the CPU's caches. A number n adapts to n tasks in
        parallel, one such group after the other: temporary memory is that of n tasks. "auto" is
        "scan" on the CPU, else "vmap". With a mesh, it is the loop over the tasks of a device.
      mesh: devices to divide the tasks among; their number must divide T. Everything else is
        replicated. The result does not change (with "scan" on the CPU, not by a single bit). To
        use all CPU cores, first call `jax.config.update("jax_num_cpu_devices", n)`: one task per
        core is faster than dividing small operations among the cores.

    Returns:
      The new state, and metrics: the mean query "loss" (and `loss_fn`'s metrics), "inner_loss"
      [K] (the mean support loss before each inner step), "sparsity" of the step sizes used.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> gate, adam = gates.binary(inner_lr=0.1), optax.adam(1e-3)
      >>> state = init_state(jnp.zeros(2), gate, adam, adam, jax.random.key(0))
      >>> tasks = jnp.ones((3, 2)), jnp.ones((3, 2))  # support and query of three tasks
      >>> state, metrics = sparse_maml_step(
      ...     state, tasks, loss_fn=lambda w, x: jnp.sum((w - x) ** 2), gate=gate, inner_steps=5,
      ...     theta_optimizer=adam, mask_optimizer=adam)
      >>> int(state.step)
      1

    Source: von Oswald, Zhao et al. 2021, Eqs. 8-10.
    """
    check_steps("inner_steps", inner_steps)
    tasks = _pair(tasks)
    count = check_leading_axis("tasks", tasks)
    key, gate_key = jax.random.split(state.key)
    step_sizes, gate_vjp = jax.vjp(
        lambda m: apply_gate_per_task(gate, m, gate_key, count), state.mask
    )

    def task_gradients(params, sizes, task):
        return meta_gradient(
            loss_fn,
            params,
            sizes,
            task[0],
            lambda phi, inner: query_loss(loss_fn, phi, task, inner),
            steps=inner_steps,
            second_order=second_order,
        )

    over_tasks = _over_tasks(task_gradients, count, gate.stochastic, task_loop, mesh)
    d_params, d_sizes, metrics = over_tasks(state.params, step_sizes, tasks)
    d_params, metrics = jax.tree.map(lambda x: x.mean(0), (d_params, metrics))
    # A stochastic gate has step sizes per task; its VJP sums over the tasks.
    d_sizes = jax.tree.map(lambda x: x / count if gate.stochastic else x.mean(0), d_sizes)
    d_params = cast(d_params, state.params)
    params, theta_opt = update(
        "theta_optimizer", theta_optimizer, d_params, state.theta_opt, state.params
    )
    mask, mask_opt = state.mask, state.mask_opt
    if gate.trained:
        (d_mask,) = gate_vjp(d_sizes)
        mask, mask_opt = update("mask_optimizer", mask_optimizer, d_mask, mask_opt, mask)
    metrics["sparsity"] = _sparsity(step_sizes, state.params, gate.stochastic)
    return MetaState(params, mask, theta_opt, mask_opt, state.step + 1, key), metrics


@functools.partial(
    jax.jit, static_argnames=("loss_fn", "inner_steps", "task_loop", "step_sizes_per_task", "mesh")
)
@float32_by_default
def evaluate(
    params: Tree,
    step_sizes: Tree,
    tasks: Any,
    *,
    loss_fn: Callable,
    inner_steps: int,
    step_sizes_per_task: bool = False,
    task_loop: TaskLoop = "auto",
    mesh: Mesh | None = None,
) -> dict[str, jax.Array]:
    """Adapt to each task's support batch and evaluate on its query batch.

    ``L(phi_K(theta, a; support_t), query_t)`` for each task t. Jitted, with the same matrix
    precision as `sparse_maml_step`.

    Args:
      params: theta.
      step_sizes: a, the output of the gate's `apply`.
      tasks: `Task(support, query)` (any pair), every leaf with a leading task axis [T, ...].
      loss_fn: `(params, batch) -> scalar`, or `-> (scalar, dict of scalars)`.
      inner_steps: K, the number of inner steps on the support batch.
      step_sizes_per_task: True if the leaves of `step_sizes` have a leading task axis, as those of
        a stochastic gate that was applied once per task.
      task_loop: as in `sparse_maml_step`.
      mesh: as in `sparse_maml_step`.

    Returns:
      Metrics per task: the query "loss" [T], `loss_fn`'s metrics [T], and "inner_loss" [T, K].

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> tasks = jnp.ones((3, 2)), jnp.ones((3, 2))  # support and query of three tasks
      >>> metrics = evaluate(
      ...     jnp.zeros(2), jnp.full(2, 0.5), tasks, inner_steps=1,
      ...     loss_fn=lambda w, x: jnp.sum((w - x) ** 2))
      >>> metrics["loss"].shape
      (3,)

    Source: von Oswald, Zhao et al. 2021, Sec. 4.
    """

    def measure(phi, task, inner):
        loss, metrics = query_loss(loss_fn, phi, task, inner)
        return {"loss": loss, **metrics, "inner_loss": inner["loss"]}

    options = inner_steps, step_sizes_per_task, task_loop, mesh
    return _after_adaptation(measure, loss_fn, params, step_sizes, tasks, *options)


@functools.partial(
    jax.jit, static_argnames=("loss_fn", "inner_steps", "task_loop", "step_sizes_per_task", "mesh")
)
@float32_by_default
def predict(
    params: Tree,
    step_sizes: Tree,
    tasks: Any,
    *,
    loss_fn: Callable,
    inner_steps: int,
    step_sizes_per_task: bool = False,
    task_loop: TaskLoop = "auto",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Adapt to each task's support batch and return the logits of its query batch.

    ``f(query_t; phi_K(theta, a; support_t))`` for each task t.

    Args:
      params: theta.
      step_sizes: a, the output of the gate's `apply`.
      tasks: `Task(support, query)` (any pair), every leaf with a leading task axis [T, ...].
      loss_fn: a loss made by `cross_entropy`.
      inner_steps: K, the number of inner steps on the support batch.
      step_sizes_per_task: as in `evaluate`.
      task_loop: as in `sparse_maml_step`.
      mesh: as in `sparse_maml_step`.

    Returns:
      Logits [T, n, ways].

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit; the message names the argument.

    Examples:
      >>> model = jaxsparse.nn.mlp(ways=2, hidden=(), image_shape=(1, 1, 3))
      >>> params, images = model.init(jax.random.key(0)), jnp.ones((4, 5, 1, 1, 3))
      >>> batch = images, jnp.zeros((4, 5), jnp.int32)
      >>> sizes = jax.tree.map(lambda x: jnp.float32(0.1), params)
      >>> predict(params, sizes, (batch, batch), loss_fn=jaxsparse.cross_entropy(model),
      ...     inner_steps=1).shape
      (4, 5, 2)

    Source: von Oswald, Zhao et al. 2021, Sec. 4; Table S1 averages such predictions.
    """
    logits = getattr(loss_fn, "logits", None)
    if logits is None:
        raise TypeError(f"loss_fn must be made by cross_entropy, got {loss_fn!r}")
    options = inner_steps, step_sizes_per_task, task_loop, mesh
    return _after_adaptation(logits, loss_fn, params, step_sizes, tasks, *options)


def _after_adaptation(
    measure, loss_fn, params, step_sizes, tasks, inner_steps, per_task, task_loop, mesh
):
    """`measure(phi_K, task, metrics of the inner steps)` of every task, stacked."""
    check_steps("inner_steps", inner_steps)
    tasks = _pair(tasks)
    count = check_leading_axis("tasks", tasks)
    if per_task and (own := check_leading_axis("step_sizes", step_sizes)) != count:
        raise ValueError(f"step_sizes has {own} tasks, want those of `tasks`, {count}")

    def one_task(params, sizes, task):
        phi, inner = adapt(loss_fn, params, sizes, task[0], inner_steps)
        return measure(phi, task, inner)

    return _over_tasks(one_task, count, per_task, task_loop, mesh)(params, step_sizes, tasks)


def _pair(tasks):
    if not isinstance(tasks, tuple | list) or len(tasks) != 2:
        got = jax.tree.structure(tasks)
        raise TypeError(f"tasks must be a pair (support, query), got {got}")
    return tuple(tasks)


def _sparsity(step_sizes, params, per_task):
    """The total sparsity; with step sizes per task, over the parameters of all tasks."""
    if per_task:
        tasks = len(jax.tree.leaves(step_sizes)[0])
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct((tasks, *x.shape), x.dtype), params)
    return sparsity(step_sizes, params)["total"]


def _over_tasks(function, count, per_task, task_loop, mesh):
    """`(params, step_sizes, tasks) ->` the results of `function` for all tasks, stacked."""
    together = _together(task_loop, mesh, count)

    def stacked(params, step_sizes, tasks):
        own = len(jax.tree.leaves(tasks)[0])  # fewer than `count` on each device of a mesh
        if together and together >= own:
            return jax.vmap(function, (None, 0 if per_task else None, 0))(params, step_sizes, tasks)
        mapped = functools.partial(jax.lax.map, batch_size=together)
        if per_task:
            return mapped(lambda pair: function(params, *pair), (step_sizes, tasks))
        return mapped(lambda task: function(params, step_sizes, task), tasks)

    if mesh is None:
        return stacked
    if count % mesh.size:
        raise ValueError(f"mesh: got {mesh.size} devices, want a number that divides {count} tasks")
    axes = mesh.axis_names

    def gathered(*args):
        # Gather instead of psum: the order of the sum over tasks, and so its rounding, then does
        # not depend on the number of devices.
        gather = functools.partial(jax.lax.all_gather, axis_name=axes, tiled=True)
        return jax.tree.map(gather, stacked(*args))

    split = PartitionSpec(axes)
    specs = (PartitionSpec(), split if per_task else PartitionSpec(), split)
    return jax.shard_map(
        gathered, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
    )


def _together(task_loop: TaskLoop, mesh: Mesh | None, count: int) -> int | None:
    """The number of tasks that each device adapts to in parallel; None: one after the other."""
    if is_integer(task_loop) and task_loop >= 1:
        return int(task_loop) if task_loop > 1 else None
    if task_loop not in ("auto", "vmap", "scan"):
        raise ValueError(
            f"task_loop must be 'auto', 'vmap', 'scan' or a number of tasks, got {task_loop!r}"
        )
    platform = default_platform() if mesh is None else mesh.devices.flat[0].platform
    in_turn = task_loop == "scan" or (task_loop == "auto" and platform == "cpu")
    return None if in_turn else count
