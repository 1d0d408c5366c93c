"""Operations that are interrupted at each file-system call; each takes the folder it works in."""

from pathlib import Path

import tensorboardX.event_file_writer
import tensorboardX.proto.event_pb2
import tensorboardX.summary  # noqa: F401

from jaxsparse.training import RunFolder

CONFIG = {"config": {"shots": 5}, "versions": {"jax": "1"}}
ROWS = [{"epoch": n, "step": n, "loss": 1.0 / (1 + n)} for n in range(3)]


def create_run(place: Path) -> None:
    RunFolder.create(place / "run", CONFIG)


def create_in_a_folder_that_is_there(place: Path) -> None:
    RunFolder.create(place, CONFIG)


def begin_pretraining(place: Path) -> None:
    folder = RunFolder(place / "pretrained" / "run")
    with folder.lock():
        folder.begin(CONFIG)


def write_result(place: Path) -> None:
    folder = RunFolder(place)
    with folder.lock():
        folder.write_result({"accuracy": [0.5] * 1000})


def append(place: Path) -> None:
    """Append a line to each file of lines; TensorBoard's file starts with the second row."""
    folder = RunFolder(place)
    with folder.lock():
        folder.log_timing(seconds=1.0)
        folder.keep_rows(len(folder.rows()) - 1)
        folder.add_row(ROWS[0] if not folder.rows() else ROWS[1])
