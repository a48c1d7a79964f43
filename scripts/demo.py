"""A page in the browser: one's own video, or a picture and a sound, and where the sound comes from.

    bash scripts/demo.sh                                  # then open http://127.0.0.1:7860
    bash scripts/demo.sh --checkpoints ckpts --runs runs --port 8000

Options and what is safe about it: docs/demo.md.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scripts.demo_jobs import ROOT, Jobs, ModelProcess, find_models, worker_command
from utils.options import parse_group
from utils.reporting import configure_logging, run_command

logger = logging.getLogger("demo")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
STAMPS_SETS = ("data/stamps-small", "data/stamps-full")
"""Where the quickstart leaves its data set."""
LIBRARY_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_ALLOWED_PATHS": "",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Nothing is reported or fetched, whatever the user's own settings of the libraries are."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Where the page is, what it offers, and how much it takes."""

    model_python: Path
    """interpreter that has PyTorch; scripts/demo.sh names it"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 lets others in, who need no password"""
    port: int = 7860
    """port to listen on"""
    checkpoints: Path = Path("ckpts")
    """folder with checkpoints: files of main.py and released ones"""
    runs: Path = Path("runs")
    """folder with the folders of training runs, whose best.pth and last.pth are offered too"""
    examples: Path | None = None
    """folder with videos, pictures with sounds of the same name, or a stamps set; none: the
    quickstart's set where it is there, otherwise drawings"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>"""
    max_mb: int = 100
    """largest upload, megabytes"""
    max_seconds: float = 30.0
    """of a video that are localised, from its beginning"""
    max_waiting: int = 20
    """visitors that wait for their turn; more are turned away"""
    timeout: float = 600.0
    """seconds after which a request is given up"""

    def __post_init__(self) -> None:
        """Refuses limits that let nothing through."""
        limits = {
            "--max-mb": self.max_mb,
            "--max-seconds": self.max_seconds,
            "--max-waiting": self.max_waiting,
            "--timeout": self.timeout,
        }
        for flag, value in limits.items():
            if not value > 0:
                raise ValueError(f"{flag} must be above 0, got {value}")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"--port must be from 1 to 65535, got {self.port}")


def find_examples(given: Path | None) -> str | None:
    """Where the examples come from; None: they are to be drawn."""
    if given is not None:
        return str(given.resolve())
    sets = (ROOT / name for name in STAMPS_SETS)
    return next((str(folder) for folder in sets if (folder / "stamps.json").is_file()), None)


def serve(options: DemoOptions) -> int:
    """Serves the page until Ctrl-C or SIGTERM; returns 0.

    Raises:
        ValueError: there is no model, or the examples cannot be made.
        OSError: the port cannot be had.
    """
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    models = ModelProcess(worker_command(options.model_python.absolute(), options.device), options.timeout)
    with tempfile.TemporaryDirectory(prefix="vssl-demo-") as name:
        folder = Path(name).resolve()
        try:
            address = start(options, models, folder)
            sys.stdout.write(f"Open {address}  (Ctrl-C ends it)\n")
            sys.stdout.flush()
            stopped.wait()
        finally:
            models.close()
    return 0


def start(options: DemoOptions, models: ModelProcess, folder: Path) -> str:
    """Starts to serve the page; returns its address."""
    known = models.ask(task="hello")
    find = partial(find_models, options.checkpoints.resolve(), options.runs.resolve(), **known)
    if not find():
        raise ValueError(
            f"There is no model in {options.checkpoints}/ or {options.runs}/. Train one with bash "
            "scripts/quickstart.sh, fetch a released one (ckpts/README.md), or name the folder "
            "with --checkpoints."
        )
    uploads, examples = folder / "uploads", folder / "examples"
    uploads.mkdir()
    examples.mkdir()
    made = models.ask(task="examples", folder=str(examples), source=find_examples(options.examples))
    if options.host not in LOOPBACK:
        logger.warning(
            "%s: everyone who reaches this computer can use the page; it asks for no password.", options.host
        )
    os.environ.update(LIBRARY_ENVIRONMENT, GRADIO_TEMP_DIR=str(uploads))
    no_proxy = os.environ.get("NO_PROXY", os.environ.get("no_proxy", ""))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, [no_proxy, *LOOPBACK]))
    os.chdir(folder)  # Gradio may read from the working folder
    from scripts import demo_page  # noqa: PLC0415 - Gradio reads its environment when imported

    jobs = Jobs(models, find, folder / "results", limit=options.max_seconds)
    return demo_page.launch(
        demo_page.Page(jobs, made),
        host=options.host,
        port=options.port,
        max_mb=options.max_mb,
        max_waiting=options.max_waiting,
        root=ROOT,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status: 0, or 2 for bad input."""
    configure_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # by which Gradio calls upon itself
    summary = "Serves a page that localises sounds in one's own videos and pictures."
    return run_command(lambda: serve(parse_group(DemoOptions, "demo.sh", summary, arguments)))


if __name__ == "__main__":
    sys.exit(main())
