import base64
import re

from utils.sounds import render_player


def test_the_player_holds_the_sound_and_waits():
    player = render_player(b"abc", "sound of x")
    assert base64.b64decode(re.search(r"base64,([^\"]*)", player)[1]) == b"abc"
    assert 'preload="none"' in player and "controls" in player and "autoplay" not in player
    assert 'aria-label="sound of x"' in player
