"""Logging, and turning errors into messages."""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger(__name__)


class _ProgressBarHandler(logging.Handler):
    """Writes to standard error without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def configure_logging() -> None:
    """Sends the program's messages to standard error."""
    handler = _ProgressBarHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short: what ends the program then is said where it arises."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        del record


def log_to_file(path: Path) -> logging.Handler:
    """Also appends the program's messages to a file; remove the handler at the end."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    return handler


EXPLAINED = {
    r"DataLoader worker \(pid": (
        2,
        "A decoding process died. If memory ran out, lower --workers or --batch-size; after a bus error "
        "/dev/shm is too small; if a file breaks its decoder, scripts/verify_dataset.sh finds it",
    ),
    r"out of memory|can't allocate memory|ALLOC_FAILED|shared memory": (
        2,
        "Memory ran out. Lower --batch-size or --workers, or train with --precision bf16",
    ),
    r"Connection (closed|reset) by peer": (
        1,
        "Another process of this run has ended; its own message says why",
    ),
}
"""What torch raises as a RuntimeError though no code is wrong: a pattern in its text -> the exit status
and words for the user."""


def explain(error: BaseException) -> tuple[int, str] | None:
    """Return the exit status and the words for an error whose cause is known, or None."""
    if isinstance(error, MemoryError):
        error = RuntimeError(f"out of memory {error}".strip())
    if not isinstance(error, RuntimeError):
        return None
    for raised in filter(None, (error.__cause__, error)):  # the cause knows the signal
        for pattern, (status, words) in EXPLAINED.items():
            lines = [line for line in str(raised).splitlines() if re.search(pattern, line)]
            if lines:
                return status, f"{words}. ({lines[0].strip()})"
    return None


def run_command(command: Callable[[], int]) -> int:
    """Run a command; what the user can mend becomes one message and exit status 2.

    Anything unforeseen is a bug: it is raised, which ends the program with its traceback and status 1.
    VSSL_DEBUG=1 shows the other tracebacks as well.

    Args:
        command: returns an exit status.
    """
    debug = bool(os.environ.get("VSSL_DEBUG"))
    try:
        return command()
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        logger.error("%s", error, exc_info=debug)
        return 2
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        logger.error("%s%s", error.strerror or error, where, exc_info=debug)
        return 2
    except FloatingPointError as error:
        logger.error("%s", error)
        return 1
    except (MemoryError, RuntimeError) as error:
        explained = explain(error)
        if explained is None:
            raise
        status, words = explained
        logger.error("%s", words, exc_info=debug)
        return status
    except KeyboardInterrupt:
        logger.error("Stopped.")
        return 130
