"""The layers of a residual block and their derivatives, against PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import quick_jit
from test_native import check_propagation, compiled, difference
from test_residual import SLOPE, block, block_inputs, draw, with_gradients

from jaxsparse.nn import residual


def torch_layer(x, kernel, scale, bias):
    torch = pytest.importorskip("torch")
    y = torch.nn.functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
    # PyTorch's batch norm may fold the mean into the bias, which gives infinity - infinity.
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0, keepdim=True)
    unit = (y - mean) / torch.sqrt(variance + 1e-5)
    return unit * scale[:, None, None] + bias[:, None, None]


def torch_block(padding, images, *params):
    f = pytest.importorskip("torch").nn.functional
    layers = [params[i : i + 3] for i in range(0, 12, 3)]
    y = f.leaky_relu(torch_layer(images, *layers[0]), SLOPE)
    y = f.leaky_relu(torch_layer(y, *layers[1]), SLOPE)
    y = torch_layer(y, *layers[2]) + torch_layer(images, *layers[3])
    return f.max_pool2d(f.leaky_relu(y, SLOPE), 2, padding=padding)


def to_torch(x, place):
    """An array in float64, with PyTorch's order of axes; argument 0 is the images."""
    turn = (0, 3, 1, 2) if place == 0 else (3, 2, 0, 1)
    array = np.asarray(x, np.float64)
    return pytest.importorskip("torch").tensor(array.transpose(turn) if x.ndim == 4 else array)


def from_torch(tensors):
    turns = [(0, 2, 3, 1)] + [(2, 3, 1, 0)] * len(tensors)
    return [
        x.detach().numpy().transpose(t if x.dim() == 4 else (0,))
        for x, t in zip(tensors, turns, strict=False)
    ]


def torch_derivatives(function, args):
    """The value, the gradient, and the gradient of a function of the gradient."""
    torch = pytest.importorskip("torch")
    leaves = [to_torch(x, i).requires_grad_() for i, x in enumerate(args)]
    out = function(*leaves).permute(0, 2, 3, 1)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    first = torch.autograd.grad((torch.sin(out) * weights).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return [[out.detach().numpy()], from_torch(first), from_torch(second)]


def derivatives(function, args):
    """As `torch_derivatives`, for a JAX function."""
    places = tuple(range(len(args)))

    def scalar(*args):
        out = function(*args)
        return jnp.sum(jnp.sin(out) * jnp.linspace(-1, 2, out.size).reshape(out.shape))

    def slope(*args):
        return sum(jnp.sum(jnp.square(g)) for g in jax.grad(scalar, places)(*args))

    def everything(*args):
        return [function(*args)], jax.grad(scalar, places)(*args), jax.grad(slope, places)(*args)

    return quick_jit(everything)(*args)


FORMS = [pytest.param(form, marks=compiled if form == "native" else ()) for form in residual.FORMS]


def layers():
    """Sizes of kernels and numbers of inputs: only the compiled form depends on few inputs."""
    for form in residual.FORMS:
        for k, inputs in ((1, 3), (3, 3), (1, 5), (3, 5)):
            many = pytest.mark.slow if inputs == 5 else ()
            yield pytest.param(k, inputs, form, marks=compiled if form == "native" else many)


@pytest.mark.parametrize("k, inputs, form", list(layers()))
def test_derivatives_of_layers_match_pytorch(k, inputs, form):
    *args, _ = draw(2, 4, 5, inputs, 6, k)
    layer = partial(residual.conv_norm, slope=SLOPE, form=form)
    leaky = pytest.importorskip("torch").nn.functional.leaky_relu
    want = torch_derivatives(lambda *a: leaky(torch_layer(*a), SLOPE), args)
    check_derivatives(derivatives(layer, args), want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", [0, 1])
def test_derivatives_of_a_block_match_pytorch(padding, form):
    args = block_inputs()
    want = torch_derivatives(partial(torch_block, padding), args)
    check_derivatives(derivatives(partial(block, form, padding), args), want)


def check_derivatives(got, want):
    for ours, theirs, limit in zip(got, want, (1e-5, 1e-4, 1e-3), strict=True):
        assert all(difference(*pair) < limit for pair in zip(ours, theirs, strict=True))


# Arguments of a layer, the gradient last, and a place in each.
PLACES = [(0, (1, 2, 3, 0)), (1, (0, 0, 0, 2)), (2, (1,)), (3, (1,)), (4, (0, 0, 1, 1))]


@pytest.mark.parametrize("k, inputs, form", list(layers()))
def test_nan_and_infinity_propagate_as_in_pytorch(k, inputs, form):
    args = draw(2, 5, 4, inputs, 6, k)
    torch = pytest.importorskip("torch")
    layer = partial(residual.conv_norm, slope=SLOPE, form=form)
    both = quick_jit(partial(with_gradients, layer))

    def in_torch(*args):
        leaves = [to_torch(x, i).requires_grad_() for i, x in enumerate(args[:-1])]
        out = torch.nn.functional.leaky_relu(torch_layer(*leaves), SLOPE)
        out.backward(to_torch(args[-1], 0))
        return [*from_torch([out]), *from_torch([x.grad for x in leaves])]

    check_propagation(both, in_torch, args, PLACES)
