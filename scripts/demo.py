"""A page in the browser: a video, or a picture and a sound, and where the sound comes from.

bash scripts/demo.sh; options, and what is safe about it: docs/demo.md.
"""

import logging
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from datasets.audio import AUDIO_SUFFIXES
from datasets.frames import FRAME_SUFFIXES
from datasets.video import VIDEO_SUFFIXES
from models.localiser import HeatMap, Localiser, VideoMaps, load_localiser, localise_frames
from models.released import describe_file, find_checkpoints
from scripts.stamps.compose import write_examples
from utils.files import BrokenFileError, decoding
from utils.options import Options, option, parse_group, run_command
from utils.reports.visualisation import WEAK, is_weak, similarity_range

logger = logging.getLogger("demo")

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "data" / "stamps-small"
TITLE = "Visual sound source localisation"
ABOUT = """\
- **What it does.** It takes a video, or a picture and a sound, and shows where the sound comes from.
- **Colours and numbers.** The brighter, the more alike are place and sound. The numbers are similarities,
1 at most; a whole video and both models have one scale, on which low ones do not glow.
- **Limits.** A model knows the kinds of sounds that it was trained on. It marks a place even if what sounds
is not in the picture; then the similarities are low."""
CSS = """
#video_input video, #picture_input img { max-height: 380px; }
#picture_first img, #picture_second img { width: 100%; height: 100%; object-fit: contain; }
[id$=examples] .grid-wrap { min-height: 0 !important; padding-top: 2.5rem; }
[id$=examples] .grid-container { grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)) !important; }
[id$=examples] .caption-label { white-space: normal; }
"""
SCROLL = "(...all) => (document.querySelector('#%s_first').scrollIntoView({block: 'nearest'}), all)"
# By the kind of an UnusableVideoError; other files that cannot be decoded have the last words.
REFUSALS = {
    "no_video_stream": "has no moving picture. For a picture and a sound there is the other tab.",
    "no_audio_stream": "has no sound, so there is nothing to localise.",
    "": "cannot be read: it is damaged, or of a kind that is not known here.",
}
MAX_PIXELS = 25_000_000  # of a picture
MAX_WAITING = 20  # visitors; more are turned away
HOUR = 3600  # seconds after which uploads and results are removed
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Nothing is reported, fetched or shared, whatever the user's own settings of the libraries are.
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_ALLOWED_PATHS": "", "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Where the page is, what it offers, and how much it takes."""

    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 lets others in, who need no password
    port: int = option(7860, at_least=1, at_most=65535)  # port to listen on
    checkpoints: Path = ROOT / "ckpts"
    """folder with checkpoints at any depth: files of main.py and released ones"""
    runs: Path = ROOT / "runs"  # folder with runs at any depth, whose best.pth and last.pth are offered too
    examples: Path | None = QUICKSTART if QUICKSTART.is_dir() else None
    """folder with videos, pictures with sounds of the same name, or a stamps set; without, drawn ones"""
    device: str = "auto"  # auto, cpu, cuda or cuda:<number>
    max_mb: int = option(100, at_least=1)  # largest upload, megabytes
    max_seconds: float = option(30.0, above=0)  # of a video that are localised, from its beginning
    threshold: float | None = option(None, at_least=-1, at_most=1)
    """universal threshold of test.py negatives, below which nothing glows"""

    @property
    def models(self) -> dict[str, Path]:
        """Files that may hold a localiser, and SSPL's results folders, by the name to show."""
        models: dict[str, Path] = {}
        for folder, pattern in ((self.checkpoints, r".*\.(pth|pt|tar)"), (self.runs, r"(best|last)\.pth")):
            models |= {str(p.relative_to(folder.parent)): p for p in find_checkpoints(folder, pattern)}
        return models


def prepare_examples(source: Path | None, folder: Path) -> tuple[list[tuple[Path]], list[tuple[Path, Path]]]:
    """Copy, compose of a stamps set, or draw (None) what visitors may read: videos, pictures with sounds."""
    if source is None or (source / "stamps.json").is_file():
        write_examples(source, folder)
    else:
        for path in source.glob("[!.]*"):
            if path.suffix.lower() in (*AUDIO_SUFFIXES, *FRAME_SUFFIXES, *VIDEO_SUFFIXES):
                shutil.copy(path, folder)
    files = sorted(folder.iterdir())
    sounds = {path.stem: path for path in files if path.suffix.lower() in AUDIO_SUFFIXES}
    videos = [(path,) for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [path for path in files if path.suffix.lower() in FRAME_SUFFIXES and path.stem in sounds]
    if not videos and not pictures:
        raise ValueError(f"--examples: {source} holds no video, and no picture with a sound of its name.")
    return videos, [(path, sounds[path.stem]) for path in pictures]


# Read again only if the file has changed. As many are loaded as are compared.
describe_once = lru_cache(maxsize=1000)(lambda path, changed_at: describe_file(path, ROOT))
load_once = lru_cache(maxsize=2)(lambda path, changed_at, device: load_localiser(path, device))


def launch_page(options: DemoOptions, uploads: Path, examples: Path) -> tuple[Any, str]:  # noqa: C901, PLR0915
    """Build and serve the page, with folders of uploads and of copied examples; return it and its address."""
    gr: Any = import_module("gradio")  # not above: it reads its settings from the environment now

    refusal = partial(gr.Error, print_exception=False)

    def accept_uploads_only(component: Any) -> None:  # noqa: ANN401 - of Gradio
        """Take no addresses: this computer fetches nothing on a visitor's behalf."""
        move = component.async_move_resource_to_block_cache

        async def checked(path: str, *arguments: Any) -> Any:  # noqa: ANN401
            if "://" in path:
                raise refusal("Upload the file itself, not its address.")
            return await move(path, *arguments)

        component.async_move_resource_to_block_cache = checked

    def show_models(names: list[str] | None = None) -> tuple[Any, str]:
        """Return the choices, trained ones and the latest first, and lines on the chosen; None: the first."""
        told = {name: describe_once(path, path.stat().st_mtime_ns) for name, path in options.models.items()}
        order = sorted(told, key=lambda name: (told[name][1] != "", -options.models[name].stat().st_mtime_ns))
        names = order[:1] if names is None else names
        choices = [(f"{name} ({told[name][1]})".removesuffix(" ()"), name) for name in order]
        lines = (f"- **{name}**: {told[name][0]}." for name in names if name in told)
        return gr.update(choices=choices, value=names), "\n".join(lines)

    def localise(names: Any, box: bool, files: list[str], suffix: str, find: Any, draw: Any) -> list[Any]:  # noqa: ANN401
        """Find all models' maps, then draw them on one scale; return words, two outputs and the CSV files."""
        if None in files or not 1 <= len(names or []) <= 2 or not options.models.keys() >= set(names):
            raise refusal("Choose one model or two, then upload or record, or take an example.")
        words, shown, peaks = [], [], list[str]()
        try:
            paths = [options.models[name] for name in names]
            models = [load_once(path, path.stat().st_mtime_ns, options.device) for path in paths]
            found = [find(model) for model in models]
            scale = similarity_range(one for _, maps in found for one in maps)
            for name, model, (result, _) in zip(names, models, found, strict=True):
                # In Gradio's folder, so that it serves the results and removes them when they are old.
                folder = Path(tempfile.mkdtemp(dir=uploads))
                output = folder / (re.sub(r"[^\w.-]", "_", name) + suffix)
                how = {"scale": scale, "threshold": model.cosine(options.threshold), "box": box}
                words.append(f"**{name}**: {draw(result, output, **how)}")
                shown.append(gr.update(value=str(output), label=name, visible=True))
                peaks += map(str, folder.glob("*.csv"))
        except BrokenFileError as error:
            logger.warning("%s", error)
            reason = REFUSALS.get(getattr(error, "kind", ""), REFUSALS[""])
            raise refusal(f"{Path(str(error.path)).name} {reason}") from error
        except gr.Error:
            raise
        except Exception as error:  # visitors need not know how this computer works
            logger.exception("%s", names)
            raise refusal("That did not work, for a reason that only the page's terminal shows.") from error
        shown += [gr.update(value=None, visible=False)] * (2 - len(names))
        return ["\n\n".join(words), *shown, gr.update(value=peaks, visible=bool(peaks))]

    def localise_video(names, box, video, progress=gr.Progress()):  # noqa: ANN001, ANN202, B008
        longest = options.max_seconds

        def find(model: Localiser) -> tuple[VideoMaps, Sequence[Any]]:
            how: Any = {"on_progress": lambda *done: progress(done, "Localising"), "max_seconds": longest}
            return (maps := localise_frames(model, Path(video), **how)), maps.maps

        def draw(maps: VideoMaps, output: Path, **how: Any) -> str:  # noqa: ANN401
            result = maps.draw(output, on_progress=lambda *done: progress(done, "Drawing"), **how)
            result.contact_sheet.unlink()
            counts = {"frames": result.frames, "silent": result.silent_frames, WEAK: result.weak_frames}
            said = [f"{count} {what}" for what, count in counts.items() if count]
            return "; ".join(said + [f"only the first {longest:g} s"] * (result.seconds > longest - 0.1))

        return localise(names, box, [video], ".mp4", find, draw)

    def localise_picture(names, box, picture, sound):  # noqa: ANN001, ANN202
        def find(model: Localiser) -> tuple[HeatMap, Sequence[Any]]:
            with decoding(Path(picture)), Image.open(picture) as opened:  # its header only
                num_pixels = math.prod(opened.size)
            if num_pixels > MAX_PIXELS:
                raise refusal(f"The picture is too large: {MAX_PIXELS // 10**6} million pixels at most.")
            return (heat := model(picture, sound)), [heat.map]

        def draw(heat: HeatMap, output: Path, **how: Any) -> str:  # noqa: ANN401
            heat.save(output, **how)
            if heat.peak is None:
                return "the sound is silent: nothing is drawn" if heat.map is None else "no place stands out"
            x, y, similarity = heat.peak
            weak = f"; {WEAK}" * is_weak(heat.map, how["threshold"])
            return f"hottest at x {x:.0f}, y {y:.0f} pixels: similarity {similarity:.3f}{weak}"

        return localise(names, box, [picture, sound], ".png", find, draw)

    def add_tab(title: str, kind: str, found: list[Any], work: Callable[..., Any], places: list[Any]) -> None:
        """Add a tab: inputs, button and examples to the left; words and one or two heat maps to the right."""
        look = {"label": "Heat map", "interactive": False, "height": 380, "buttons": ["download"]}
        with gr.Tab(title), gr.Row():
            with gr.Column():
                for place in places:
                    place.render()
                button = gr.Button("Localise", variant="primary", elem_id=f"localise_{kind}")
                shown = [(str(files[0]), files[0].stem) for files in found]
                looks = {"allow_preview": False, "buttons": [], "visible": bool(found)}
                gallery = gr.Gallery(shown, label="Examples: click one", elem_id=f"{kind}_examples", **looks)
            with gr.Column():
                outputs, component = [gr.Markdown(elem_id=f"{kind}_words")], type(places[0])
                with gr.Row():
                    for name in ("first", "second"):  # the latter is seen with two models
                        outputs.append(component(elem_id=f"{kind}_{name}", visible=name == "first", **look))
                outputs.append(gr.Files(label="Positions of the peak (CSV)", visible=False))

        def fill(event: gr.SelectData) -> dict[Any, str]:
            return dict(zip(places, map(str, found[event.index]), strict=True))

        called = {"fn": work, "inputs": [models, box, *places], "outputs": outputs, "js": SCROLL % kind}
        button.click(**called)
        gallery.select(fill, None, places, **private).then(**called, **private)

    private = {"api_visibility": "private"}
    videos, pairs = prepare_examples(options.examples, examples)
    camera = {"sources": ["upload", "webcam"], "webcam_options": gr.WebcamOptions(mirror=False)}
    video = gr.Video(label="Video with sound", elem_id="video_input", render=False, **camera)
    picture = gr.Image(label="Picture", type="filepath", elem_id="picture_input", render=False, **camera)
    sound = gr.Audio(label="Sound", type="filepath", render=False)
    for place in (video, picture, sound):
        accept_uploads_only(place)
    picture.preprocess = lambda data: data and data.path  # what cannot be read is then said in words
    with gr.Blocks(title=TITLE, delete_cache=(HOUR // 6, HOUR)) as page:
        gr.Markdown(f"# {TITLE}\n{ABOUT}")
        update, lines = show_models()
        settings = {"label": "Model, or two to compare", "multiselect": True, "max_choices": 2}
        models = gr.Dropdown(update["choices"], value=update["value"], elem_id="models", **settings)
        models.preprocess = lambda names: names  # `localise` says in words that a model is not there
        box = gr.Checkbox(label="Box around the hottest region")
        about = gr.Markdown(lines, elem_id="about")
        page.load(show_models, models, [models, about], **private)
        models.input(show_models, models, [models, about], **private)
        add_tab("Video", "video", videos, localise_video, [video])
        add_tab("Picture and sound", "picture", pairs, localise_picture, [picture, sound])
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    return page, page.launch(
        server_name=options.host, server_port=options.port, max_file_size=options.max_mb * 10**6, css=CSS,
        blocked_paths=[str(ROOT)], prevent_thread_lock=True, quiet=True, footer_links=[], share=False,
        enable_monitoring=False, run_history=False, mcp_server=False, ssr_mode=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )[1]  # fmt: skip


def serve(options: DemoOptions) -> int:
    """Serve the page until Ctrl-C or SIGTERM, and return 0."""
    if not options.models:
        raise ValueError(
            f"There is no model in {options.checkpoints}/ or {options.runs}/. Train one (bash scripts/"
            "quickstart.sh), fetch one (ckpts/README.md), or name the folder with --checkpoints."
        )
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    if options.host not in LOOPBACK:
        logger.warning("%s: who reaches this computer can use the page, without password.", options.host)
    paths: Any = {name: path.resolve() for name, path in vars(options).items() if isinstance(path, Path)}
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
    logging.getLogger("httpx").setLevel(logging.WARNING)  # by which Gradio calls upon itself
    SUMMARY = "Serves a page that localises sounds in one's own videos and pictures."
    sys.exit(run_command(lambda: serve(parse_group(DemoOptions, "demo.sh", SUMMARY, None))))
