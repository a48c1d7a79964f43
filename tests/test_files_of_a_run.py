"""A training run reads like a few files: it calls functions of at most 20 of ours."""

import sys
from pathlib import Path

import pytest
from test_end_to_end import SMALL

import main

ROOT = Path(__file__).parents[1]


@pytest.mark.usefixtures("one_thread")
def test_a_training_run_calls_functions_of_few_files(tiny_data, tmp_path):
    files = set()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_name not in ("<module>", "<lambda>"):
            files.add(code.co_filename)

    words = ["--train-set", "vggsound", "--data-root", tiny_data.root, "--output", tmp_path / "run", *SMALL]
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        assert main.main(["ssl_tie", *map(str, [*words, "--epochs", 1])]) == 0
    finally:
        sys.setprofile(before)
    ours = {Path(name).relative_to(ROOT) for name in files if Path(name).is_relative_to(ROOT)}
    ours = {name for name in ours if name.parts[0] not in ("tests", ".venv")}
    assert Path("main.py") in ours and Path("models/ssl_tie.py") in ours
    assert len(ours) <= 20, "\n".join(sorted(map(str, ours)))
