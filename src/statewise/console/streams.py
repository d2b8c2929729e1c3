"""Standard output and error that outlive their reader: what cannot be printed any more is dropped, the work goes on.

A pager that is closed, `| head`, or a terminal that is gone must not end a training. Below `print`, typer and rich, so
that each of them, and its threads, find a stream that takes everything. What was lost is known at the end.
"""

from __future__ import annotations

import errno
import io
import os
import sys

TYPE_CHECKING = False  # of typing, whose import would take longer than all else here: Ctrl-C is not yet heard
if TYPE_CHECKING:
    from typing import TextIO

    from _typeshed import ReadableBuffer


class Output(io.FileIO):
    """A descriptor that takes everything: after the first error into nothing, and `error` is that error."""

    def __init__(self, descriptor: int, label: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.label = label
        self.error: OSError | None = None
        self._was_terminal = self.isatty()

    def write(self, data: ReadableBuffer) -> int:
        """Write `data`, or drop it."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes

    @property
    def has_lost_its_reader(self) -> bool:
        """Whether nobody reads any more; else `error` is of a file that cannot be written."""
        gone = (errno.EPIPE, errno.EIO) if self._was_terminal else (errno.EPIPE,)
        return self.error is not None and self.error.errno in gone


def outlive_readers() -> list[Output]:
    """Put an `Output` below `sys.stdout` and `sys.stderr`, as far as they are this process's own."""
    outputs = []
    for name, label in (("stdout", "standard output"), ("stderr", "standard error")):
        stream: TextIO | None = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):  # closed, or captured by a caller
            continue
        stream.flush()
        output = Output(stream.fileno(), label)
        text = io.TextIOWrapper(
            io.BufferedWriter(output), stream.encoding, stream.errors, line_buffering=bool(stream.line_buffering)
        )
        setattr(sys, name, text)
        outputs.append(output)
    return outputs
