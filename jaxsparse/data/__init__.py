"""Image data sets and the few-shot tasks drawn from them."""

from jaxsparse.data.episodes import Task, check_episode, sample_tasks
from jaxsparse.data.images import DataError, ImageSet
from jaxsparse.data.sources import load

__all__ = ["DataError", "ImageSet", "Task", "check_episode", "load", "sample_tasks"]
