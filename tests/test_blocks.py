"""What computes Conv4's blocks: it is reported, and chosen once, not during tracing."""

import json
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_fewshot
import test_online
from problems import quick_jit

import jaxsparse
from experiments import fewshot, online
from jaxsparse import data, gates, nn
from jaxsparse.continual import task_gradients
from jaxsparse.maml import _together
from jaxsparse.nn import blocks, native
from jaxsparse.training.online import OnlineConfig
from jaxsparse.training.online.pretrain import _record

flags, images, no_signal_handlers, small_network = (
    test_fewshot.flags,
    test_fewshot.images,
    test_fewshot.no_signal_handlers,
    test_fewshot.small_network,
)
REASON = "there is no C++ compiler"
REFUSED = f"blocks: 'native' is not available because {REASON}"


@pytest.fixture
def compiler(monkeypatch):
    """`compiler(False)`: a machine without one."""

    def there(whether):
        monkeypatch.setattr(native, "why_not", lambda: None if whether else REASON)

    return there


def test_auto_is_native_where_there_is_a_compiler(compiler, caplog):
    compiler(True)
    assert [blocks.choose_blocks(x) for x in blocks.BLOCKS] == ["native", "native", "pallas", "xla"]
    compiler(False)
    assert [blocks.choose_blocks(x) for x in ("auto", "auto", "xla")] == ["xla"] * 3
    assert caplog.text.count(f"because {REASON}") <= 1  # once in a process
    with pytest.raises(ValueError, match=f"^{re.escape(REFUSED)}$"):
        nn.conv4(blocks="native")
    with pytest.raises(ValueError, match=r"^blocks: got 'C', want one of"):
        nn.conv4(blocks="C")


def test_the_default_device_decides_not_the_default_backend(compiler, monkeypatch):
    """As on a machine with a GPU."""
    compiler(True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    loss_fn = jaxsparse.cross_entropy(nn.mlp(3, (4,), (2, 2, 1)))
    params = nn.mlp(3, (4,), (2, 2, 1)).init(jax.random.key(0))
    memory = jnp.ones((2, 10**6, 2, 2, 1)), jnp.zeros((2, 10**6), jnp.int32)

    def rows_at_a_time():
        return task_gradients._piece(loss_fn, params, memory, 10**6)

    for capability, own in (
        ("9.0", "pallas"),
        ("10.3", "pallas"),
        ("7.5", "xla"),
        ("gfx90a", "xla"),
    ):
        gpu = SimpleNamespace(compute_capability=capability)
        with monkeypatch.context() as patch:
            patch.setattr(jax, "devices", lambda platform, gpu=gpu: [gpu])
            assert blocks.choose_blocks("auto") == own
    with pytest.raises(
        ValueError, match="'native' is not available because the default device is a gpu"
    ):
        blocks.choose_blocks("native")
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "has_kernels", lambda: False)  # of a later JAX
        with pytest.raises(ValueError, match="'pallas' is not available because JAX has no Pallas"):
            blocks.choose_blocks("pallas")
    assert _together("auto", None, 5) == 5 and rows_at_a_time() == 10**6
    for device in (jax.devices("cpu")[0], "cpu"):
        with jax.default_device(device):
            assert blocks.choose_blocks("auto") == "native"
            assert _together("auto", None, 5) is None and rows_at_a_time() < 10**6


def test_blocks_are_chosen_when_the_network_is_made(compiler):
    compiler(False)
    model = nn.conv4(3, 2, (16, 16, 1))
    compiler(True)
    params, pixels = model.init(jax.random.key(0)), jnp.ones((2, 16, 16, 1))
    assert "ffi_call" not in str(jax.make_jaxpr(model.apply)(params, pixels))


def meta_step():
    """A meta-step of a small Conv4 as a function of theta and the tasks, and its arguments."""
    model, gate, tx = nn.conv4(3, 9, (16, 16, 1), blocks="xla"), gates.binary(0.1), optax.sgd(0.1)
    key = jax.random.key(0)
    params = model.init(key)
    state = jaxsparse.init_state(params, gate, tx, tx, key)
    pixels = jax.random.normal(key, (2, 6, 16, 16, 1))
    rows = pixels, jnp.tile(jnp.arange(6, dtype=jnp.int32) % 3, (2, 1))
    step = partial(
        jaxsparse.sparse_maml_step, loss_fn=jaxsparse.cross_entropy(model), gate=gate,
        inner_steps=1, theta_optimizer=tx, mask_optimizer=tx,
    )  # fmt: skip

    def loss(params, tasks):
        return step(state._replace(params=params), tasks)[1]["loss"]

    return loss, (params, data.Task(rows, rows))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda loss: loss, id="step"),
        pytest.param(jax.grad, id="gradient", marks=pytest.mark.slow),
    ],
)
def test_a_meta_step_is_exported_for_other_platforms(change):
    loss, args = meta_step()
    function = jax.jit(change(loss))

    def exported(*platforms):
        return jax.export.export(function, platforms=platforms)(*args)

    def products(program):
        return program.mlir_module().count("dot_general")

    # Each has its own form: the CPU's of the first layer has more products.
    assert products(exported("cuda")) < products(exported("cpu"))
    assert exported("cpu", "cuda").platforms == ("cpu", "cuda")


@pytest.mark.slow
def test_a_step_exported_for_several_platforms_gives_the_same():
    loss, args = meta_step()
    program = jax.export.export(jax.jit(loss), platforms=["cpu", "cuda"])(*args)
    got, want = quick_jit(program.call)(*args), quick_jit(loss)(*args)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 40, 40, 3), (2, 8, 8, 1)])
def test_xla_is_on_this_cpu_the_fastest_form_to_the_bit(shape):
    kernel = jax.random.normal(jax.random.key(1), (3, 3, shape[-1], 12))
    args = jax.random.normal(jax.random.key(0), shape), kernel, jnp.ones(12), jnp.zeros(12)
    (fast,) = {"winograd", "gram"} & {blocks.ops.fastest_on_cpu(shape, kernel.shape)}

    def gradients(form):
        def total(*args):
            return jnp.sum(jnp.sin(blocks.conv_norm_pool(*args, form=form)))

        return jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))(*args)

    jax.tree.map(np.testing.assert_array_equal, gradients("xla"), gradients(fast))


# ---- runs


def test_a_run_prints_and_stores_its_blocks(flags, small_network, tmp_path, capsys):
    fewshot.main([*flags, "--blocks=xla"])
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert record["config"]["blocks"] == record["environment"]["blocks"] == "xla"
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "convolution blocks: xla (XLA's operations)"


@pytest.mark.parametrize("begun", ["native", "C++", "xla", "XLA"])
@pytest.mark.slow
def test_a_run_resumed_with_other_blocks_warns_in_one_line(
    begun, flags, small_network, compiler, tmp_path, capsys
):
    """Also if it was started by an earlier version, without this setting and with other names."""
    compiler(True)
    fewshot.main(flags)
    run = tmp_path / "run"
    test_fewshot.unfinished(run)
    record = json.loads((run / "config.json").read_text())
    assert record["environment"]["blocks"] == "native"
    del record["config"]["blocks"]
    record["environment"]["blocks"] = begun
    (run / "config.json").write_text(json.dumps(record))
    compiler(False)
    capsys.readouterr()
    fewshot.main([f"--resume={run}"])
    lines = [x for x in capsys.readouterr().err.splitlines() if "is resumed with" in x]
    other = begun in ("native", "C++")
    assert len(lines) == other
    assert all("is resumed with blocks xla (started with native): its numbers" in x for x in lines)


def test_native_without_a_compiler_is_refused(flags, compiler, tmp_path, capsys):
    compiler(True)
    settings = [*flags, "--blocks=native"]
    for command in (fewshot.main, online.main):
        own = settings if command is fewshot.main else ["--data=glyphs", "--blocks=native"]
        compiler(False)
        with pytest.raises(SystemExit) as stop:
            command([*own, f"--out={tmp_path}/new"])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"error: {REFUSED}\n"
    assert not (tmp_path / "new").exists()


def test_a_native_run_does_not_resume_without_a_compiler(
    flags, small_network, compiler, tmp_path, capsys
):
    compiler(True)
    fewshot.main([*flags, "--blocks=native"])
    run = tmp_path / "run"
    test_fewshot.unfinished(run)
    compiler(False)
    capsys.readouterr()
    assert test_fewshot.refused(capsys, [f"--resume={run}"]) == f"error: {REFUSED}"


def test_pretraining_is_shared_only_where_the_machine_chooses():
    configs = [OnlineConfig(method="maml", blocks=x) for x in blocks.BLOCKS]
    records = [_record(config, test_online.DATA) for config in configs]
    assert ["blocks" in record for record in records] == [False, True, True, True]


@pytest.mark.skipif(not native.available(), reason="there is no C++ compiler")
def test_a_network_with_compiled_blocks_runs_on_other_platforms():
    """Lowered for a GPU, it has no C++; lowered for the CPU, no convolution of XLA's."""
    model = nn.conv4(3, 9, (16, 16, 1), blocks="native")
    params, pixels = model.init(jax.random.key(0)), jnp.ones((2, 16, 16, 1))

    def lowered(platform):
        gradient = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, pixels))))
        return gradient.trace(params).lower(lowering_platforms=(platform,)).as_text()

    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("gpu",), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh):  # JAX 0.12 asks for the GPU
        on_gpu = lowered("cuda")
    on_cpu = lowered("cpu")
    assert "stablehlo.convolution" in on_gpu and "@jaxsparse_" not in on_gpu
    assert "stablehlo.convolution" not in on_cpu and "@jaxsparse_" in on_cpu
