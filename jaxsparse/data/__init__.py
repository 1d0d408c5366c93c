"""Image datasets, and the few-shot tasks and streams sampled from them."""

from jaxsparse.data import streams, switching
from jaxsparse.data.arrays import from_arrays, labelled_from_arrays
from jaxsparse.data.classification import load_labelled
from jaxsparse.data.conversion import convert
from jaxsparse.data.digests import fingerprint
from jaxsparse.data.episodes import Task, check_episode, sample_tasks
from jaxsparse.data.images import ImageSet, check_not_blank
from jaxsparse.data.labelled import LabelledSet
from jaxsparse.data.sources import load
from jaxsparse.data.streams import TaskStream
from jaxsparse.data.switching import SwitchingData
from jaxsparse.errors import DataError

__all__ = [
    "DataError",
    "ImageSet",
    "LabelledSet",
    "SwitchingData",
    "Task",
    "TaskStream",
    "check_episode",
    "check_not_blank",
    "convert",
    "fingerprint",
    "from_arrays",
    "labelled_from_arrays",
    "load",
    "load_labelled",
    "sample_tasks",
    "streams",
    "switching",
]
