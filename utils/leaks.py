"""Whether clips were used for more than one purpose."""

from collections.abc import Collection
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Leak:
    """The result of a leak check; goes into every result."""

    checked: bool
    """False when the training clips are not known"""
    num_clips: int | None
    """clips in both lists"""
    first: tuple[str, ...]
    """the first five of them"""
    message: str

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def find_leak(training_clips: Collection[str] | None, scored_clips: Collection[str], *, purpose: str) -> Leak:
    """Compares the training list with a list that is scored.

    Args:
        training_clips: ids; None when not known.
        scored_clips: ids.
        purpose: what the second list is for, e.g. "test".
    """
    if training_clips is None:
        message = (
            "The checkpoint does not say which clips it was trained on, so the overlap with the "
            f"{purpose} list could not be checked; name its list with --training-list."
        )
        return Leak(checked=False, num_clips=None, first=(), message=message)
    shared = sorted(set(training_clips) & set(scored_clips))
    if not shared:
        return Leak(True, 0, (), f"No {purpose} clip was trained on.")
    message = (
        f"LEAK: {len(shared)} of {len(scored_clips)} {purpose} clips are in the training list, "
        f"first: {', '.join(shared[:5])}. The scores are not those of unseen clips."
    )
    return Leak(True, len(shared), tuple(shared[:5]), message)
