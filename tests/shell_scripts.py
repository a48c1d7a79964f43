"""Runs the project's shell scripts, as users do or with the program in the test's own process."""

import contextlib
import importlib.util
import io
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOTS = {"VGGSOUND_ROOT": "/no/vgg", "FLICKR_ROOT": "/no/flickr",
         "VGGSOUND_TEST_ROOT": "/no/vgg_ss",
         "FLICKR_TEST_ROOT": "/no/flickr_test"}  # fmt: skip
RECORDER = '#!/bin/sh\nprintf "%s\\0" "$PYTHONPATH" "$@" >> "$RECORDED"; printf "\\0" >> "$RECORDED"\n'


def run(script, *arguments, cwd=ROOT, **variables):
    """A finished script, with its output as text."""
    environment = {k: v for k, v in os.environ.items() if k not in (*ROOTS, "CLIP_LIST")}
    return subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        cwd=cwd,
        env={**environment, "VSSL_PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass
class Starts:
    """Scripts whose programs run in this process: a program of its own takes seconds to import."""

    folder: Path
    """for what is recorded"""

    def __call__(self, script, *arguments, cwd=ROOT, **variables):
        """As `run`; status and output are those of all the programs that the script starts."""
        recorder, recorded = self.folder / "python", self.folder / "recorded"
        recorder.write_text(RECORDER)
        recorder.chmod(0o700)
        recorded.write_text("")
        environment = {"VSSL_PYTHON": str(recorder), "RECORDED": str(recorded)}
        finished = run(script, *arguments, cwd=cwd, **environment, **variables)
        if finished.returncode:
            return finished
        started = [part.split("\0") for part in recorded.read_text().split("\0\0")[:-1]]
        assert started, "the script starts no program"
        for path, isolation, program, *given in started:
            assert (path, isolation) == (str(ROOT), "-P")
            status, output, errors = run_here(Path(program), given)
            finished.returncode = max(finished.returncode, status)
            finished.stdout += output
            finished.stderr += errors
        return finished


def run_here(path, arguments):
    """Status, output and messages of main.py or test.py."""
    output, errors = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(errors)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = program_at(path).main(arguments)
    except SystemExit as stopped:  # argparse
        status = stopped.code
    finally:
        logging.getLogger().removeHandler(handler)
    return status, output.getvalue(), errors.getvalue()


@cache
def program_at(path):
    """The program as a module; test.py's name is that of a package of Python's own."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_program", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
