"""Public functions take what a JAX user has at hand, with the same bits.

NumPy arrays in float64 and int64, keys of `jax.random.PRNGKey`, NumPy numbers, and parameters in
any container that JAX knows. The states that steps return keep the container.
"""

import collections
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.core import FrozenDict

import jaxsparse
from jaxsparse import data, gates, metrics, nn, training
from jaxsparse.checks import leaf_names
from jaxsparse.continual import bgd, buffer
from jaxsparse.data import streams, switching
from jaxsparse.maml import predict

pytestmark = pytest.mark.usefixtures("quick_programs")


class Pair(NamedTuple):
    a: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    a: Any
    b: Any


@flax.struct.dataclass
class FlaxStruct:
    a: Any
    b: Any


CONTAINERS = {
    "dict": lambda a, b: {"a": a, "b": b},
    "frozen dict": lambda a, b: FrozenDict({"a": a, "b": b}),
    "ordered dict": lambda a, b: collections.OrderedDict(a=a, b=b),
    "nnx state": lambda a, b: nnx.State({"a": nnx.Param(a), "b": nnx.Param(b)}),
    "dataclass": Registered,
    "flax dataclass": FlaxStruct,
    "named tuple": Pair,
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "nested": lambda a, b: {"x": [FrozenDict({"k": (a,)})], "y": Pair(nnx.Param(b), None)},
}


class Plain:
    """What the tests give to a function; the subclasses give the same in another form."""

    container = "dict"

    def params(self):
        draw = np.random.default_rng(0).normal
        a, b = (jnp.asarray(draw(size=shape), jnp.float32) for shape in ((1, 1, 3, 2), (2,)))
        return CONTAINERS[self.container](*map(self.array, (a, b)))

    def key(self, seed=0):
        return jax.random.key(seed)

    def array(self, x):
        return jnp.asarray(x)

    def number(self, x):
        return x

    def list(self, x):
        return self.array(x)

    def rows(self, *axes, seed=0):
        draw = np.random.default_rng(seed)
        x, y = draw.normal(size=(*axes, 3)).astype(np.float32), draw.integers(2, size=axes)
        return self.array(jnp.asarray(x)), self.array(jnp.asarray(y, jnp.int32))


class OfNumPy(Plain):
    """Float64 and int64, as NumPy makes them; a key as a checkpoint may give it."""

    container = "nnx state"

    def key(self, seed=0):
        return np.asarray(jax.random.PRNGKey(seed))

    def array(self, x):
        wide = {"f": np.float64, "i": np.int64}
        x = np.asarray(x)
        return x.astype(wide.get(x.dtype.kind, x.dtype))

    def number(self, x):
        return (np.int64 if isinstance(x, int) else np.float64)(x)


class LegacyKeys(Plain):
    container = "nested"

    def key(self, seed=0):
        return jax.random.PRNGKey(seed)


class Lists(Plain):
    """Lists of numbers where an array of one axis is asked for."""

    container = "flax dataclass"

    def list(self, x):
        return np.asarray(x).tolist()


def in_container(name):
    return type(name, (Plain,), {"container": name})


def loss_fn(params, rows):
    a, b = jax.tree.leaves(params)
    x, y = rows
    logits = x @ a.reshape(3, 2) + b.reshape(1, 2)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


SGD, ADAM = optax.sgd(0.1), optax.adam(0.01)
BOTH = {"theta_optimizer": SGD, "mask_optimizer": ADAM}
GENERATED = gates.generated(0.1, embedding=3)


def fit(given, state):
    """The state keeps the container of the parameters."""
    want = jax.tree.structure(given.params())
    assert jax.tree.structure(getattr(state.params, "mean", state.params)) == want
    return state


def gate_case(gate):
    def run(given):
        params = given.params()
        mask = gate.init(given.key(), params)
        sizes = gate.apply(mask, given.key(1))
        assert jax.tree.structure(sizes) == jax.tree.structure(params)
        return mask, sizes, list(jaxsparse.sparsity(sizes, params).values())

    return run


def step_case(learner, batch):
    def run(given):
        state = fit(given, learner.init(given.params(), given.key()))
        for seed in (1, 2):
            state, out = learner.step(state, batch(given), given.key(seed))
        return fit(given, state), out

    return run


def stream_batch(given, **more):
    return jaxsparse.StreamBatch(given.rows(4), **more)


def replayed(given):
    weights = given.list(jnp.array([1.0, 0.0]))
    return stream_batch(given, replay=given.rows(2, seed=1), replay_weights=weights)


def remembered(given):
    return stream_batch(given, replay=given.rows(3, 2, seed=1), observed=given.number(2))


def tasks(given):
    return given.rows(2, 4), given.rows(2, 4, seed=1)


def rates(given):
    return jax.tree.map(lambda x: given.array(jnp.full(x.shape, 0.1)), given.params())


def adapt_case(second_order):
    def run(given):
        phi, out = jaxsparse.adapt(
            loss_fn, given.params(), rates(given), given.rows(4), given.number(2),
            second_order=second_order,
        )  # fmt: skip
        assert jax.tree.structure(phi) == jax.tree.structure(given.params())
        return phi, out

    return run


def evaluate_case(given):
    return jaxsparse.evaluate(
        given.params(), rates(given), tasks(given), loss_fn=loss_fn, inner_steps=given.number(1)
    )


CMAML = jaxsparse.cmaml(
    loss_fn,
    GENERATED,
    batch=Plain().rows(4),
    inner_steps=2,
    detection_threshold=0.1,
    capacity=2,
    pairs="one",
    **BOTH,
)
STEPS = {
    "adapt": adapt_case(False),
    "adapt, second order": adapt_case(True),
    "evaluate": evaluate_case,
    "maml": step_case(jaxsparse.maml(loss_fn, GENERATED, inner_steps=1, **BOTH), tasks),
    "lamaml": step_case(
        jaxsparse.lamaml(loss_fn, gates.rectified(0.1), mask_optimizer=SGD), replayed
    ),
    "cmaml": step_case(CMAML, stream_batch),
    "er": step_case(jaxsparse.er(loss_fn, SGD), replayed),
    "gem": step_case(jaxsparse.gem(loss_fn, SGD), remembered),
    "agem": step_case(jaxsparse.agem(loss_fn, SGD), replayed),
    "mer": step_case(
        jaxsparse.mer(loss_fn, learning_rate=0.1, within_batch_rate=0.5, across_batch_rate=0.5),
        lambda given: jaxsparse.StreamBatch(
            given.rows(1),
            replay=given.rows(2, 3, seed=1),
            replay_weights=given.list(jnp.full((2, 3), 0.5)),
        ),
    ),
    "bgd": step_case(jaxsparse.bgd(loss_fn, samples=2), stream_batch),
    "metabgd": step_case(
        jaxsparse.metabgd(loss_fn, learning_rate=1.0, inner_lr=0.1, inner_steps=1, samples=2),
        stream_batch,
    ),
    "frozen maml": step_case(
        jaxsparse.frozen_maml(loss_fn, inner_lr=0.1, inner_steps=2), stream_batch
    ),
}
GATES = {
    "binary": gates.binary(0.1), "init": gates.binary(0.1, init=(-1.0, 1.0)),
    "relu": gates.relu((0.1, 0.2)), "rectified": gates.rectified(0.1), "linear": gates.linear(0.1),
    "per tensor": gates.per_tensor((0.1, 0.2)), "constant": gates.constant(0.1),
    "generated": GENERATED,
}  # fmt: skip
FORMS = {"numpy": OfNumPy, "legacy keys": LegacyKeys}
IN_CONTAINERS = {name: in_container(name) for name in CONTAINERS if name != "dict"}


def leaves(tree):
    """All leaves as NumPy arrays."""

    def plain(x):
        is_key = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return [plain(x) for x in jax.tree.leaves(tree)]


GATE_CASES = {name: gate_case(gate) for name, gate in GATES.items()}
MODEL = nn.mlp(ways=2, hidden=(), image_shape=(1, 1, 3))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(len(x), -1))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(x.reshape(len(x), -1))


def network_case(model, image_shape):
    def run(given):
        params = model.init(given.key())
        a = given.array(jnp.linspace(-1, 1, 4 * int(np.prod(image_shape))))
        images = a.reshape(4, *image_shape)
        values = jax.tree.map(given.array, params)
        forms = [values, FrozenDict(values), nnx.State(values)]
        labels = given.array(jnp.array([0, 1, 1, 0]))
        losses = [jaxsparse.cross_entropy(model)(x, (images, labels)) for x in forms[:1]]
        return params, [model.apply(x, images) for x in forms], losses

    return run


def predictions(given):
    params = jax.tree.map(given.array, MODEL.init(given.key()))
    batch = given.array(jnp.ones((2, 4, 1, 1, 3))), given.array(jnp.zeros((2, 4), jnp.int32))
    sizes = jax.tree.map(lambda x: given.array(jnp.full(x.shape, 0.1)), params)
    loss_fn = jaxsparse.cross_entropy(MODEL)
    return predict(params, sizes, (batch, batch), loss_fn=loss_fn, inner_steps=given.number(1))


def memories(given):
    rows = given.rows(3)
    row = jax.tree.map(lambda x: x[0], rows)
    whole = buffer.init_buffer(row, given.number(2))
    whole = buffer.add(whole, rows, given.key())
    whole = buffer.add(whole, rows, given.key(1), given.array(jnp.array(True)))
    memory = buffer.init_memory(row, given.number(2), given.number(2))
    memory = buffer.write(memory, given.number(1), rows, given.array(jnp.array(True)))
    memory = buffer.write(memory, given.array(jnp.int32(0)), rows)
    drawn = buffer.sample(whole, given.key(2), given.number(2))
    earlier = buffer.sample_earlier(memory, given.number(1), given.key(3), given.number(2))
    return whole, memory, drawn, earlier


def gaussians(given):
    weights = bgd.gaussian(given.params(), given.number(0.1))
    drawn = bgd.sample_params(weights, given.key())
    gradient = bgd.expected_gradient(
        loss_fn, weights, given.rows(4), given.key(), given.number(2)
    )  # fmt: skip
    return weights, drawn, gradient


def few_shot(given):
    images = np.random.default_rng(0).integers(256, size=(9, 2, 2, 1), dtype=np.uint8)
    counts = given.list(jnp.array([4, 5]))
    letters = data.ImageSet(given.array(images), counts, ("a", "b"), (0.5,), (0.5,))
    sizes = map(given.number, (2, 2, 1, 2))
    return data.sample_tasks(given.key(), letters, *sizes)


def labelled(given):
    images = np.random.default_rng(0).integers(256, size=(8, 2, 2, 1), dtype=np.uint8)
    labels = given.array(jnp.arange(8) % 4)
    return data.LabelledSet(given.array(images), labels, (0.0,), (1.0,), 4)


def stream_rows(given):
    train = labelled(given)
    stream = streams.split(train, train, given.number(2))
    drawn = streams.draw_schedule(given.key(), stream, given.number(2), joint=True)
    where = [given.array(x[0]) for x in drawn]
    turned = streams.rotations(train, train, given.number(2), given.number(1))
    return (
        drawn, streams.train_rows(stream, *where), streams.test_rows(stream, given.number(1)),
        streams.test_rows(turned, given.number(1)), streams.hold_out(train, given.number(0.5)),
        streams.permutations(train, train, given.number(2), given.number(1)).pixel_maps,
    )  # fmt: skip


def switching_rows(given):
    one = switching.by_class(labelled(given))
    both = switching.side_by_side({"one": one, "two": one})
    task, batch, info = switching.next_batch(
        given.key(), switching.first_task(given.number(2)), both, shots=given.number(2),
        stay_probability=given.number(0.5), weights=given.list(jnp.array([0.5, 0.5])),
    )  # fmt: skip
    return both, task, batch, info


def matrices(given):
    R, initial = given.list(jnp.array([[0.75, 0.5], [0.5, 0.25]])), given.list(jnp.ones(2))
    out = [
        metrics.retained_accuracy(R), metrics.learning_accuracy(R),
        metrics.backward_transfer_interference(R), metrics.forward_transfer(R, initial),
    ]  # fmt: skip
    return list(map(jnp.asarray, out))  # in float64 for NumPy's matrices


def gates_with_numbers(given):
    half, name = given.number(0.5), leaf_names(given.params())[1]
    of = (
        gates.binary(half, slope=half, initial_sparsity=half),
        gates.linear((given.number(0.1), given.number(0.2))),
        gates.relu(half),
        gates.generated(half, embedding=given.number(2)),
        gates.head_only(half, head=name),
        gates.all_but_head(half, head=name),
        gates.for_part(gates.binary(half), lambda path: path == name),
    )
    return [gate.apply(gate.init(given.key(), given.params()), given.key(1)) for gate in of]


def augmented(given):
    return streams.augment(given.key(), given.array(jnp.ones((2, 8, 8, 3), jnp.uint8)))


def programs(given):
    images = np.zeros((4, 16, 16, 1), np.uint8)
    letters = data.ImageSet(images, np.array([2, 2]), ("a", "b"), (0.0,), (1.0,))
    config = training.FewShotConfig(
        ways=2, shots=1, query_shots=1, width=1, blocks="xla", method="meta-sgd"
    )  # fmt: skip
    program = training.make_program(config, letters.image_shape)
    jax.eval_shape(program.init, given.key())
    return jax.eval_shape(program.tasks, given.key(1), letters).query[1].shape


OTHERS = {
    "masks": lambda given: [
        f(given.array(jnp.linspace(-1.0, 1.0, 5)))
        for f in (jaxsparse.binary_mask, jaxsparse.relu_mask)
    ],
    "gates with numbers": gates_with_numbers,
    "mlp": network_case(MODEL, (1, 1, 3)),
    "from_linen": network_case(nn.from_linen(LinenNet(), (1, 1, 3)), (1, 1, 3)),
    "from_nnx": network_case(nn.from_nnx(Net), (1, 1, 3)),
    "normalised": network_case(nn.normalised(MODEL, (0.0,) * 3, (1.0,) * 3), (1, 1, 3)),
    "predict": predictions,
    "memories": memories,
    "gaussians": gaussians,
    "sample_tasks": few_shot,
    "streams": stream_rows,
    "augment": augmented,
    "switching": switching_rows,
    "metrics": matrices,
    "programs": programs,
}  # fmt: skip


@functools.cache
def wanted(kind, name):
    return leaves({"step": STEPS, "gate": GATE_CASES, "other": OTHERS}[kind][name](Plain()))


def same(got, want):
    got = leaves(got)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype or one.dtype.kind in "iu"  # positions on the host
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STEPS)
def test_steps(name, form):
    same(STEPS[name](FORMS[form]()), wanted("step", name))


@pytest.mark.parametrize("name", ["lamaml", "er", "agem", "mer"])
def test_steps_with_a_list_of_weights(name):
    same(STEPS[name](Lists()), wanted("step", name))


@pytest.mark.parametrize("name", ["sample_tasks", "switching", "metrics"])
def test_lists(name):
    same(OTHERS[name](Lists()), wanted("other", name))


@pytest.mark.parametrize("form", IN_CONTAINERS)
def test_containers(form):
    given = IN_CONTAINERS[form]()
    same(GATE_CASES["init"](given), wanted("gate", "init"))
    same(STEPS["adapt"](given), wanted("step", "adapt"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GATES)
def test_gates(name, form):
    same(GATE_CASES[name](FORMS[form]()), wanted("gate", name))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OTHERS)
def test_others(name, form):
    same(OTHERS[name](FORMS[form]()), wanted("other", name))


def test_python_numbers():
    def square(params, x):
        return (params["w"] - x) ** 2

    phi, out = jaxsparse.adapt(square, {"w": 1.0}, {"w": 0.25}, 3.0, 2)
    assert float(phi["w"]) == 2.5 and out["loss"].tolist() == [4.0, 1.0]
    gate = gates.linear(0.25)
    x = jnp.array([3.0])
    learner = jaxsparse.maml(square, gate, inner_steps=1, theta_optimizer=SGD, mask_optimizer=SGD)
    state, out = learner.step(learner.init({"w": 1.0}, jax.random.key(0)), (x, x), None)
    assert float(out["loss"]) == 1.0 and float(state.params["w"]) == pytest.approx(1.2)
    assert float(jaxsparse.binary_mask(0.0)) == 1.0 and float(jaxsparse.relu_mask(-1.0)) == 0.0
    assert float(jaxsparse.sparsity({"w": 0.0})["total"]) == 1.0


def test_numpy_numbers_in_a_configuration():
    config = training.FewShotConfig(
        ways=np.int64(3), inner_lr=np.float32(0.5), bias=np.bool_(False), method=np.str_("boil"),
        network="resnet12", channels=(np.int32(1),) * 4, task_loop=np.int8(2),
    )  # fmt: skip
    again = training.FewShotConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config and config.inner_lr == 0.5 and config.bias is False


def test_every_public_function_is_here():
    """A new name must be added to one of the tables, or to the types and folders below."""
    used = Path(__file__).read_text("utf-8")
    elsewhere = {
        "load_learner",
        "pretrained",
        "Learner",
        "Gate",
        "MetaState",
        "LaMAMLState",
        "CMAMLState",
    }
    elsewhere |= {"GeneratedMask", "LinearMap", "shared", "body_only"}
    # The learners call these.
    elsewhere |= {"sparse_maml_step", "lamaml_step", "cmaml_step", "init_state"}
    elsewhere |= {"init_lamaml_state", "init_cmaml_state"}
    for name in (*jaxsparse.__all__, *gates.__all__):
        assert name in elsewhere or name in used, name
