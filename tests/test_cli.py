"""What all command lines share."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import cli, drawing, fewshot, plots, reproduce
from experiments.report import ConsoleReport
from jaxsparse.training import WriteError

ROOT = Path(__file__).resolve().parent.parent

TROUBLE = "Error {} persistent compilation cache entry for 'jit_step': OSError: No space left"


@pytest.fixture
def shown(capsys) -> Iterator:
    """Show warnings as the commands do, and return the lines on stderr."""
    with cli.one_line_errors():
        warnings.simplefilter("always")
        yield lambda: capsys.readouterr().err.splitlines()


def test_a_warning_is_one_line(shown):
    warnings.warn("digits:\n not kept", stacklevel=1)
    warnings.warn("digits:\n not kept", stacklevel=1)
    assert shown() == ["warning: digits: not kept"] * 2


def test_a_failing_cache_is_reported_once(shown, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path))
    for verb in ("writing", "reading"):
        warnings.warn(TROUBLE.format(verb), stacklevel=1)
    (line,) = shown()
    assert "(OSError: No space left)" in line and line.endswith(f"delete {tmp_path / 'xla'}")


def test_a_truncated_cache_entry_is_reported(tmp_path, monkeypatch):
    """JAX's warning about an entry that a full disk or a kill may leave."""
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
            [sys.executable, "-c", job], capture_output=True, text=True, check=True, cwd=ROOT
        )

    assert run().stderr == ""
    entries = [path for path in (tmp_path / "xla").iterdir() if path.name.endswith("-cache")]
    for path in entries:
        path.write_bytes(path.read_bytes()[:-9])
    again = run()
    (line,) = again.stderr.splitlines()
    assert line.startswith("warning: programs are compiled again") and str(tmp_path) in line
    assert entries and again.stdout == "6\n"


# ---- signals

SWALLOWING = """
import gc, os, signal, sys, time
signal.signal({number}, signal.SIG_DFL)  # the tests may run under nohup
from experiments import signals
signals.handle()
signals.leave("stopped before the first step")
def callback(phase, info):
    os.kill(os.getpid(), {number})
    time.sleep(0.01)
gc.callbacks.append(callback)
gc.collect()
time.sleep(60)
"""


def python(program, *args, **options):
    """Run a program in a separate process."""
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        **{"capture_output": True, "text": True, "timeout": 120, "cwd": ROOT, **options},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_dropped(number):
    done = python(SWALLOWING.format(number=int(number)))
    assert done.returncode == 128 + number
    assert done.stderr == "error: stopped before the first step\n"


def test_a_command_under_nohup_outlives_its_terminal():
    program = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from experiments import signals\n"
        "signals.handle(); os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.2)"
    )
    assert python(program).returncode == 0


SAVING = """
import os, signal, time
from experiments import cli, signals
from jaxsparse.training import Stopped
with cli.command():
    with cli.saving_on_signal("go on 'my  run'") as should_stop:
        if {asked}:
            should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        {then}
"""


@pytest.mark.parametrize(
    ("asked", "then", "line"),
    [
        (False, "", "stopped before the first step; continue with: go on 'my  run'"),
        (
            True,
            "assert should_stop(); raise Stopped('stopped at step 3')",
            "stopped at step 3 and saved; continue with: go on 'my  run'",
        ),
        (True, "", "stopped at the end of the run and saved; continue with: go on 'my  run'"),
        (
            True,
            "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
            "stopped at once, without saving; continue with: go on 'my  run'",
        ),
    ],
)
def test_a_run_saves_when_asked_and_ends_when_asked_again(asked, then, line):
    done = python(SAVING.format(asked=asked, then=then))
    assert done.returncode == 143
    assert done.stderr == f"error: {line}\n"


def test_earlier_signal_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with cli.command(), cli.saving_on_signal("go on") as should_stop:
        assert signal.getsignal(signal.SIGTERM) != before[1]
        assert not should_stop()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_signals_are_handled_while_python_looks_for_the_command():
    """A command that is stopped during its own imports."""
    program = (
        "import os, runpy, signal, sys\n"
        "sys.argv[0] = '-m'\n"
        "import experiments\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "import time; time.sleep(60)"
    )
    done = python(program)
    assert (done.returncode, done.stderr) == (130, "error: stopped before the first step\n")


# ---- the standard streams


def test_a_full_disk_behind_stdout_is_one_line_and_status_1(monkeypatch, capsys):
    with open("/dev/full", "w") as full, pytest.raises(SystemExit) as stop:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        with cli.command():
            cli.say("results")
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: cannot write to the standard output: No space left on device"


@pytest.mark.parametrize("path", ["run[1]", "a/[bold]b", ":smile:", "x" * 300])
def test_a_report_prints_paths_as_they_are(path, capsys):
    from jaxsparse.training import FewShotConfig

    with fewshot.Report(FewShotConfig(), Path(path)):
        pass
    assert f"run folder: {path}\n" in capsys.readouterr().out


def test_a_report_on_a_full_disk_says_so(monkeypatch):
    from jaxsparse.training import FewShotConfig

    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(cli.OutputError, match="No space left"):
            fewshot.Report(FewShotConfig(), Path("run")).print("line")
        cli._drop_output()


def test_closed_standard_streams_do_not_receive_file_output(tmp_path):
    program = (
        "from experiments import signals\n"
        "signals.handle()\n"
        "file = open('file', 'w')\n"
        "import os, sys; print('out'); print('err', file=sys.stderr)\n"
        "os.write(1, b'out'); os.write(2, b'err')"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- >&- 2>&-"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0 and (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("platform", ["cuda", "cpuu"])
def test_a_missing_platform_is_one_line(platform):
    program = "from experiments import cli\nwith cli.command():\n    cli.start_backend()"
    done = python(program, env={**os.environ, "JAX_PLATFORMS": platform})
    if platform == "cuda" and done.returncode == 0:
        pytest.skip("it is there")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and f"JAX_PLATFORMS='{platform}'" in line


def test_without_sched_getaffinity(monkeypatch):
    """As on macOS."""
    counts = []
    monkeypatch.setattr(cli, "use_cores", counts.append)
    monkeypatch.delattr(os, "sched_getaffinity")
    cli.use_all_cores()
    assert counts == [os.cpu_count()]


# ---- commands to be pasted


@pytest.mark.parametrize(
    "word", ["my  run", "it's", "run[1]", "$HOME", "a\nb", "\ttab", "é\n'\\", "~x", "*", "-5", ""]
)
def test_a_printed_command_can_be_pasted(word):
    line = cli.one_line(cli.command_line("printf '%s|'", [word, "end"]))
    said = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert said.decode() == f"{word}|end|"


def test_a_path_in_an_error_keeps_its_spaces(capsys):
    with pytest.raises(SystemExit):
        cli.fail("cannot write to my  run:\n  no space")
    assert capsys.readouterr().err == "error: cannot write to my  run: no space\n"


# ---- figures

ROWS = [
    {"epoch": i, "step": 4 * i, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5,
     "sparsity": {"total": 0.1 * i, "head/kernel": 0.1 * i}}
    for i in range(3)
]  # fmt: skip


@pytest.mark.parametrize("setting", [{"text.usetex": True}, {"figure.dpi": -3.0, "font.size": 900}])
def test_the_users_matplotlib_style_has_no_effect(setting, tmp_path):
    import matplotlib

    assert drawing.draw_run(tmp_path, fewshot.FIGURES, ROWS, None) == {}
    plain = [(tmp_path / name).read_bytes() for name in fewshot.FIGURES]
    with matplotlib.rc_context(setting):
        assert drawing.draw_run(tmp_path, fewshot.FIGURES, ROWS, None) == {}
        assert all(matplotlib.rcParams[name] == value for name, value in setting.items())
    assert [(tmp_path / name).read_bytes() for name in fewshot.FIGURES] == plain


def test_matplotlib_is_imported_whatever_the_environment_says(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe: nonsense\n")
    program = "from experiments import style\nwith style.own_style(): pass"
    environment = {**os.environ, "MPLBACKEND": "module://no.such", "MATPLOTLIBRC": str(tmp_path)}
    done = python(program, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_figure_that_cannot_be_drawn_leaves_the_others(tmp_path):
    figures = {"bad.png": lambda rows, result: rows["none"], **fewshot.FIGURES}
    failed = drawing.draw_run(tmp_path, figures, ROWS, None)
    assert list(failed) == ["bad.png"] and "TypeError" in failed["bad.png"]
    assert all(drawing.is_whole(tmp_path / name) for name in fewshot.FIGURES)


def test_damaged_pictures_are_known(tmp_path):
    drawing.draw_run(tmp_path, {"x.png": fewshot.FIGURES["curves.png"]}, ROWS, None)
    path = tmp_path / "x.png"
    whole = path.read_bytes()
    assert drawing.is_whole(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:8], whole[:-1], whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        assert not drawing.is_whole(path), len(damaged)
    path.unlink()
    assert not drawing.is_whole(path) and not drawing.is_whole(tmp_path)


def test_a_full_disk_keeps_the_old_figure(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "curves.png").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left"):
        drawing.draw_run(tmp_path, fewshot.FIGURES, ROWS, None)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(
    ("args", "status", "lines"),
    [(["--help"], 0, 0), (["-h"], 0, 0), ([], 2, 1), (["--all"], 2, 1), ([""], 2, 1)],
)
def test_the_command_of_figures_has_help(args, status, lines, capsys):
    with pytest.raises(SystemExit) as stop:
        plots.main(args)
    said = capsys.readouterr()
    assert (stop.value.code or 0) == status and len(said.err.splitlines()) == lines
    assert ("folder of a run" in said.out) == (status == 0)


def test_without_a_terminal_there_is_no_bar_and_no_colour(monkeypatch, capsys):
    """Jupyter sets this variable for the commands of its cells."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    report = ConsoleReport("header", Path("run"), ("epoch", 1), 1, ())
    report.print("K = 5")
    assert report.bar.disable and capsys.readouterr().out == "K = 5\n"


# ---- the document


def test_a_full_disk_keeps_the_document(tmp_path, monkeypatch):
    document = tmp_path / "document.md"
    text = "before\n<!-- table 3 -->\nold\n<!-- end of table 3 -->\nafter\n"
    document.write_text(text)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left"):
        reproduce.write_section(tmp_path, "table 3", ["new"] * 1000)
    assert document.read_text() == text and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "text", [None, b"\xff\xfe", b"no marks", b"<!-- end of table 3 -->\n<!-- table 3 -->"]
)
def test_a_document_without_its_section_is_refused_before_anything_runs(
    text, tmp_path, monkeypatch, capsys
):
    if text is not None:
        (tmp_path / "document.md").write_bytes(text)
    monkeypatch.setattr(reproduce, "PAGES", tmp_path)
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--table=3", "--document", f"--out={tmp_path / 'runs'}"])
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_an_empty_table_replaces_none(tmp_path, monkeypatch, capsys):
    document = tmp_path / "document.md"
    text = "<!-- table 3 -->\nold\n<!-- end of table 3 -->\n"
    document.write_text(text)
    monkeypatch.setattr(reproduce, "PAGES", tmp_path)
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--table=3", "--no-run", "--document", f"--out={tmp_path / 'runs'}"])
    assert stop.value.code == 2 and document.read_text() == text
