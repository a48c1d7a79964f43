"""A page in the browser: a video, or a picture and a sound, and where the sound comes from.

    bash scripts/demo.sh                                  # then open http://127.0.0.1:7860
    bash scripts/demo.sh --checkpoints ckpts --runs runs --port 8000

Options and what is safe about it: docs/demo.md.
"""

import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from datasets.audio import AUDIO_SUFFIXES
from datasets.frames import FRAME_SUFFIXES, read_frame_size
from models.localiser import Localiser, load_localiser
from models.localiser import localise_video as write_heat_video
from models.released import PRETRAINED
from utils.options import Options, configure_logging, option, parse_group, run_command
from utils.training import use_full_float32

logger = logging.getLogger("demo")

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "data" / "stamps-small"
TITLE = "Visual sound source localisation"
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
MAX_MEGAPIXELS = 25  # of a picture
MAX_WAITING = 20  # visitors; more are turned away
HOUR = 3600  # seconds after which uploads and results are removed
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Nothing is reported, fetched or shared, whatever the user's own settings of the libraries are.
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SHARE": "False", "GRADIO_ALLOWED_PATHS": "",
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip
CLOSED = ("share", "inbrowser", "enable_monitoring", "run_history", "mcp_server", "ssr_mode", "pwa")


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Where the page is, what it offers, and how much it takes."""

    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 lets others in, who need no password"""
    port: int = option(7860, at_least=1, at_most=65535)
    """port to listen on"""
    checkpoints: Path = Path("ckpts")
    """folder with checkpoints: files of main.py and released ones"""
    runs: Path = Path("runs")
    """folder with the folders of training runs, whose best.pth and last.pth are offered too"""
    examples: Path | None = QUICKSTART if QUICKSTART.is_dir() else None
    """folder with videos, pictures with sounds of the same name, or a stamps set"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>"""
    max_mb: int = option(100, at_least=1)
    """largest upload, megabytes"""
    max_seconds: float = option(30.0, above=0)
    """of a video that are localised, from its beginning"""

    @property
    def models(self) -> dict[str, Path]:
        """Files that may hold a localiser, and SSPL's results folders, by the name to show."""
        encoders = {row.file_name for row in PRETRAINED.values()}
        files = [path for path in sorted(self.checkpoints.glob("[!.]*")) if path.name not in encoders]
        files = [p for p in files if p.suffix in (".pth", ".pt", ".tar") or (p / "sound_best.pth").is_file()]
        of_runs = sorted(path for path in self.runs.glob("*/*") if path.name in ("best.pth", "last.pth"))
        return {path.name: path for path in files} | {f"{p.parent.name}/{p.name}": p for p in of_runs}


def copy_examples(source: Path, folder: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Copy videos, and pictures with sounds, into a folder that visitors may read; return both lists."""
    patterns = ["[!.]*"]
    if (source / "stamps.json").is_file():
        patterns = [f"VGGSound_test/*/{clip}.*" for clip in (source / "test.txt").read_text().split()[:4]]
    files = [path for pattern in patterns for path in sorted(source.glob(pattern))]
    files = [p for p in files if p.suffix.lower() in (*AUDIO_SUFFIXES, *FRAME_SUFFIXES, *VIDEO_SUFFIXES)]
    copies = [Path(shutil.copy(path, folder)) for path in files]
    sounds = {path.stem: str(path) for path in copies if path.suffix.lower() in AUDIO_SUFFIXES}
    pictures = [path for path in copies if path.suffix.lower() in FRAME_SUFFIXES and path.stem in sounds]
    videos = [[str(path)] for path in copies if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos and not pictures:
        raise ValueError(f"--examples: {source} holds no video, and no picture with a sound of its name.")
    return videos, [[str(path), sounds[path.stem]] for path in pictures]


# As many as are compared; loaded again only if the file has changed.
load_once = lru_cache(maxsize=2)(lambda path, changed_at, device: load_localiser(path, device))


def launch_page(options: DemoOptions, uploads: Path, examples: Path) -> tuple[Any, str]:  # noqa: C901, PLR0915
    """Build and serve the page, with folders of uploads and of copied examples; return it and its address."""
    gr: Any = import_module("gradio")  # not above: it reads its settings from the environment now

    refusal = partial(gr.Error, print_exception=False)

    def uploads_only(component: Any) -> Any:  # noqa: ANN401 - a component of Gradio
        """Take no addresses: this computer fetches nothing on a visitor's behalf."""
        move = component.async_move_resource_to_block_cache

        async def checked(path: str, *arguments: Any) -> Any:  # noqa: ANN401
            if "://" in path:
                raise refusal("Upload the file itself, not its address.")
            return await move(path, *arguments)

        component.async_move_resource_to_block_cache = checked
        return component

    def localise(names: list[str], files: list[str], suffix: str, work: Callable[..., str]) -> list[Any]:
        """Let `work` write one result a model; return the words, two outputs and the CSV files."""
        if None in files or not names:
            raise refusal("Upload or record first, or take one of the examples, and choose a model.")
        words, shown = [], []
        peaks: list[str] = []
        for place, name in enumerate(names):
            if name not in options.models:
                raise refusal(f"There is no model {name!r} any more. Choose another one.")
            model = options.models[name]
            # In Gradio's folder, so that it serves the results and removes them when they are old.
            output = Path(tempfile.mkdtemp(dir=uploads)) / (re.sub(r"[^a-zA-Z0-9_.-]", "_", name) + suffix)
            try:
                localiser = load_once(model, model.stat().st_mtime_ns, options.device)
                words.append(f"{name}: {work(localiser, output, place / len(names), 1 / len(names))}")
            except (ValueError, OSError) as error:
                logger.warning("%s: %s", name, error)
                reason = str(error)  # visitors need not know where this computer keeps things
                for path in (*map(Path, files), model, output):
                    reason = reason.replace(f"{path.parent}{os.sep}", "")
                raise refusal(reason) from error
            shown.append(gr.update(value=str(output), label=name, visible=True))
            peaks += map(str, output.parent.glob("*.csv"))
        shown += [gr.update(value=None, visible=False)] * (2 - len(names))
        return ["\n\n".join(words), *shown, peaks]

    # Gradio looks for progress among the defaults.
    def localise_video(names, box, video, progress=gr.Progress()):  # noqa: ANN001, ANN202, B008
        def work(localiser: Localiser, output: Path, begin: float, share: float) -> str:
            def show(done: int, expected: int | None) -> None:
                progress(begin + share * (min(1.0, done / expected) if expected else 0.5))

            limit = options.max_seconds
            result = write_heat_video(
                localiser, Path(video), output, on_progress=show, box=box, max_seconds=limit
            )
            result.contact_sheet.unlink()
            words = f"{result.frames} frames, {result.seconds:.1f} s (at most the first {limit:g} s)"
            if result.silent_frames:
                words += f"; {result.silent_frames} frames without sound, on which nothing is drawn"
            return words

        return localise(names, [video], ".mp4", work)

    def localise_picture(names, box, picture, sound):  # noqa: ANN001, ANN202
        def work(localiser: Localiser, output: Path, *_: float) -> str:
            width, height = read_frame_size(Path(picture))
            if width * height > MAX_MEGAPIXELS * 10**6:
                raise ValueError(f"{width} x {height} pixels; at most {MAX_MEGAPIXELS} million are taken.")
            heat = localiser(picture, sound)
            heat.save(output, box=box)
            if heat.peak is None:
                return "the sound is silent, nothing is drawn" if heat.map is None else "no peak"
            return f"peak at x {heat.peak.x:.0f}, y {heat.peak.y:.0f}, similarity {heat.peak.similarity:.3f}"

        return localise(names, [picture, sound], ".png", work)[:-1]

    def results(component: Callable[..., Any], tab: str, **settings: object) -> list[Any]:
        """Make the place of the words and of two heat maps, the second of which is seen with two models."""
        settings |= {"label": "Heat map", "interactive": False, "height": 380, "buttons": ["download"]}
        words = gr.Markdown(elem_id=f"{tab}_words")
        with gr.Row():
            first = component(elem_id=f"{tab}_first", **settings)
            return [words, first, component(elem_id=f"{tab}_second", visible=False, **settings)]

    videos, pairs = copy_examples(options.examples, examples) if options.examples else ([], [])
    camera = {"sources": ["upload", "webcam"], "webcam_options": gr.WebcamOptions(mirror=False)}
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(HOUR // 6, HOUR)) as page:
        gr.Markdown(f"# {TITLE}\nWhere in the picture does the sound come from?")
        with gr.Row():
            names = [*options.models]
            two = {"multiselect": True, "max_choices": 2, "label": "Model, or two to compare"}
            models = gr.Dropdown(names, value=names[:1], elem_id="models", **two)
            box = gr.Checkbox(label="Box around the hottest region")
        page.load(lambda: gr.update(choices=[*options.models]), outputs=models, api_name=False)
        with gr.Tab("Video"), gr.Row():
            with gr.Column():
                video = uploads_only(gr.Video(label="Video with sound", elem_id="video_input", **camera))
                button = gr.Button("Localise", variant="primary", elem_id="localise_video")
                if videos:
                    gr.Examples(videos, [video], cache_examples=False)
            with gr.Column():
                outputs = [*results(gr.Video, "video"), gr.Files(label="Positions of the peak (CSV)")]
            button.click(localise_video, [models, box, video], outputs)
        with gr.Tab("Picture and sound"), gr.Row():
            with gr.Column():
                picture = uploads_only(gr.Image(type="filepath", elem_id="picture_input", **camera))
                sound = uploads_only(gr.Audio(label="Sound", type="filepath"))
                button = gr.Button("Localise", variant="primary")
                if pairs:
                    gr.Examples(pairs, [picture, sound], cache_examples=False)
            with gr.Column():
                outputs = results(gr.Image, "picture", type="filepath", format="png")
            button.click(localise_picture, [models, box, picture, sound], outputs)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    _, address, _ = page.launch(
        server_name=options.host, server_port=options.port, max_file_size=options.max_mb * 10**6,
        allowed_paths=[], blocked_paths=[str(ROOT)], prevent_thread_lock=True, quiet=True, footer_links=[],
        css="#video_input video, #picture_input img { max-height: 380px; }",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        **dict.fromkeys(CLOSED, False),
    )  # fmt: skip
    return page, address


def serve(options: DemoOptions) -> int:
    """Serve the page until Ctrl-C or SIGTERM, and return 0."""
    if not options.models:
        raise ValueError(
            f"There is no model in {options.checkpoints}/ or {options.runs}/. Train one with bash "
            "scripts/quickstart.sh, fetch a released one (ckpts/README.md), or name the folder with "
            "--checkpoints."
        )
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    if options.host not in LOOPBACK:
        logger.warning("%s: who reaches this computer can use the page, without password.", options.host)
    paths: dict[str, Any] = {
        name: path.resolve() for name, path in vars(options).items() if isinstance(path, Path)
    }
    use_full_float32()
    with tempfile.TemporaryDirectory(prefix="vssl-demo-") as name:
        uploads, examples = (Path(name).resolve() / part for part in ("uploads", "examples"))
        uploads.mkdir()
        examples.mkdir()
        no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy")), *LOOPBACK]))
        os.environ.update(SETTINGS, GRADIO_TEMP_DIR=str(uploads), NO_PROXY=no_proxy, no_proxy=no_proxy)
        os.chdir(name)  # Gradio may read from the working folder
        page, address = launch_page(replace(options, **paths), uploads, examples)
        sys.stdout.write(f"Open {address}  (Ctrl-C ends it)\n")
        sys.stdout.flush()
        stopped.wait()
        page.close()
    return 0


if __name__ == "__main__":
    configure_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # by which Gradio calls upon itself
    DROPPED = {
        "--timeout": "There is no second process to wait for; --max-seconds limits a video.",
        "--max-waiting": f"{MAX_WAITING} visitors may wait.",
    }
    SUMMARY = "Serves a page that localises sounds in one's own videos and pictures."
    sys.exit(run_command(lambda: serve(parse_group(DemoOptions, "demo.sh", SUMMARY, None, DROPPED))))
