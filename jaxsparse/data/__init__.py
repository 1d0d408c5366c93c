"""Image data sets and the few-shot tasks drawn from them."""

from jaxsparse.data import streams, switching
from jaxsparse.data.classification import LabelledSet, load_labelled
from jaxsparse.data.digests import fingerprint
from jaxsparse.data.episodes import Task, check_episode, sample_tasks
from jaxsparse.data.images import DataError, ImageSet, check_not_blank
from jaxsparse.data.sources import load
from jaxsparse.data.streams import TaskStream
from jaxsparse.data.switching import SwitchingData

__all__ = [
    "DataError",
    "ImageSet",
    "LabelledSet",
    "SwitchingData",
    "Task",
    "TaskStream",
    "check_episode",
    "check_not_blank",
    "fingerprint",
    "load",
    "load_labelled",
    "sample_tasks",
    "streams",
    "switching",
]
