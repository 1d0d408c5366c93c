"""The compiled block of Conv4, against PyTorch in double precision, and how it is compiled."""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.nn import blocks, native
from jaxsparse.nn.native import library

compiled = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler"
)
# n, h, w, inputs, outputs. Odd sizes, channels that do not fill a vector, enough images for
# several per piece or for several shares.
FEW_CHANNELS = [(2, 4, 4, 1, 9), (2, 7, 6, 1, 10), (3, 6, 9, 2, 37), (5, 65, 60, 1, 16)]
MANY_CHANNELS = [(2, 2, 2, 3, 5), (2, 5, 8, 8, 8), (14, 3, 3, 20, 33), (12, 14, 13, 16, 16)]


def draw(n, h, w, inputs, outputs, offset=0.0):
    """Images, kernel, scale of both signs, bias, and a cotangent of the output."""
    shapes = [(n, h, w, inputs), (3, 3, inputs, outputs), (outputs,), (outputs,)]
    shapes.append((n, h // 2, w // 2, outputs))
    keys = jax.random.split(jax.random.key(3), len(shapes))
    images, *others = (jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    return images + offset, *others


TO_TORCH = [(0, 3, 1, 2), (3, 2, 0, 1), (0,), (0,)]
FROM_TORCH = [(0, 2, 3, 1), (2, 3, 1, 0), (0,), (0,)]


def torch_block(images, kernel, scale, bias):
    """PyTorch's layers in float64: their arguments and the output [n, c, h, w]."""
    torch = pytest.importorskip("torch")
    arrays = [np.asarray(a, np.float64) for a in (images, kernel, scale, bias)]
    x, k, s, b = args = [
        torch.tensor(a.transpose(turn)).requires_grad_()
        for a, turn in zip(arrays, TO_TORCH, strict=True)
    ]
    y = torch.nn.functional.conv2d(x, k, padding=1)
    # PyTorch's own norm would fold the mean into the bias: infinity minus infinity.
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0, keepdim=True)
    unit = (y - mean) / torch.sqrt(variance + 1e-5)
    y = unit * s[:, None, None] + b[:, None, None]
    return args, torch.nn.functional.max_pool2d(torch.relu(y), 2)


def from_torch(arrays):
    """Images, kernel, scale and bias, or their gradients, in our order of axes."""
    return [a.numpy().transpose(t) for a, t in zip(arrays, FROM_TORCH, strict=True)]


def in_torch(*args):
    """The output and all gradients of PyTorch's layers, in float64."""
    *args, gradient = args
    leaves, out = torch_block(*args)
    out.backward(out.new_tensor(np.asarray(gradient, np.float64).transpose(0, 3, 1, 2)))
    gradients = from_torch([leaf.grad for leaf in leaves])
    return [out.detach().numpy().transpose(0, 2, 3, 1), *gradients]


def with_gradients(*args, form="native"):
    """The output and all gradients of the compiled block, or of another form."""
    *args, gradient = args
    out, pull = jax.vjp(lambda *a: blocks.conv_norm_pool(*a, form=form), *args)
    return [out, *pull(gradient)]


def difference(got, want):
    """The relative L2 difference."""
    return np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want)


@compiled
@pytest.mark.parametrize("sizes", FEW_CHANNELS + MANY_CHANNELS, ids=str)
def test_block_and_its_gradients_match_pytorch(sizes):
    args = draw(*sizes)
    assert native.has_few_channels(args[1]) == (sizes in FEW_CHANNELS)
    for got, want in zip(jax.jit(with_gradients)(*args), in_torch(*args), strict=True):
        assert got.shape == want.shape
        assert difference(got, want) < 3e-6


ALL_SIZES = """
import test_native
from jaxsparse.nn.native import library
for sizes in test_native.FEW_CHANNELS + test_native.MANY_CHANNELS:
    test_native.test_block_and_its_gradients_match_pytorch(sizes)
print(library.load().lanes)
"""


@compiled
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("flag, lanes", [("-mno-avx512f", 8), ("-march=x86-64", 4)])
def test_block_for_shorter_vectors(flag, lanes, monkeypatch, tmp_path):
    use_compiler(monkeypatch, tmp_path, f'exec c++ "$@" {flag}')
    assert in_a_process(ALL_SIZES).split() == [str(lanes).encode()]


@compiled
@pytest.mark.parametrize("sizes", [FEW_CHANNELS[1], MANY_CHANNELS[1]], ids=str)
def test_statistics_do_not_cancel(sizes):
    """Images far from zero: the norm removes their mean without cancellation."""
    args = draw(*sizes, offset=100.0)
    out, *gradients = in_torch(*args)
    got = with_gradients(*args)
    assert difference(got[0], out) < 1e-4  # float32 holds the images to 1e-5 of their deviation
    assert all(difference(*pair) < 1e-3 for pair in zip(got[1:], gradients, strict=True))


def double_backward(*args):
    """The gradients of `slope`, below, by PyTorch."""
    torch = pytest.importorskip("torch")
    leaves, out = torch_block(*args)
    out = out.permute(0, 2, 3, 1)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    first = torch.autograd.grad((torch.sin(out) * weights).sum(), leaves, create_graph=True)
    return from_torch(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))


@pytest.mark.parametrize("form", ["direct", "xla", pytest.param("native", marks=compiled)])
@pytest.mark.parametrize("sizes", [(2, 6, 7, 1, 9), (2, 4, 5, 3, 4)], ids=str)
def test_second_derivatives_match_pytorchs_double_backward(sizes, form):
    *args, _ = draw(*sizes)

    def slope(*args):
        def scalar(*args):
            out = blocks.conv_norm_pool(*args, form=form)
            return jnp.sum(jnp.sin(out) * jnp.linspace(-1, 2, out.size).reshape(out.shape))

        return sum(jnp.sum(jnp.square(g)) for g in jax.grad(scalar, (0, 1, 2, 3))(*args))

    got = jax.jit(jax.grad(slope, (0, 1, 2, 3)))(*args)
    for ours, want in zip(got, double_backward(*args), strict=True):
        assert difference(ours, want) < 1e-4


FORMS = [pytest.param(form, marks=compiled if form == "native" else ()) for form in blocks.FORMS]
# Arguments of the block, the gradient last, and a place in each.
PLACES = [(0, (1, 2, 3, 0)), (1, (0, 1, 0, 2)), (2, (1,)), (3, (1,)), (4, (0, 0, 1, 1))]


def check_propagation(both, in_torch, args, places):
    """NaN and infinity in `args`, at (argument, index) in `places`, as in PyTorch."""

    def pairs(which, change):
        changed = [change(a) if i == which else a for i, a in enumerate(args)]
        return zip(both(*changed), in_torch(*changed), strict=True)

    for which, place in places:
        for got, want in pairs(which, lambda a, p=place: a.at[p].set(np.nan)):
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want), f"argument {which}")
        for value in (np.inf, -np.inf):
            for got, want in pairs(which, lambda a, v=value, p=place: a.at[p].set(v)):
                # Ours may have more NaN, as infinity - infinity may occur elsewhere.
                assert np.all(np.isfinite(want) | ~np.isfinite(got)), (which, value)
    for which in (0, 1):  # the variance overflows float32
        (got, want), *_ = pairs(which, lambda a: 1e25 * a)
        assert np.all(np.isnan(got)) or difference(got, want) < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [(2, 5, 4, 1, 9), (2, 5, 7, 3, 4)], ids=str)
def test_nan_and_infinity_propagate_as_in_pytorch(sizes, form):
    args = draw(*sizes)
    both = jax.jit(partial(with_gradients, form=form))
    check_propagation(both, in_torch, args, PLACES)


BITS = """
import jax, sys
from test_native import FEW_CHANNELS, MANY_CHANNELS, draw, with_gradients
for sizes in FEW_CHANNELS[-1], MANY_CHANNELS[-1]:
    out, d_images, *others = jax.jit(with_gradients)(*draw(*sizes))
    # The images' gradient is XLA's where channels are few.
    for x in [out, *others, *([d_images] if sizes in MANY_CHANNELS else [])]:
        sys.stdout.write(memoryview(jax.device_get(x)).tobytes().hex())
"""


@compiled
@pytest.mark.slow
def test_bits_do_not_depend_on_the_number_of_threads():
    one, three = (in_a_process(BITS, PJRT_NPROC=str(threads)) for threads in (1, 3))
    assert one == three != b""


POOLS = """
#include "sharing.h"
#include <vector>

using jaxsparse::Helpers;

bool each_part_once(const std::function<void(Helpers::Task)>& schedule) {
  std::vector<std::atomic<int>> calls(3 * 7);
  const Helpers helpers(4, schedule);
  for (int round = 0; round < 3; ++round)
    helpers.run(7, [&](int part) { ++calls[7 * round + part]; });
  return std::all_of(calls.begin(), calls.end(), [](const auto& count) { return count == 1; });
}

int main() {
  std::vector<std::thread> threads;
  // A full queue, one that is never served, and threads that may be late.
  const bool full = each_part_once([](Helpers::Task task) { task(); });
  const bool busy = each_part_once([](Helpers::Task) {});
  bool idle = true;
  for (int round = 0; round < 1000; ++round)
    idle &= each_part_once([&](Helpers::Task task) { threads.emplace_back(std::move(task)); });
  for (auto& thread : threads) thread.join();
  return full + 2 * busy + 4 * idle - 7;
}
"""


@compiled
def test_work_is_done_once_whatever_the_pool_does(tmp_path):
    (tmp_path / "pools.cc").write_text(POOLS)
    command = [*library._compiler(), "-std=c++17", "-pthread", f"-I{Path(library.__file__).parent}"]
    subprocess.run([*command, tmp_path / "pools.cc", "-o", tmp_path / "pools"], check=True)
    subprocess.run([tmp_path / "pools"], check=True, timeout=60)


def test_without_a_compiler_the_other_forms_are_used(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = "there is no C++ compiler: CXX is 'no-such-compiler', which cannot be run"
    with pytest.raises(library.NoLibrary, match=f"^{re.escape(reason)}$"):
        library.built()
    monkeypatch.setattr(library, "_load", lambda: reason)
    *args, _ = draw(2, 6, 5, 3, 4)
    got = blocks.conv_norm_pool(*args)
    np.testing.assert_array_equal(got, blocks.conv_norm_pool(*args, form="patches"))
    assert [record.message for record in caplog.records if reason in record.message] == [
        f"using XLA's convolution blocks, which take almost twice as long, because {reason}"
    ]
    with pytest.raises(ValueError, match="form: 'native' needs a C\\+\\+ compiler"):
        blocks.conv_norm_pool(*args, form="native")


@pytest.mark.parametrize(
    "script, said",
    [
        ("echo no such flag >&2; exit 1", "no such flag"),
        (
            "echo In file x: >&2; echo y.h: fatal error: cmath: gone >&2; exit 1",
            "y.h: fatal error: ",
        ),
        ("printf '\\377 \\033[31merror\\033[0m:\\ttwo\\n' >&2; exit 1", "\ufffd error: two"),
        ("kill -9 $$", "Killed|exit status 137"),
        ("exit 3", "exit status 3"),
        ("exit 0", "it wrote no library"),
        (
            "for last; do :; done; echo no library > $last",
            "its library cannot be loaded: OSError",
        ),
        ("sleep 600", "it did not finish within 1 s"),
    ],
)
def test_a_compiler_error_is_one_line(script, said, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path))
    if "sleep" in script:
        monkeypatch.setattr(library, "_BUILD_SECONDS", 1)
    use_compiler(monkeypatch, tmp_path, script)
    with pytest.raises(library.NoLibrary, match=f"compiler failed: ({said})") as raised:
        library.built()
    assert len(str(raised.value).splitlines()) == 1
    assert [record.message for record in caplog.records] == [
        "compiling the convolution blocks with compiler (once per machine) ..."
    ]
    assert list((tmp_path / "native").iterdir()) == []


def test_a_read_only_cache_is_reported(monkeypatch, caplog, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "file"))
    use_compiler(monkeypatch, tmp_path, "exit 0")
    with pytest.raises(library.NoLibrary, match="it wrote no library"):
        library.built()
    assert f"compiled code is kept in {tmp_path}/temporary/jaxsparse-" in caplog.text
    assert "file/native cannot be written: " in caplog.text


@compiled
@pytest.mark.parametrize("cxx", ["env '{}'", '"{}" -m64', "{}"])
@pytest.mark.slow
def test_a_compiler_of_several_words(cxx, monkeypatch, tmp_path):
    path, calls = copying_compiler(monkeypatch, tmp_path)
    monkeypatch.setenv("CXX", cxx.format(path))
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    assert library.built() and calls() == 1


def replace(path, content):
    """Replace the file by a new one, because this process has loaded the old one."""
    path.unlink()
    path.write_bytes(content)


def change_a_byte(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    replace(path, whole)


def make_a_folder(path):
    path.unlink()
    (path / "within").mkdir(parents=True)


def make_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def make_a_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


DAMAGES = [
    lambda path: replace(path, path.read_bytes()[:100_000]),
    lambda path: replace(path, b""),
    lambda path: replace(path, b"half a library"),
    lambda path: path.unlink(),
    *(change_a_byte, make_a_folder, make_a_pipe, make_a_link),
]


@compiled
def test_built_once_and_again_if_the_file_is_damaged(monkeypatch, tmp_path):
    _, calls = copying_compiler(monkeypatch, tmp_path)
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    path, _ = library.built()
    assert path.parent == tmp_path / "cache" / "native"
    assert library.built()[0] == path and calls() == 1
    for count, damage in enumerate(DAMAGES, 2):
        damage(path)
        again, loaded = library.built()
        assert again == path and calls() == count
        assert ctypes.c_int.in_dll(loaded, "JaxsparseLanes").value in (4, 8, 16)
        assert path.is_file() and not path.is_symlink()


@compiled
def test_two_may_build_at_once(monkeypatch, tmp_path):
    path, calls = copying_compiler(monkeypatch, tmp_path)
    path.write_text(path.read_text() + "sleep 0.3\n")
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    with ThreadPoolExecutor() as pool:
        (one, _), (other, _) = pool.map(lambda _: library.built(), range(2))
    assert one == other and calls() == 2
    assert list(one.parent.iterdir()) == [one]


BUILD = "from jaxsparse.nn.native import library; library.built()"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_a_compiler_ends_with_the_process_and_leaves_nothing(monkeypatch, tmp_path):
    """Also the processes that it has started, and also if SIGKILL ends us."""
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    numbers = tmp_path / "numbers"
    use_compiler(monkeypatch, tmp_path, f"sleep 600 & echo $$ $! > {numbers}.new; "
                 f"mv {numbers}.new {numbers}; wait")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", BUILD], env={**os.environ})
    wait_until(numbers.exists)
    process.kill()
    process.wait()
    started = [Path("/proc") / number for number in numbers.read_text().split()]
    wait_until(lambda: not any(path.exists() for path in started))

    assert len(list((tmp_path / "cache/native").iterdir())) == 1
    use_compiler(monkeypatch, tmp_path, "exit 1")
    with pytest.raises(library.NoLibrary):
        library.built()
    assert list((tmp_path / "cache/native").iterdir()) == []


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def copying_compiler(monkeypatch, folder):
    """A compiler, in a path with spaces, that copies the library instead of compiling.

    Returns its path, and a function that counts its calls.
    """
    original, _ = library.built()
    (folder / "my tools").mkdir()
    copy = f'echo called >> {folder}/calls; for last; do :; done; cp "{original}" "$last"'
    path = use_compiler(monkeypatch, folder / "my tools", copy)
    return path, lambda: (folder / "calls").read_text().count("called")


def in_a_process(program, **environment):
    """The output of a program that runs in the folder of this file."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        cwd=Path(__file__).parent,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def use_compiler(monkeypatch, folder, script):
    """Let $CXX be a shell script."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path
