"""Image data sets and the few-shot tasks drawn from them."""

from jaxsparse.data import streams
from jaxsparse.data.classification import LabelledSet, load_labelled
from jaxsparse.data.episodes import Task, check_episode, sample_tasks
from jaxsparse.data.images import DataError, ImageSet
from jaxsparse.data.sources import load
from jaxsparse.data.streams import TaskStream

__all__ = [
    "DataError",
    "ImageSet",
    "LabelledSet",
    "Task",
    "TaskStream",
    "check_episode",
    "load",
    "load_labelled",
    "sample_tasks",
    "streams",
]
