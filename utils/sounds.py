"""Sounds inside a report's page."""

import base64


def render_player(mp3: bytes, label: str) -> str:
    """An HTML player with the sound inside; it loads nothing and starts silent.

    Args:
        mp3: the sound.
        label: its name for those who cannot see the page, escaped.
    """
    data = base64.b64encode(mp3).decode()
    source = f"data:audio/mpeg;base64,{data}"
    return f'<audio controls preload="none" aria-label="{label}" src="{source}"></audio>'
