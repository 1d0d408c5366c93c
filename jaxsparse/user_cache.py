"""The folder on the user's disk in which everything that takes long to make is kept."""

import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """The folder that prepared data and compiled code are kept in (it may not exist yet).

    The first of: $JAXSPARSE_CACHE; $XDG_CACHE_HOME/jaxsparse; ~/.cache/jaxsparse.

    Returns:
        The folder, `~` expanded. Without a home folder, one in the system's temporary folder.

    Example:
        >>> os.environ["JAXSPARSE_CACHE"] = "/data/jaxsparse"
        >>> cache_dir()
        PosixPath('/data/jaxsparse')
    """
    try:
        if own := os.environ.get("JAXSPARSE_CACHE"):
            return Path(own).expanduser()
        if shared := os.environ.get("XDG_CACHE_HOME"):
            return Path(shared).expanduser() / "jaxsparse"
        return Path.home() / ".cache" / "jaxsparse"
    except RuntimeError:  # a user id without a home folder, as some containers give
        return Path(tempfile.gettempdir()) / "jaxsparse"
