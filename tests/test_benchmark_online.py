"""The benchmark of online learning: both sides learn the same, and a mismatch is not timed."""

import dataclasses
import functools
import json

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.nn import functional

from benchmarks import harness, machine, online, ours_online, torch_base, torch_online
from jaxsparse import nn

FLAGS = online.Flags(width=4, inner_steps=2, stored=5)
QUICK = {"xla_backend_optimization_level": 0}


def narrow(method, **changes):
    """Our side, with the sizes of the check."""
    config = dataclasses.replace(online.make_config(method, FLAGS), **changes)
    ours = ours_online.Ours(config, [ours_online.draw(config)], QUICK)
    ours.compile()
    return ours


def perceptron(params, images):
    """A network without convolutions."""
    x = functional.linear(images.flatten(1), params["dense1/kernel"], params["dense1/bias"])
    return functional.linear(functional.relu(x), params["head/kernel"], params["head/bias"])


@pytest.fixture
def small_network(monkeypatch):
    """A network that compiles quickly, on both sides."""
    monkeypatch.setattr(nn, "conv4", lambda ways, width, shape, **_: nn.mlp(ways, (width,), shape))
    monkeypatch.setattr(torch_online, "conv4_logits", perceptron)


compiled_once = functools.cache(narrow)  # for tests with the small network only


def assert_alike(ours):
    errors = online.check_narrow(ours)
    assert set(errors) == {"loop", "channels_last"}
    for of in errors.values():
        assert set(of) == {
            *("loss", "adapted_loss", "phi", "change of phi"),
            *("gradient of theta", "gradient of mask"),
        }
        assert max(of.values()) < 5e-5, errors


@pytest.mark.slow
def test_conv4_learns_the_same_on_both_sides():
    """In both layouts: a timestep that continues from phi, and an update from five batches."""
    assert_alike(narrow("sparse-cmaml"))


@pytest.mark.parametrize("method", ["sparse-cmaml", pytest.param("cmaml", marks=pytest.mark.slow)])
def test_both_methods_learn_the_same_on_both_sides(method, small_network):
    assert_alike(compiled_once(method))


@pytest.mark.parametrize("method", ["sparse-cmaml", pytest.param("cmaml", marks=pytest.mark.slow)])
def test_detection_and_restart_are_the_same_on_both_sides(method, small_network):
    """Losses that fall at every timestep: detections, updates from one batch, restarts."""
    ours = narrow(method, detection_threshold=1e-3, inner_lr=0.05)
    start = ours_online.draw(ours.config)
    seen = ours.learn(4)
    assert all(np.subtract(seen["loss"], seen["adapted_loss"]) > 1e-3)
    for peer in online.make_peers(ours.config, start):
        got = peer.learn(4)
        for name, values in seen.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-4)
        for name, x in ours.phi_now().items():
            np.testing.assert_allclose(peer.phi_now()[name], x, rtol=1e-3, atol=1e-5)


def longer_steps(monkeypatch):
    own = torch_online.Loop._step_size
    monkeypatch.setattr(torch_online.Loop, "_step_size", lambda self, m: 1.01 * own(self, m))


def no_gate(monkeypatch):
    own = torch_base.BinaryStep.forward
    monkeypatch.setattr(torch_base.BinaryStep, "forward", lambda *args: torch.ones_like(own(*args)))


def half_the_slope(monkeypatch):
    monkeypatch.setattr(torch_base.BinaryStep, "backward", lambda ctx, g: (0.5 * g, None))


def other_pairs(monkeypatch):
    def fill(self, count):
        self.stored = self.batches[:count][::-1]

    monkeypatch.setattr(torch_online.Loop, "fill", fill)


@pytest.mark.parametrize(
    "sabotage, what",
    [
        (longer_steps, "phi"),
        (no_gate, "adapted_loss"),
        (half_the_slope, "gradient of mask"),
        (other_pairs, "gradient of theta"),
    ],
)
def test_another_arithmetic_is_a_mismatch(sabotage, what, small_network, monkeypatch):
    ours = compiled_once("sparse-cmaml")
    sabotage(monkeypatch)
    with pytest.raises(
        harness.Mismatch, match=f"loop does not do .* sparse-cmaml's {what} differs"
    ):
        online.check_narrow(ours, starts=2)


@pytest.mark.slow
def test_each_stream_is_learned(small_network):
    """Three streams on two devices: each learns as if it were alone."""
    config = online.make_config("cmaml", FLAGS)
    starts = [ours_online.draw(config, seed) for seed in range(3)]
    side_by_side = ours_online.Seeds(config, starts, QUICK)
    alone = ours_online.Ours(config, starts[:1], QUICK)
    for learner in (side_by_side, alone):
        learner.compile()
        learner.fill(0)
    side_by_side.learn(3)
    phi = side_by_side.placement.to_host(side_by_side.state.fast_params)
    for place, start in enumerate(starts):
        alone.begin([start])
        alone.learn(3)
        for name, x in alone.phi_now().items():
            layer, leaf = name.split("/")
            np.testing.assert_allclose(phi[layer][leaf][place], x, rtol=1e-5, atol=1e-6)


FAST = ["--width=4", "--inner-steps=2", "--stored=3", "--seeds=2", "--repeats=2"]


@pytest.mark.slow
def test_whole_benchmark(small_network, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(machine.MATMUL_SIZE, "cpu", 64)
    online.main([*FAST, "--method=cmaml", "--threads=1", f"--out={tmp_path}"])
    results = json.loads((tmp_path / "online.json").read_text())
    (entry,) = results["methods"]
    assert (entry["method"], results["threads"]) == ("cmaml", 1)
    forms = {row["form"]: row for row in entry["rows"]}
    assert list(forms) == ["jaxsparse", "jaxsparse, 2 seeds", "loop", "channels_last"]
    for row in forms.values():
        assert len(row["seconds"]["update"]) == 2
        assert list(row["ratio"]) == ["loop", "channels_last"]
        for peer, ratios in row["ratio"].items():
            for kind, ratio in ratios.items():
                assert ratio == row["per_s"][kind] / forms[peer]["per_s"][kind]
    table = (tmp_path / "online.md").read_text()
    assert "| PyTorch, channels_last |" in table
    assert table in capsys.readouterr().out


def test_rates_are_of_all_streams():
    """Two streams: three timesteps take 4 s, one update takes 5 s."""

    class Learner:
        name, streams = "two", 2

    seconds = {("two", "timestep"): [3.0, 4.0, 9.0], ("two", "update"): [5.0]}
    assert online._figures(Learner, seconds, 3)["per_s"] == {"timestep": 1.5, "update": 0.4}


@pytest.mark.slow
def test_what_differs_is_not_timed(small_network, tmp_path, monkeypatch, capsys):
    half_the_slope(monkeypatch)
    monkeypatch.setattr(harness, "timed", lambda *args, **options: pytest.fail("timed"))
    with pytest.raises(SystemExit) as stop:
        online.main([*FAST, "--method=sparse-cmaml", "--threads=1", f"--out={tmp_path}"])
    assert stop.value.code == 1
    (line,) = (x for x in capsys.readouterr().err.splitlines() if not x.startswith("  "))
    assert "error: loop does not do the same arithmetic: sparse-cmaml's gradient of mask" in line
    assert not list(tmp_path.iterdir())


def test_the_faster_number_of_threads(monkeypatch):
    """Work takes as many seconds as there are threads, and 100 more at first."""
    now, counts, warm = [0.0], [], set()
    monkeypatch.setattr(torch_base.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", counts.append)

    def work():
        now[0] += counts[-1] + (0 if counts[-1] in warm else 100)
        warm.add(counts[-1])

    assert torch_base.fastest_threads([1, 4], work) == 1
    assert counts == [1, 4, 1]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--repeats=0"], "--repeats must be at least 1, got 0"),
        (["--inner-steps=0"], "--inner-steps must be at least 1, got 0"),
        (["--stored=3", "--timesteps=4"], "--timesteps must be at most --stored, 3, got 4"),
        (["--method=er"], "--method"),
    ],
)
def test_errors_are_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        online.main(flags)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], lines
