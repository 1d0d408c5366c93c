"""Gated MAML, written again in PyTorch, from the equations alone.

Trees are flat dicts `{name: tensor}`, in the (JAX) layout of the parameters and in float64. The
meta-gradient is written out, not derived: `d theta = c`, `d step = -c * sum_k grad L_in(phi_k)`.
"""

import jax
import numpy as np
import pytest

from jaxsparse.checks import leaves_by_name

torch = pytest.importorskip("torch")
functional = torch.nn.functional


def flat(tree):
    """A pytree as `{name: NumPy array}`."""
    return {name: np.asarray(leaf) for name, leaf in leaves_by_name(tree).items()}


def to_torch(tree):
    """A pytree as `{name: float64 tensor}`."""
    return {name: torch.tensor(leaf.astype(np.float64)) for name, leaf in flat(tree).items()}


def batch_to_torch(batch):
    """Arrays as tensors: floating ones float64, labels int64; the structure is kept."""
    return jax.tree.map(
        lambda x: torch.tensor(np.asarray(x, np.float64 if x.dtype.kind == "f" else np.int64)),
        jax.tree.map(np.asarray, batch),
    )


def mlp_loss(params, batch):
    inputs, labels = batch
    hidden = torch.tanh(inputs @ params["hidden/w"] + params["hidden/b"])
    return functional.cross_entropy(hidden @ params["head/w"] + params["head/b"], labels)


def conv4_loss(params, batch):
    images, labels = batch
    x = images.permute(0, 3, 1, 2)
    for i in range(1, 5):
        kernel = params[f"conv{i}/kernel"].permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, params.get(f"conv{i}/bias"), padding=1)
        gain, bias = params[f"norm{i}/scale"], params[f"norm{i}/bias"]
        x = functional.batch_norm(x, None, None, gain, bias, training=True, eps=1e-5)
        x = functional.max_pool2d(torch.relu(x), 2)
    x = x.permute(0, 2, 3, 1).flatten(1)
    logits = x @ params["head/kernel"] + params.get("head/bias", 0)
    return functional.cross_entropy(logits, labels)


def gradient(loss, tree, **options):
    return dict(zip(tree, torch.autograd.grad(loss, list(tree.values()), **options), strict=True))


def leaf_copies(tree):
    return {name: leaf.detach().clone().requires_grad_() for name, leaf in tree.items()}


def adapt(loss_fn, theta, sizes, batch, steps):
    """K gated steps with constant gradients: phi_K, the sum of the gradients, the losses."""
    phi = {name: leaf.detach().clone() for name, leaf in theta.items()}
    total = {name: torch.zeros_like(leaf) for name, leaf in theta.items()}
    losses = []
    for _ in range(steps):
        phi = leaf_copies(phi)
        loss = loss_fn(phi, batch)
        losses.append(loss.item())
        for name, g in gradient(loss, phi).items():
            total[name] = total[name] + g
            phi[name] = phi[name].detach() - sizes[name] * g
    return phi, total, losses


def first_order(loss_fn, theta, sizes, task, steps):
    """The query loss of one task, its d theta and its d step sizes."""
    support, query = task
    phi, total, _ = adapt(loss_fn, theta, sizes, support, steps)
    phi = leaf_copies(phi)
    loss = loss_fn(phi, query)
    c = gradient(loss, phi)
    return loss.item(), c, {name: -c[name] * total[name] for name in c}


def second_order(loss_fn, theta, sizes, task, steps):
    """As `first_order`, differentiating through the inner gradients."""
    support, query = task
    theta, sizes = leaf_copies(theta), leaf_copies(sizes)
    phi = dict(theta)
    for _ in range(steps):
        g = gradient(loss_fn(phi, support), phi, create_graph=True)
        phi = {name: phi[name] - sizes[name] * g[name] for name in phi}
    loss = loss_fn(phi, query)
    both = gradient(
        loss,
        {("theta", n): x for n, x in theta.items()} | {("size", n): x for n, x in sizes.items()},
    )
    d_theta, d_sizes = (
        {n: g for (k, n), g in both.items() if k == kind} for kind in ("theta", "size")
    )
    return loss.item(), d_theta, d_sizes


# gate: (step sizes of m, the factor from d step to dm); alpha is the inner rate
ELEMENTWISE = {
    "binary": (lambda m, alpha: alpha * (m >= 0).double(), lambda m, alpha: alpha),
    "half_slope": (lambda m, alpha: alpha * (m >= 0).double(), lambda m, alpha: 0.5 * alpha),
    "relu": (lambda m, alpha: m.clamp(min=0), lambda m, alpha: 1.0),
    "rectified": (lambda m, alpha: m.clamp(min=0), lambda m, alpha: (m > 0).double()),
    "linear": (lambda m, alpha: m, lambda m, alpha: 1.0),
    "constant": (lambda m, alpha: m, lambda m, alpha: 0.0),
}


class ElementwiseGate:
    """A gate whose mask has the shape of the parameters."""

    def __init__(self, kind, mask, alpha):
        self.value, self.factor = ELEMENTWISE[kind]
        self.mask, self.alpha = to_torch(mask), alpha

    def sizes(self, task):
        return {name: self.value(m, self.alpha) for name, m in self.mask.items()}

    def pull_back(self, task, d_sizes):
        return {name: d_sizes[name] * self.factor(m, self.alpha) for name, m in self.mask.items()}


class GeneratedGate:
    """sparse-MAML+: scores `A (z * sigma + mu) + b` of the convolutions, m elsewhere."""

    def __init__(self, mask, alpha):
        self.mask, self.alpha = to_torch(mask), alpha
        self.codes = []  # one z per task, set before each step

    def scores(self, task, mask):
        code = self.codes[task] * mask["sigma"] + mask["mu"]
        scores = {}
        for name, m in mask.items():
            if name.endswith("/weight"):
                name = name.removesuffix("/weight")
                flat_score = m.reshape(len(code), -1).T @ code
                score = flat_score.reshape(m.shape[1:]) + mask[name + "/bias"]
            elif name in ("mu", "sigma") or name.removesuffix("bias") + "weight" in mask:
                continue
            else:
                score = m
            scores[name.removeprefix("maps/")] = score
        return scores

    def sizes(self, task):
        return {n: self.alpha * (s >= 0).double() for n, s in self.scores(task, self.mask).items()}

    def pull_back(self, task, d_sizes):
        mask = leaf_copies(self.mask)
        scores = self.scores(task, mask)
        cotangents = [self.alpha * d_sizes[name] for name in scores]
        return gradient(list(scores.values()), mask, grad_outputs=cotangents)


class MetaLearner:
    """theta and a gate's mask, each under a torch optimiser."""

    def __init__(self, loss_fn, params, gate, make_theta_optimizer, make_mask_optimizer):
        self.loss_fn, self.theta, self.gate = loss_fn, to_torch(params), gate
        self.theta_optimizer = make_theta_optimizer(list(self.theta.values()))
        self.mask_optimizer = make_mask_optimizer(list(gate.mask.values()))

    def step(self, tasks, steps, order=first_order):
        """One meta-step on a list of (support, query); the mean of the query losses."""
        losses = []
        for tensor in (*self.theta.values(), *self.gate.mask.values()):
            tensor.grad = torch.zeros_like(tensor)
        for i, task in enumerate(tasks):
            sizes = self.gate.sizes(i)
            loss, d_theta, d_sizes = order(self.loss_fn, self.theta, sizes, task, steps)
            losses.append(loss)
            for tree, d_tree in (
                (self.theta, d_theta),
                (self.gate.mask, self.gate.pull_back(i, d_sizes)),
            ):
                for name, tensor in tree.items():
                    tensor.grad += d_tree[name] / len(tasks)
        self.theta_optimizer.step()
        self.mask_optimizer.step()
        return sum(losses) / len(losses)
