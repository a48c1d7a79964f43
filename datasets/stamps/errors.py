"""What can go wrong for a user; `__main__` prints these as one line and exits with 2."""


class StampsError(ValueError):
    """The set cannot be made as asked; the message says why and what to do."""


class MaterialUnavailableError(StampsError):
    """The real material cannot be had here and now (no apt-get, not offered, no network)."""


class MaterialRefusedError(StampsError):
    """The real material is there, but is not what was expected; never a reason to fall back."""
