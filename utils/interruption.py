"""Stopping at the end of a step instead of in the middle of one."""

import os
import signal
from contextlib import suppress
from types import FrameType

from utils.distributed import largest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STANDARD_ERROR = 2


class Interruption:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C while active; a second Ctrl-C stops at once.

    Cluster managers send SIGTERM or SIGUSR1 some time before they end a job.

    Use as a context manager; look at `agreed` after each step.
    """

    def __init__(self) -> None:
        """Nothing has been received."""
        self.signal_number: int | None = None

    def __enter__(self) -> "Interruption":
        """Takes over the signals."""
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> int | None:
        """The signal that this or another process got, if any; all processes must call it."""
        return largest(self.signal_number or 0) or None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
        name = signal.Signals(number).name
        # Neither logging nor a Python file: the signal may have come in the middle of writing to
        # the same file, which then raises an error.
        with suppress(OSError):
            message = f"\n{name}: finishing the step, then saving and stopping.\n"
            os.write(STANDARD_ERROR, message.encode())
