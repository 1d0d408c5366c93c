"""What all command lines share."""

import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from experiments import cli

TROUBLE = "Error {} persistent compilation cache entry for 'jit_step': OSError: No space left"


@pytest.fixture
def shown(capsys) -> Iterator:
    """Show warnings as the command lines do, and give the lines on stderr."""
    with cli.one_line_errors():
        warnings.simplefilter("always")
        yield lambda: capsys.readouterr().err.splitlines()


def test_a_warning_is_one_line(shown):
    warnings.warn("digits:\n not kept", stacklevel=1)
    warnings.warn("digits:\n not kept", stacklevel=1)
    assert shown() == ["warning: digits: not kept"] * 2


def test_a_cache_that_fails_is_told_of_once(shown, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path))
    for verb in ("writing", "reading"):
        warnings.warn(TROUBLE.format(verb), stacklevel=1)
    (line,) = shown()
    assert "(OSError: No space left)" in line and line.endswith(f"delete {tmp_path / 'xla'}")


def test_a_cache_that_was_cut_short_is_told_of(tmp_path, monkeypatch):
    """JAX's own words, from an entry that a full disk or a kill may leave."""
    job = (
        "import jax; from experiments import cli\n"
        "with cli.one_line_errors():\n"
        "    cli.use_compilation_cache()\n"
        "    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "    print(jax.jit(lambda x: 2 * x)(3))"
    )

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path))

    def run():
        return subprocess.run(
            [sys.executable, "-c", job], capture_output=True, text=True, check=True
        )

    assert run().stderr == ""
    entries = [path for path in (tmp_path / "xla").iterdir() if path.name.endswith("-cache")]
    for path in entries:
        path.write_bytes(path.read_bytes()[:-9])
    again = run()
    (line,) = again.stderr.splitlines()
    assert line.startswith("warning: programs are compiled anew") and str(tmp_path) in line
    assert entries and again.stdout == "6\n"
