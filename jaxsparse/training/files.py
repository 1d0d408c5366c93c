"""Atomic writes of small files: a new file is written next to the old one and then renamed."""

import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxsparse.data.files import to_disk


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path next to `path` to write a new file to; at the end the file replaces `path`.

    After a kill, an error or a full disk `path` is unchanged. If several processes replace it at
    once, the last one wins. Links are followed. OSError if `path` is not a regular file.

    Examples:
      >>> with replacing(Path("figure.png")) as partial:
      ...     figure.savefig(partial)
    """
    place = Path(os.path.realpath(path))
    mode = _mode(place)
    partial = place.with_name(partial_name(place.suffix[:32]))
    try:
        yield partial
        if mode is not None:
            partial.chmod(mode)
        to_disk(partial)
        partial.replace(place)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    with suppress(OSError):  # some file systems cannot sync folders; the file itself is whole
        to_disk(place.parent)


def partial_name(ending: str) -> str:
    """A new name for an unfinished file."""
    return f".{uuid.uuid4().hex[:12]}.partial{ending}"


def is_partial(name: str, ending: str = "") -> bool:
    """Whether a file with this name and ending is left from an interrupted `replacing`."""
    return re.fullmatch(rf"\.[0-9a-f]{{12}}\.partial{re.escape(ending)}", name) is not None


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _mode(place: Path) -> int | None:
    """The permissions of the existing file; None if there is none."""
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):  # renaming would destroy a device, for example
        raise OSError(f"{place} is not a file")
    return stat.S_IMODE(mode)
