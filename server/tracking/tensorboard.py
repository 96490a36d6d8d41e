"""TensorBoard, live: scalars of each round, the settings as a table, and the model beside them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .tracker import Ending, TrackedRun, Tracker, imported

EXTRA = "tensorboard"


class TensorBoard(Tracker):
    """Writes event files to folder/RUN: `tensorboard --logdir logs` shows them as they grow.

    Parameters
    ----------
    folder
        Where runs have folders of their own, by their id in the store; without a store by the time they began.

    Raises
    ------
    ConfigError
        Where TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path = "logs"):
        imported("tensorboard", EXTRA)
        self.folder = Path(folder)
        self._writer: Any = None
        self._at = self.folder

    def begin(self, tracked: TrackedRun) -> int:
        """Open an event file, with the settings in it."""
        self._at = self.folder / (tracked.run or time.strftime(f"{tracked.experiment}-%Y%m%d-%H%M%S"))
        written = last_step(self._at) if tracked.is_resumed else 0
        events = imported("tensorboard.summary.writer.event_file_writer", EXTRA)
        self._writer = events.EventFileWriter(str(self._at))
        rows = [f"| {path} | {text.replace('|', '&#124;')} |" for path, text in tracked.settings.items()]
        self._text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))
        return written

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """Write a round's numbers, and flush them."""
        self._add(round, [_scalar(tag, number) for tag, number in numbers.items()])
        self._writer.flush()

    def keep(self, files: Sequence[Path], ending: Mapping[str, str]) -> None:
        """Copy the model beside the event file."""
        for file in files:
            shutil.copy(file, self._at / file.name)
        self._text(
            "ending", "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in ending.items())])
        )

    def end(self, ending: Ending) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _text(self, tag: str, markdown: str) -> None:
        self._add(0, [_text(tag, markdown)])

    def _add(self, step: int, values: Sequence[Any]) -> None:
        event = imported("tensorboard.compat.proto.event_pb2", EXTRA)
        summary = imported("tensorboard.compat.proto.summary_pb2", EXTRA)
        self._writer.add_event(event.Event(wall_time=time.time(), step=step, summary=summary.Summary(value=values)))


def last_step(folder: Path) -> int:
    """Return the last round in a folder's event files, 0 where there is none. One that was cut off is read so far."""
    loader = imported("tensorboard.backend.event_processing.event_file_loader", EXTRA)
    files = sorted(folder.glob("events.out.tfevents.*"))
    return max((event.step for file in files for event in loader.LegacyEventFileLoader(str(file)).Load()), default=0)


def _scalar(tag: str, number: float) -> Any:
    return _value(tag, "scalar", np.float32(number))


def _text(tag: str, markdown: str) -> Any:
    return _value(tag, "text", np.array([markdown.encode()], object))


def _value(tag: str, plugin: str, content: Any) -> Any:
    """Return a summary's value as one of TensorBoard's plugins reads it."""
    metadata = imported(f"tensorboard.plugins.{plugin}.metadata", EXTRA)
    tensor = imported("tensorboard.util.tensor_util", EXTRA).make_tensor_proto(content)
    value = imported("tensorboard.compat.proto.summary_pb2", EXTRA).Summary.Value
    return value(tag=tag, metadata=metadata.create_summary_metadata("", ""), tensor=tensor)
