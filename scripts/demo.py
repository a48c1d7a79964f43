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
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets.audio import AUDIO_SUFFIXES
from datasets.frames import FRAME_SUFFIXES, read_frame_size
from models.localiser import Localiser, load_localiser
from models.localiser import localise_video as write_video_with_heat
from models.released import PRETRAINED
from utils.options import Options, option, parse_group
from utils.training import configure_logging, run_command, use_full_float32

logger = logging.getLogger("demo")

ROOT = Path(__file__).resolve().parents[1]
TITLE = "Visual sound source localisation"
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
MAX_MEGAPIXELS = 25  # of a picture
HOUR = 3600  # seconds after which uploads and results are removed
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Nothing is reported, fetched or shared, whatever the user's own settings of the libraries are.
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SHARE": "False", "GRADIO_ALLOWED_PATHS": "",
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip


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
    examples: Path | None = None
    """folder with videos, pictures with sounds of the same name, or a stamps set; none: the
    quickstart's set where it is there"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>"""
    max_mb: int = option(100, at_least=1)
    """largest upload, megabytes"""
    max_seconds: float = option(30.0, above=0)
    """of a video that are localised, from its beginning"""
    max_waiting: int = option(20, at_least=1)
    """visitors that wait for their turn; more are turned away"""

    @property
    def models(self) -> dict[str, Path]:
        """Files that may hold a localiser, and SSPL's results folders, by the name to show."""
        encoders = {row.file_name for row in PRETRAINED.values()}
        models = {}
        for path in sorted(self.checkpoints.glob("*")):
            is_file = path.is_file() and path.name.endswith((".pth", ".pt", ".tar"))
            if (is_file and path.name not in encoders) or (path / "sound_best.pth").is_file():
                models[path.name] = path.resolve()
        of_runs = sorted(path for path in self.runs.glob("*/*") if path.name in ("best.pth", "last.pth"))
        return models | {f"{path.parent.name}/{path.name}": path.resolve() for path in of_runs}


def copy_examples(source: Path | None, folder: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Copy videos, and pairs of picture and sound, into a folder that visitors may read.

    Raises:
        ValueError: a folder was named, and holds neither.
    """
    if source is None:
        sets = (ROOT / "data" / name for name in ("stamps-small", "stamps-full"))
        source = next((path for path in sets if (path / "stamps.json").is_file()), None)
        if source is None:
            return [], []
    if (source / "stamps.json").is_file():
        test, clips = source / "VGGSound_test", (source / "test.txt").read_text().split()[:4]
        pairs = [(test / "frame" / f"{clip}.jpg", test / "audio" / f"{clip}.wav") for clip in clips]
        videos = []
    else:
        files = sorted(path for path in source.glob("*") if path.is_file())
        sounds = {path.stem: path for path in files if path.suffix.lower() in AUDIO_SUFFIXES}
        pictures = [path for path in files if path.suffix.lower() in FRAME_SUFFIXES]
        pairs = [(path, sounds[path.stem]) for path in pictures if path.stem in sounds]
        videos = [(path,) for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos and not pairs:
        raise ValueError(
            f"--examples: {source} holds neither a video ({', '.join(VIDEO_SUFFIXES)}), nor a picture and a "
            "sound of the same name, nor a stamps set."
        )
    copies = [[[str(shutil.copy(path, folder)) for path in one] for one in kind] for kind in (videos, pairs)]
    return copies[0], copies[1]


@lru_cache(maxsize=2)  # as many as are compared
def load_once(path: Path, changed_at: int, device: str) -> Localiser:
    """Load a model, again only if its file has changed."""
    del changed_at
    return load_localiser(path, device)


def launch_page(options: DemoOptions, uploads: Path, examples: Path) -> tuple[Any, str]:  # noqa: C901, PLR0915
    """Build and serve the page; return it and its address.

    Args:
        options: of the program, with absolute paths.
        uploads: folder of uploads and results.
        examples: folder to copy the examples into.
    """
    import gradio as gr  # noqa: PLC0415 - it reads its settings from the environment now

    def refusal(words: str) -> gr.Error:
        return gr.Error(words, print_exception=False)

    def uploads_only(component: Any) -> Any:  # noqa: ANN401 - a component of Gradio
        """Take no addresses: this computer fetches nothing on a visitor's behalf."""
        move = component.async_move_resource_to_block_cache

        async def checked(path: str, *arguments: Any) -> Any:  # noqa: ANN401
            if "://" in path:
                raise refusal("Upload the file itself, not its address.")
            return await move(path, *arguments)

        component.async_move_resource_to_block_cache = checked
        return component

    def localise(
        first: str, second: str, files: list[str], work: Callable[..., str], suffix: str
    ) -> list[Any]:
        """Let `work` write one result a model; return the words, two outputs and the CSV files."""
        words: list[str] = []
        outputs: list[Any] = []
        peaks: list[str] = []
        names = [first] if second in ("none", first) else [first, second]
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
            outputs.append(gr.update(value=str(output), label=name, visible=True))
            peaks += map(str, output.parent.glob("*.csv"))
        outputs += [gr.update(value=None, visible=False)] * (2 - len(outputs))
        return ["\n\n".join(words), *outputs, peaks]

    def localise_video(
        video: str | None, first: str, second: str, box: bool, smoothing: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio looks for this default
    ) -> list[Any]:  # fmt: skip
        if video is None:
            raise refusal("Upload or record a video first, or take one of the examples.")

        def work(localiser: Localiser, output: Path, begin: float, share: float) -> str:
            def show(done: int, expected: int | None) -> None:
                progress(begin + share * (min(1.0, done / expected) if expected else 0.5))

            limit = options.max_seconds
            result = write_video_with_heat(
                localiser,
                Path(video),
                output,
                box=box,
                on_progress=show,
                smoothing=smoothing,
                max_seconds=limit,
            )
            words = f"{result.frames} frames, {result.seconds:.1f} s"
            if result.seconds > limit - 1:
                words += f"; the demo localises the first {limit:g} s"
            if result.silent_frames:
                words += f"; {result.silent_frames} frames without sound, on which nothing is drawn"
            return words

        return localise(first, second, [video], work, ".mp4")

    def localise_picture(
        picture: str | None, sound: str | None, first: str, second: str, box: bool
    ) -> list[Any]:
        if picture is None or sound is None:
            raise refusal("Give a picture and a sound first, or take one of the examples.")

        def work(localiser: Localiser, output: Path, *_: float) -> str:
            width, height = read_frame_size(Path(picture))
            if width * height > MAX_MEGAPIXELS * 10**6:
                raise ValueError(
                    f"The picture has {width} x {height} pixels; at most {MAX_MEGAPIXELS} million."
                )
            heat = localiser(picture, sound)
            heat.save(output, box=box)
            if heat.peak is None:
                return "the sound is silent, nothing is drawn" if heat.map is None else "no peak"
            return f"peak at x {heat.peak.x:.0f}, y {heat.peak.y:.0f}, similarity {heat.peak.similarity:.3f}"

        return localise(first, second, [picture, sound], work, ".png")[:-1]

    def refresh() -> list[Any]:
        return [gr.update(choices=[*options.models]), gr.update(choices=["none", *options.models])]

    videos, pairs = copy_examples(options.examples, examples)
    names = [*options.models]
    camera: dict[str, Any] = {"webcam_options": gr.WebcamOptions(mirror=False)}
    drawn: dict[str, Any] = {"label": "Heat map", "interactive": False, "height": 380}
    shown: list[Any]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(HOUR // 6, HOUR)) as page:
        gr.Markdown(f"# {TITLE}\nWhere in the picture does the sound come from?")
        with gr.Row():
            first = gr.Dropdown(names, value=names[0], label="Model", elem_id="first_model")
            second = gr.Dropdown(["none", *names], value="none", label="Compare with", elem_id="second_model")
            box = gr.Checkbox(label="Box around the hottest region")
        with gr.Tab("Video"), gr.Row():
            with gr.Column():
                camera |= {"sources": ["upload", "webcam"]}
                video = gr.Video(
                    label="Video with sound", include_audio=True, elem_id="video_input", **camera
                )
                smoothing = gr.Slider(0, 2, value=0, step=0.1, label="Smoothing over time, seconds")
                button = gr.Button("Localise", variant="primary", elem_id="localise_video")
                if videos:
                    gr.Examples(videos, [video], cache_examples=False)
            with gr.Column():
                words = gr.Markdown(elem_id="video_words")
                with gr.Row():
                    drawn |= {"buttons": ["download"]}
                    shown = [gr.Video(elem_id="video_first", **drawn)]
                    shown += [gr.Video(elem_id="video_second", visible=False, **drawn)]
                peaks = gr.Files(label="Positions of the peak (CSV)", elem_id="video_peaks")
        inputs = [uploads_only(video), first, second, box, smoothing]
        button.click(localise_video, inputs, [words, *shown, peaks], api_name="localise_video")
        with gr.Tab("Picture and sound"), gr.Row():
            with gr.Column():
                camera |= {"sources": ["upload", "webcam", "clipboard"]}
                picture = gr.Image(label="Picture", type="filepath", elem_id="picture_input", **camera)
                sound = gr.Audio(label="Sound", type="filepath", elem_id="sound_input")
                button = gr.Button("Localise", variant="primary", elem_id="localise_picture")
                if pairs:
                    gr.Examples(pairs, [picture, sound], cache_examples=False)
            with gr.Column():
                words = gr.Markdown(elem_id="picture_words")
                with gr.Row():
                    drawn |= {"type": "filepath", "format": "png", "buttons": ["download", "fullscreen"]}
                    shown = [gr.Image(elem_id="picture_first", **drawn)]
                    shown += [gr.Image(elem_id="picture_second", visible=False, **drawn)]
        inputs = [uploads_only(picture), uploads_only(sound), first, second, box]
        button.click(localise_picture, inputs, [words, *shown], api_name="localise_picture")
        page.load(refresh, outputs=[first, second], api_name=False)  # type: ignore[arg-type]
    page.queue(max_size=options.max_waiting, default_concurrency_limit=1)
    _, address, _ = page.launch(
        server_name=options.host,
        server_port=options.port,
        max_file_size=options.max_mb * 10**6,
        allowed_paths=[],
        blocked_paths=[str(ROOT)],
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        css="#video_input video, #picture_input img { max-height: 380px; }",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        **dict.fromkeys(
            ("share", "inbrowser", "enable_monitoring", "run_history", "mcp_server", "ssr_mode", "pwa"), False
        ),
    )
    return page, address


def serve(options: DemoOptions) -> int:
    """Serve the page until Ctrl-C or SIGTERM, and return 0.

    Raises:
        ValueError: there is no model, or there are no examples where there should be.
        OSError: the port cannot be had.
    """
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
        logger.warning(
            "%s: everyone who reaches this computer can use the page without a password.", options.host
        )
    paths = ("checkpoints", "runs", "examples")
    absolute = {name: path.resolve() for name in paths if (path := getattr(options, name)) is not None}
    use_full_float32()
    with tempfile.TemporaryDirectory(prefix="vssl-demo-") as name:
        uploads, examples = Path(name).resolve() / "uploads", Path(name).resolve() / "examples"
        uploads.mkdir()
        examples.mkdir()
        own_proxy = os.environ.get("NO_PROXY", os.environ.get("no_proxy", ""))
        no_proxy = ",".join(filter(None, [own_proxy, *LOOPBACK]))
        os.environ.update(SETTINGS, GRADIO_TEMP_DIR=str(uploads), NO_PROXY=no_proxy, no_proxy=no_proxy)
        os.chdir(name)  # Gradio may read from the working folder
        page, address = launch_page(replace(options, **absolute), uploads, examples)
        sys.stdout.write(f"Open {address}  (Ctrl-C ends it)\n")
        sys.stdout.flush()
        stopped.wait()
        page.close()
    return 0


if __name__ == "__main__":
    configure_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # by which Gradio calls upon itself
    SUMMARY = "Serves a page that localises sounds in one's own videos and pictures."
    sys.exit(run_command(lambda: serve(parse_group(DemoOptions, "demo.sh", SUMMARY, None))))
