"""What goes wrong with files."""

from pathlib import Path


class BrokenFileError(ValueError):
    """A file exists but cannot be decoded."""

    def __init__(self, path: Path, reason: str) -> None:
        """Names the file and the decoder's words.

        Args:
            path: the file.
            reason: what the decoder said.
        """
        super().__init__(path, reason)  # both, so that it survives pickling between processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.path} cannot be read: {self.reason}"
