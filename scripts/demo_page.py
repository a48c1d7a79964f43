"""The demo's page: a video, or a picture and a sound, one model or two, and what they localise.

Must be imported after scripts/demo.py has set Gradio's environment.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from scripts.demo_jobs import JobError, Jobs, Localised

logger = logging.getLogger("demo")

TITLE = "Visual sound source localisation"
NO_SECOND = "none"
CACHE_SECONDS = 3600
"""After which uploads are removed."""
FONTS = ("system-ui", "sans-serif")
MONOSPACED = ("ui-monospace", "monospace")
HEIGHT = 380
"""Of videos and pictures, pixels."""
CSS = f"""
#video_input video, #picture_input img {{ max-height: {HEIGHT}px; }}
"""


def _error(words: str) -> gr.Error:
    """What the page shows; it is nothing that the program's log must explain."""
    return gr.Error(words, print_exception=False)


async def _refuse_addresses(move: Callable[..., Any], path: str, *arguments: Any) -> Any:  # noqa: ANN401
    """Files come by upload only: this computer fetches nothing on a visitor's behalf."""
    if "://" in path:
        raise _error("Upload the file itself, not its address.")
    return await move(path, *arguments)


def _uploads_only(component: Any) -> Any:  # noqa: ANN401 - a component of Gradio
    move = component.async_move_resource_to_block_cache

    async def checked(path: str, *arguments: Any) -> Any:  # noqa: ANN401
        return await _refuse_addresses(move, path, *arguments)

    component.async_move_resource_to_block_cache = checked
    return component


class Page:
    """The page's parts and what they do."""

    def __init__(self, jobs: Jobs, examples: dict[str, list[list[str]]]) -> None:
        """Builds the page.

        Args:
            jobs: do the work.
            examples: videos and pairs, see scripts/demo_examples.py.
        """
        self._jobs = jobs
        self.blocks = gr.Blocks(
            title=TITLE, analytics_enabled=False, delete_cache=(CACHE_SECONDS // 6, CACHE_SECONDS)
        )
        with self.blocks:
            gr.Markdown(f"# {TITLE}\nWhere in the picture does the sound come from?")
            with gr.Row():
                names = list(jobs.find())
                self._first = gr.Dropdown(names, value=names[0], label="Model", elem_id="first_model")
                self._second = gr.Dropdown(
                    [NO_SECOND, *names], value=NO_SECOND, label="Compare with", elem_id="second_model"
                )
                self._box = gr.Checkbox(label="Box around the hottest region")
            with gr.Tab("Video"):
                self._build_video(examples["videos"])
            with gr.Tab("Picture and sound"):
                self._build_picture(examples["pairs"])
            self.blocks.load(self._refresh, outputs=[self._first, self._second], api_name=False)  # type: ignore[arg-type]

    def _build_video(self, examples: list[list[str]]) -> None:
        with gr.Row():
            with gr.Column():
                video = _uploads_only(
                    gr.Video(
                        label="Video with sound",
                        sources=["upload", "webcam"],
                        buttons=["download"],
                        include_audio=True,
                        webcam_options=gr.WebcamOptions(mirror=False),
                        elem_id="video_input",
                    )
                )
                smoothing = gr.Slider(0, 2, value=0, step=0.1, label="Smoothing over time, seconds")
                button = gr.Button("Localise", variant="primary", elem_id="localise_video")
                if examples:
                    gr.Examples(examples, [video], cache_examples=False)
            with gr.Column():
                words = gr.Markdown(elem_id="video_words")
                with gr.Row():
                    shown = [
                        gr.Video(
                            label="Heat map",
                            height=HEIGHT,
                            buttons=["download"],
                            interactive=False,
                            elem_id=name,
                            visible=visible,
                        )
                        for name, visible in (("video_first", True), ("video_second", False))
                    ]
                peaks = gr.Files(label="Positions of the peak (CSV)", elem_id="video_peaks")
        button.click(
            self._localise_video,
            [video, self._first, self._second, self._box, smoothing],
            [words, *shown, peaks],
            api_name="localise_video",
        )

    def _build_picture(self, examples: list[list[str]]) -> None:
        with gr.Row():
            with gr.Column():
                picture = _uploads_only(
                    gr.Image(
                        label="Picture",
                        type="filepath",
                        sources=["upload", "webcam", "clipboard"],
                        buttons=["fullscreen"],
                        webcam_options=gr.WebcamOptions(mirror=False),
                        elem_id="picture_input",
                    )
                )
                sound = _uploads_only(
                    gr.Audio(
                        label="Sound",
                        type="filepath",
                        sources=["upload", "microphone"],
                        buttons=["download"],
                        elem_id="sound_input",
                    )
                )
                button = gr.Button("Localise", variant="primary", elem_id="localise_picture")
                if examples:
                    gr.Examples(examples, [picture, sound], cache_examples=False)
            with gr.Column():
                words = gr.Markdown(elem_id="picture_words")
                with gr.Row():
                    shown = [
                        gr.Image(
                            label="Heat map",
                            height=HEIGHT,
                            type="filepath",
                            format="png",
                            buttons=["download", "fullscreen"],
                            interactive=False,
                            elem_id=name,
                            visible=visible,
                        )
                        for name, visible in (("picture_first", True), ("picture_second", False))
                    ]
                peaks = gr.Files(label="Position of the peak (CSV)", elem_id="picture_peaks")
        button.click(
            self._localise_picture,
            [picture, sound, self._first, self._second, self._box],
            [words, *shown, peaks],
            api_name="localise_picture",
        )

    def _refresh(self) -> tuple[Any, Any]:
        """The models that are there now."""
        names = list(self._jobs.find())
        return gr.update(choices=names), gr.update(choices=[NO_SECOND, *names])

    def _localise_video(
        self,
        video: str | None,
        first: str,
        second: str,
        box: bool,
        smoothing: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio looks for this default
    ) -> list[Any]:
        if video is None:
            raise _error("Upload or record a video first, or take one of the examples.")
        names = _chosen(first, second)

        def localise(place: int, name: str) -> Localised:
            def show(done: int, expected: int | None) -> None:
                share = min(1.0, done / expected) if expected else 0.5
                progress((place + share) / len(names), desc=name)

            options = {"box": box, "smoothing": smoothing}
            return self._jobs.localise_video(name, video, options, show)

        return _shown([_said(localise, place, name) for place, name in enumerate(names)])

    def _localise_picture(
        self, picture: str | None, sound: str | None, first: str, second: str, box: bool
    ) -> list[Any]:
        if picture is None or sound is None:
            raise _error("Give a picture and a sound first, or take one of the examples.")

        def localise(_: int, name: str) -> Localised:
            return self._jobs.localise_picture(name, picture, sound, {"box": box})

        return _shown([_said(localise, place, name) for place, name in enumerate(_chosen(first, second))])


def _chosen(first: str, second: str) -> list[str]:
    return [first] if second in (NO_SECOND, first) else [first, second]


def _said(localise: Callable[[int, str], Localised], place: int, name: str) -> Localised:
    """A result, or the words why there is none."""
    try:
        return localise(place, name)
    except JobError as error:
        logger.warning("%s: %s", name, error)
        raise _error(str(error)) from error


def _shown(results: list[Localised]) -> list[Any]:
    """Values of the words, both outputs and the files."""
    words = "\n\n".join(result.words for result in results)
    shown = [gr.update(value=it.output, label=it.name, visible=True) for it in results]
    unused = [gr.update(value=None, visible=False)] * (2 - len(results))
    return [words, *shown, *unused, [result.peaks for result in results]]


def launch(page: Page, *, host: str, port: int, max_mb: int, max_waiting: int, root: Path) -> str:
    """Serves the page until the process ends; returns its address.

    Args:
        page: that was built.
        host: address to listen on.
        port: 0: any that is free.
        max_mb: of one upload.
        max_waiting: visitors that wait; more are turned away.
        root: of the project, none of whose files are served.
    """
    page.blocks.queue(max_size=max_waiting, default_concurrency_limit=1)
    _, address, _ = page.blocks.launch(
        server_name=host,
        server_port=port or None,
        max_file_size=max_mb * 10**6,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        allowed_paths=[],
        blocked_paths=[str(root)],
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        footer_links=[],
        css=CSS,
        theme=gr.themes.Default(font=FONTS, font_mono=MONOSPACED),
    )
    return str(address)
