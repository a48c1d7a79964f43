"""Stopping at the end of a step instead of in the middle of one."""

import logging
import signal
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interruption:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C while active; a second Ctrl-C stops at once.

    Cluster managers send SIGTERM or SIGUSR1 some time before they end a job.

    Use as a context manager, and look at `signal_number` after each step.
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

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
        logger.warning(
            "%s: finishing the step, then saving and stopping.", signal.Signals(number).name
        )
