"""What goes wrong with files."""


class BrokenFileError(ValueError):
    """A file, or a row of one, exists but cannot be decoded."""

    def __init__(self, path: object, reason: str) -> None:
        """Names the file and the decoder's words.

        Args:
            path: the file, or the row of an HDF5 file.
            reason: what the decoder said.
        """
        super().__init__(path, reason)  # both, so that it survives pickling between processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.path} cannot be read: {self.reason}"
