"""The programs read like a few files: a run of either calls functions of few of ours."""

import sys
from pathlib import Path

from command_line import ROOT, scoring, training

import main


def files_of(program, arguments):
    """The files whose functions a finished run has called, without tests and libraries."""
    files = set()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_name not in ("<module>", "<lambda>"):
            files.add(code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        assert program(arguments) == 0
    finally:
        sys.setprofile(before)
    ours = {str(Path(name).relative_to(ROOT)) for name in files if Path(name).is_relative_to(ROOT)}
    return sorted(name for name in ours if name.endswith(".py") and not name.startswith(("tests", ".venv")))


def test_a_training_run_calls_functions_of_few_files(tiny_data, tmp_path):
    ours = files_of(main.main, training(tiny_data, tmp_path / "run", "--epochs", 1))
    assert {"main.py", "models/ssl_tie.py"} <= {*ours}
    assert len(ours) <= 20, "\n".join(ours)


def test_a_test_run_from_disk_to_page_calls_functions_of_few_files(
    checkpoint, testing_program, tiny_data, tmp_path
):
    ours = files_of(testing_program.main, scoring(tiny_data, checkpoint, tmp_path / "results"))
    assert (tmp_path / "results" / "report.html").exists()
    assert {"test.py", "models/ssl_tie.py"} <= {*ours}
    assert len(ours) <= 26, "\n".join(ours)
