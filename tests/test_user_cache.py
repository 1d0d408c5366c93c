"""Which folders are used as caches, and how the leftovers of dead processes are removed."""

import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jaxsparse import user_cache
from jaxsparse.data import DataError
from jaxsparse.user_cache import cache_dir, code_dir, partial

as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives folders to another user"
)
OTHER = 54321


@pytest.fixture
def place(monkeypatch):
    """A separate machine: home/, tmp/ for temporary folders, and no environment variables."""
    # Not pytest's folder: nobody else may enter it, so the modes below it would have no effect.
    place = Path(tempfile.mkdtemp()).resolve()
    place.chmod(0o755)
    if any(mode(folder) & 0o077 == 0 for folder in place.parents):
        pytest.skip("the temporary folder is private")
    for name in ("home", "tmp"):
        (place / name).mkdir(mode=0o700)
    (place / "tmp").chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(place / "tmp"))
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAXSPARSE_CACHE", raising=False)
    user_cache._warn_once.cache_clear()
    user_cache._for_this_process.cache_clear()
    yield place
    shutil.rmtree(place)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def temporary(place):
    return place / "tmp" / f"jaxsparse-{os.geteuid()}"


def test_environment_variables_choose_the_cache_folder(place, monkeypatch):
    assert cache_dir() == place / "home/.cache/jaxsparse"
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "scratch"))
    assert cache_dir() == place / "scratch/jaxsparse"
    monkeypatch.setenv("JAXSPARSE_CACHE", "~/images")
    assert cache_dir() == place / "home/images"
    assert code_dir("native") == place / "home/images/native"
    for made in (place / "scratch/jaxsparse", place / "home/images", place / "home/images/native"):
        assert mode(made) == 0o700


def test_an_unknown_user_is_named(place, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", "~nosuchuser/x")
    with pytest.raises(DataError, match="JAXSPARSE_CACHE: got '~nosuchuser/x', want a folder"):
        cache_dir()


@pytest.mark.parametrize("home", [None, "file", "relative", ""])
def test_without_a_home_folder_it_is_a_private_temporary_one(home, place, monkeypatch):
    (place / "file").touch()
    if home is None:
        monkeypatch.setattr(Path, "home", lambda: no_home())
    elif home == "":  # the home of a user without one, who may not write there
        monkeypatch.setattr(user_cache, "_is_trusted", lambda path: path.parts[1] != ".cache")
        monkeypatch.setenv("HOME", home)
    else:
        monkeypatch.setenv("HOME", str(place / home) if home == "file" else home)
    assert cache_dir() == temporary(place)
    assert code_dir("xla") == temporary(place) / "xla"
    assert mode(cache_dir()) == 0o700


def no_home():
    raise RuntimeError("Could not determine home directory.")


@as_root
@pytest.mark.parametrize("taken", ["folder", "link"])
def test_a_temporary_folder_that_another_user_took_is_not_used(taken, place, monkeypatch, caplog):
    monkeypatch.setattr(Path, "home", lambda: no_home())
    mine = temporary(place)
    if taken == "link":
        (place / "planted").mkdir()
        mine.symlink_to(place / "planted")
    else:
        mine.mkdir()
        os.chown(mine, OTHER, OTHER)
    assert code_dir("native").parent == cache_dir() != mine
    assert cache_dir().parent == mine.parent and mode(cache_dir()) == 0o700
    assert "removed at exit; set JAXSPARSE_CACHE" in caplog.text


@as_root
def test_a_home_folder_of_another_user_is_left_alone(place):
    os.chown(place / "home", OTHER, OTHER)
    assert cache_dir() == temporary(place)
    assert list((place / "home").iterdir()) == []


def loose(path):
    path.chmod(0o777)


def sticky(path):
    path.chmod(0o1777)


def given_away(path):
    os.chown(path, OTHER, OTHER)


def linked(path):
    path.rename(path.with_name("elsewhere"))
    loose(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("change", [loose, sticky, linked, pytest.param(given_away, marks=as_root)])
@pytest.mark.parametrize("which", ["cache", "cache/native", "."])
def test_folders_that_others_may_write_to_hold_data_but_no_code(
    which, change, place, monkeypatch, caplog
):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(place / "shared/cache"))
    (place / "shared/cache/native").mkdir(parents=True)
    changed = place / "shared" / which
    change(changed)
    before = mode(changed)
    assert cache_dir() == place / "shared/cache"
    safe = change is sticky and which == "."  # nobody can replace our folder
    want = place / "shared/cache/native" if safe else temporary(place) / "native"
    for _ in range(2):
        assert code_dir("native") == want
    assert mode(changed) == before  # the user's setting is kept
    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == (0 if safe else 1)
    assert safe or f"because other users may write to {place}" in lines[0].message


def test_folders_that_others_cannot_enter_are_private(place):
    cache = place / "home/.cache/jaxsparse"
    cache.mkdir(parents=True)
    for path in (cache, cache.parent):
        path.chmod(0o775)
    assert code_dir("native") == cache / "native"


def test_no_code_is_kept_where_no_folder_is_private(place, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(place / "file"))
    (place / "file").touch()
    (place / "tmp").chmod(0o777)  # anybody may rename what is in it
    with pytest.raises(PermissionError, match="no folder that only this user may write to"):
        code_dir("native")


def test_leftovers_of_ended_processes_are_removed(tmp_path):
    program = (
        "import os, sys, pathlib; from jaxsparse.user_cache import partial\n"
        "with partial(pathlib.Path(sys.argv[1]) / 'set-1') as beside:\n"
        "    beside.mkdir(); (beside / 'images').touch(); os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=120)
    (cut_off,) = tmp_path.iterdir()
    former = tmp_path / ".glyphs-v1-0123456789abcdef-0123456789abcdef0123456789abcdef"
    other_machine = tmp_path / cut_off.name.replace(user_cache._place(), "89abcdef")
    for path in (former, other_machine):
        path.mkdir()
        os.utime(path, (0, time.time() - 25 * 3600))
    young = tmp_path / former.name.replace("glyphs", "digits")
    (young / "within").mkdir(parents=True)
    os.utime(young, (0, 0))
    others = [young, tmp_path / ".profile", tmp_path / "set-2"]
    for path in others[1:]:
        path.touch()
        os.utime(path, (0, 0))
    with partial(tmp_path / "set-1") as beside, partial(tmp_path / "set-1") as second:
        beside.mkdir()
        assert second != beside and beside.exists() and beside.parent == tmp_path
    assert sorted(tmp_path.iterdir()) == sorted(others)
