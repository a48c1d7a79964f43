"""Logging, and turning errors into messages."""

import logging
import os
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


def run_command(command: Callable[[], int]) -> int:
    """Runs a command; what the user can mend becomes one message and exit status 2.

    VSSL_DEBUG=1 shows the traceback as well.

    Args:
        command: returns an exit status.
    """
    try:
        return command()
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        logger.error("%s", error, exc_info=bool(os.environ.get("VSSL_DEBUG")))
        return 2
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        logger.error("%s%s", error.strerror or error, where)
        return 2
    except FloatingPointError as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.error("Stopped.")
        return 130
