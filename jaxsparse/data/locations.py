"""Where data sets lie, and what to say where they do not."""

import os
import stat
from pathlib import Path

from jaxsparse.data.files import one_line
from jaxsparse.errors import DataError


def find_data_dir(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder to look for a data set in, `data_dir` or TFDS's; DataError if it is none."""
    if data_dir is None and name == "folder":
        raise DataError("the data set 'folder' needs data_dir, a tree train/<class>/<image> etc.")
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    given = os.fspath(default if data_dir is None else data_dir)
    path = os.path.expanduser(given)  # noqa: PTH111  Path's raises where there is no such user
    if given.startswith("~") and path == given:
        raise DataError(f"{name}: data_dir {one_line(given)}: has no home folder to stand for ~")
    if reason := _no_folder(path):
        raise DataError(f"{name}: data_dir {one_line(path)[:200]}: {reason}")
    return Path(path)


def _no_folder(path: str) -> str | None:
    """Why there is no folder to read at a path; None where there is one."""
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
        return "there is no such folder"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if stat.S_ISDIR(mode) else "is a file, not a folder"


def not_prepared(name: str, data_dir: Path) -> DataError:
    """The error for records that TFDS has not prepared: where it was looked for, what to do.

    Args:
        name: TFDS's name of the data set.
        data_dir: TFDS's data folder.

    Returns:
        A DataError of one line, to be raised.

    Example:
        >>> str(not_prepared("omniglot", Path("data"))).split(";")[0]
        'omniglot: not prepared in data'
    """
    return DataError(
        f"{name}: not prepared in {one_line(data_dir)}; do so once, with TensorFlow"
        ' installed: python -c "import tensorflow_datasets as tfds;'
        f" tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
    )
