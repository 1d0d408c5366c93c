"""The TensorBoard event files of a run."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

_PREFIX = "events"


class TensorBoard:
    """Writes scalars to an event file in `path`; the file is made when there is something to write.

    Examples:
      >>> board = TensorBoard(path)
      >>> board.add(10, {"loss": 0.5})
      >>> board.write()
    """

    def __init__(self, path: Path):
        self.path = path
        self._writer: EventsWriter | None = None
        self._waiting: list[tuple[int, Mapping[str, float] | None]] = []

    def has_events(self) -> bool:
        """Whether the folder has an event file, of this process or of an earlier one."""
        return any(self.path.glob(f"{_PREFIX}.*"))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Keep scalars for the next `write`."""
        self._waiting.append((step, scalars))

    def restart(self, step: int) -> None:
        """Make TensorBoard drop what an earlier process wrote from this step on."""
        self._waiting.append((step, None))

    def write(self) -> None:
        """Write what was added since the last call."""
        # tensorboardX's SummaryWriter writes in a background thread: an error there, such as a
        # full disk, could not be reported.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._writer is None:
            self._writer = EventsWriter(str(self.path / _PREFIX))
        while self._waiting:
            step, scalars = self._waiting.pop(0)
            if scalars is None:
                start = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(step=step, session_log=start, wall_time=time.time()))
            for name, value in (scalars or {}).items():
                one = summary.scalar(name, value)
                self._writer.write_event(Event(step=step, summary=one, wall_time=time.time()))
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            with suppress(OSError):  # a full disk has been reported when a row was written
                self._writer.close()
            self._writer = None
