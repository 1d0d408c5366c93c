"""The folders of datasets."""

import os
import stat
from pathlib import Path

from jaxsparse.data.files import one_line
from jaxsparse.errors import DataError


def find_data_dir(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of a dataset, `data_dir` or TFDS's default; DataError if there is none."""
    if data_dir is None and name == "folder":
        raise DataError("the dataset 'folder' needs data_dir, a tree train/<class>/<image> etc.")
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    given = os.fspath(default if data_dir is None else data_dir)
    path = os.path.expanduser(given)  # noqa: PTH111  Path.expanduser raises for an unknown user
    if given.startswith("~") and path == given:
        raise DataError(f"{name}: data_dir {one_line(given)}: has no home folder for ~")
    if reason := _no_folder(path):
        raise DataError(f"{name}: data_dir {one_line(path)[:200]}: {reason}")
    return Path(path)


def _no_folder(path: str) -> str | None:
    """Why `path` is not a readable folder; None if it is."""
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
        return "there is no such folder"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if stat.S_ISDIR(mode) else "is a file, not a folder"


def not_prepared(name: str, data_dir: Path) -> DataError:
    """The error for a dataset that TFDS has not prepared; `name` is TFDS's name."""
    return DataError(
        f"{name}: not prepared in {one_line(data_dir)}; do so once, with TensorFlow"
        ' installed: python -c "import tensorflow_datasets as tfds;'
        f" tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
    )
