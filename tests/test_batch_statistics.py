"""Query images normalised by other statistics than their own, against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse import gates, nn
from jaxsparse.maml import evaluate, predict

reference = pytest.importorskip("torch_reference")
torch, functional = reference.torch, reference.functional

pytestmark = pytest.mark.usefixtures("quick_programs")
SIZES = (3, 2, 2)  # ways, shots, query shots
STEPS = 3
SGD = optax.sgd(1.0)


def conv4(norm, params, images):
    """The logits of Conv4; `norm(i, x, scale, bias)` is the i-th batch norm."""
    x = images.permute(0, 3, 1, 2)
    for i in range(1, 5):
        x = functional.conv2d(x, params[f"conv{i}/kernel"].permute(3, 2, 0, 1), padding=1)
        x = norm(i, x, params[f"norm{i}/scale"], params[f"norm{i}/bias"])
        x = functional.max_pool2d(torch.relu(x), 2)
    return x.permute(0, 2, 3, 1).flatten(1) @ params["head/kernel"] + params["head/bias"]


class Statistics:
    """PyTorch's batch norms with running statistics, and what they saw last."""

    def __init__(self):
        self.running, self.last = {}, {}

    def train(self, i, x, scale, bias):
        """Normalise by the batch; the first pass sets the running statistics."""
        momentum = 0.1 if i in self.running else 1.0
        self.running.setdefault(i, (x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])))
        self.last[i] = (x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False))
        return functional.batch_norm(
            x, *self.running[i], scale, bias, training=True, momentum=momentum
        )

    def given(self, of, i, x, scale, bias):
        mean, variance, scale, bias = (p[:, None, None] for p in (*of[i], scale, bias))
        return (x - mean) / torch.sqrt(variance + 1e-5) * scale + bias


def torch_query(batch_norm, theta, sizes, task):
    """The query logits, the loss, and its gradient by phi_K, of one task."""
    (support, labels), (query, query_labels) = task
    seen = Statistics()
    phi = {name: leaf.detach().clone() for name, leaf in theta.items()}
    for _ in range(STEPS):
        phi = reference.leaf_copies(phi)
        loss = functional.cross_entropy(conv4(seen.train, phi, support), labels)
        for name, g in reference.gradient(loss, phi, allow_unused=True).items():
            phi[name] = phi[name].detach() - (0 if g is None else sizes[name] * g)
    phi = reference.leaf_copies(phi)
    of = {i: tuple(x.clone() for x in pair) for i, pair in seen.running.items()}
    if batch_norm == "support":
        conv4(seen.train, phi, support)
        of = seen.last
    logits = conv4(functools.partial(seen.given, of), phi, query)
    loss = functional.cross_entropy(logits, query_labels)
    return logits.detach(), loss.item(), reference.gradient(loss, phi, allow_unused=True)


@pytest.fixture(scope="module")
def task():
    ways, shots, query_shots = SIZES

    def batch(key, shots):
        images = jax.random.normal(key, (ways * shots, 16, 16, 1))
        return images, jnp.repeat(jnp.arange(ways), shots)

    keys = jax.random.split(jax.random.key(1), 2)
    return batch(keys[0], shots), batch(keys[1], query_shots)


MODEL = nn.conv4(SIZES[0], 4, (16, 16, 1), blocks="xla")


@pytest.fixture(scope="module")
def setting():
    params = MODEL.init(jax.random.key(0))
    return params, jax.tree.map(lambda x: jnp.full_like(x, 0.1), params)


def stacked(task):
    return jax.tree.map(lambda x: x[None], task)


@pytest.mark.parametrize("batch_norm", ["support", "running"])
def test_query_logits_match_pytorch(batch_norm, task, setting):
    loss_fn = jaxsparse.cross_entropy(MODEL, batch_norm)
    options = {"loss_fn": loss_fn, "inner_steps": STEPS}
    got = predict(*setting, stacked(task), **options)[0]
    metrics = evaluate(*setting, stacked(task), **options)
    theta, sizes = map(reference.to_torch, setting)
    want, loss, _ = torch_query(batch_norm, theta, sizes, reference.batch_to_torch(task))
    np.testing.assert_allclose(got, want, atol=2e-4)
    np.testing.assert_allclose(metrics["loss"][0], loss, rtol=1e-4)


@pytest.mark.parametrize("batch_norm", ["support", "running"])
def test_meta_gradient_matches_pytorch(batch_norm, task, setting):
    """By SGD of rate 1 the change of theta is minus its gradient, to first order."""
    params, _ = setting
    loss_fn, gate = jaxsparse.cross_entropy(MODEL, batch_norm), gates.constant(0.1)
    sgd = jaxsparse.maml(loss_fn, gate, inner_steps=STEPS, theta_optimizer=SGD, mask_optimizer=SGD)
    state = sgd.init(params, jax.random.key(0))
    after, _ = sgd.step(state, stacked(task))
    got = reference.flat(jax.tree.map(jnp.subtract, params, after.params))
    _, _, want = torch_query(
        batch_norm, *map(reference.to_torch, setting), reference.batch_to_torch(task)
    )
    for name, gradient in want.items():
        wanted = 0.0 if gradient is None else gradient.numpy()
        np.testing.assert_allclose(got[name], wanted, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("batch_norm", ["support", "running", "transductive"])
def test_predictions_of_a_query_image_alone(batch_norm, task, setting):
    """Only with the statistics of the query set do they depend on the other query images."""
    options = {"loss_fn": jaxsparse.cross_entropy(MODEL, batch_norm), "inner_steps": STEPS}
    support, (images, labels) = stacked(task)
    others = images.at[:, 1:].multiply(-2.0)
    one, other = (
        predict(*setting, (support, (x, labels)), **options)[:, 0] for x in (images, others)
    )
    far_apart = float(jnp.abs(one - other).max()) > 1e-2
    assert far_apart == (batch_norm == "transductive")
    if batch_norm != "transductive":
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("batch_norm", ["support", "running"])
def test_stored_pixels_give_what_their_normalised_values_give(batch_norm):
    """With images that the model prepares once for all inner steps."""
    model = nn.conv4(2, 16, (16, 16, 1), blocks="auto")
    params = model.init(jax.random.key(0))
    sizes = jax.tree.map(lambda x: jnp.full_like(x, 0.1), params)
    pixels = jax.random.randint(jax.random.key(1), (2, 1, 4, 16, 16, 1), 0, 256, jnp.int32)
    labels = jnp.array([[0, 0, 1, 1]])
    losses = []
    for network, images in (
        (nn.normalised(model, (0.4,), (0.3,)), pixels),
        (model, (pixels.astype(jnp.float32) / 255 - 0.4) / 0.3),
    ):
        tasks = (images[0], labels), (images[1], labels)
        loss_fn = jaxsparse.cross_entropy(network, batch_norm)
        metrics = evaluate(params, sizes, tasks, loss_fn=loss_fn, inner_steps=2)
        losses.append(float(metrics["loss"][0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_errors(task, setting):
    with pytest.raises(ValueError, match=r"batch_norm must be one of .* got 'none'"):
        jaxsparse.cross_entropy(MODEL, "none")
    with pytest.raises(ValueError, match="'support' for a model without `with_moments`"):
        jaxsparse.cross_entropy(nn.mlp(3), "support")
    loss_fn = jaxsparse.cross_entropy(MODEL, "running")
    with pytest.raises(ValueError, match="'running' averages over inner steps, got 0"):
        evaluate(*setting, stacked(task), loss_fn=loss_fn, inner_steps=0)
    with pytest.raises(TypeError, match="loss_fn must be made by cross_entropy"):
        predict(*setting, stacked(task), loss_fn=lambda p, b: jnp.float32(0), inner_steps=1)


@pytest.mark.parametrize("batch_norm", ["support", "running"])
def test_statistics_of_a_support_set_are_refused_on_a_stream(batch_norm):
    model, sgd = nn.conv4(ways=2, width=2, image_shape=(16, 16, 1)), optax.sgd(0.1)
    loss, params = jaxsparse.cross_entropy(model, batch_norm), model.init(jax.random.key(0))
    batch, gate = (jnp.ones((2, 16, 16, 1)), jnp.array([0, 1])), gates.binary(0.1)
    options = {"theta_optimizer": sgd, "mask_optimizer": sgd}
    online = jaxsparse.init_cmaml_state(params, gate, jax.random.key(1), batch=batch, **options)
    glance = jaxsparse.init_lamaml_state(params, gate, jax.random.key(1), mask_optimizer=sgd)
    options |= {"loss_fn": loss, "gate": gate}
    with pytest.raises(ValueError, match="loss_fn: batch_norm must be 'transductive'"):
        jaxsparse.cmaml_step(
            online, batch, jax.random.key(2), inner_steps=1, detection_threshold=None, **options
        )
    with pytest.raises(ValueError, match=f"got '{batch_norm}'"):
        jaxsparse.lamaml_step(glance, batch, None, jax.random.key(2), **options)
