"""Frames and sound of a video file on one time scale, and videos written anew.

Time 0 is where the file's first stream begins. Frames are numbered as by the authors, who dumped every video
at 25 frames per second: frame n, counted from 1, is what a player shows just before t = (n - 1/2) / 25 s, the
middle of its slot, which is the rule of FFmpeg's filter `fps=25`. The sound of frame n is centred on
n / 25 s; for frame 125 that is 5.0 s, the middle of 10 s.
"""

import io
import logging
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain, dropwhile, groupby, islice, pairwise, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from utils.files import CUT_OFF_SECONDS, DAMAGE_SECONDS, MP3_INDEX, BrokenFileError, is_cut_off

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .webm .mkv .avi .mpg .mpeg .ts .flv .wmv .ogv .3gp".split())
# FFmpeg's names of what is read. Playlists and their like (HLS, DASH, concat, numbered pictures) are left
# out: they make FFmpeg read other files, so that an upload could show any video of the demo's computer.
FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mpegvideo,nut,mxf,dv,rm,flac,aac,mp3,wav,aiff,amr"
INDEXED_FORMATS = ("mov", "matroska")  # begin of the names of those with an index of key frames
FRAME_RATE = 25  # frames per second of the numbering
# Holes in the sound's time stamps are filled with silence, what is heard twice is left out; less is rounding,
# more is a jump of the clock in a stream that has one, as where recordings were joined.
HOLE_SECONDS, LONGEST_HOLE_SECONDS, LONGEST_STEP_BACK = 0.1, 600.0, 1.0
SOUND_FILES = ("flac", "mp3", "ogg")  # formats whose stamps count samples: a hole is damage
FRAMES_AT_ONCE = 50  # of sound that are resampled together, about a second
# Codecs in which a picture marked as no reference is never needed to decode another one. HEVC's mark holds
# within one temporal layer only; the other codecs have no such mark.
SKIPPING_CODECS = frozenset({"h264", "mpeg4", "mpeg1video", "mpeg2video"})
CLOCK, SOUND_RATE = 90_000, 48_000  # ticks and samples a second in the videos that are written

AnyStream = TypeVar("AnyStream", bound=Stream)
Picture = NDArray[np.uint8]
"""RGB, (H, W, 3)."""


class UnusableVideoError(BrokenFileError):
    """A video that has no pictures, no sound, or cannot be decoded.

    `kind` is what failures are counted by: no_video_stream, no_audio_stream, silent, truncated, too_short or
    unreadable.
    """

    def __init__(self, path: Path, reason: str, kind: str = "unreadable") -> None:
        super().__init__(path, reason)
        self.kind = kind


@dataclass
class Video:
    """An open video, or sound file."""

    path: Path
    container: InputContainer
    begin: Fraction  # second of the file's own time scale at which the clip begins
    content: bytes | None = None  # of the file, where it is not read from `path`
    end: float = 0.0  # where what has been read so far ends, seconds
    num_damaged: int = 0  # pieces of the sound that cannot be decoded

    @cached_property
    def pictures(self) -> VideoStream:
        """The stream of pictures that players show, and that is no cover of a music file."""
        return self._chosen(self.moving, "moving picture", "no_video_stream")

    @property
    def moving(self) -> list[VideoStream]:
        """The streams of pictures, covers left out."""
        return [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]

    @cached_property
    def sound(self) -> AudioStream:
        """The stream of sound that players play."""
        return self._chosen(self.container.streams.audio, "sound", "no_audio_stream")

    def _chosen(self, streams: Sequence[AnyStream], words: str, kind: str) -> AnyStream:
        """Return the first of the streams that are marked as default, or the first."""
        if not streams:
            reason = f"the file has no {words}; for a picture and a sound there is test.py image"
            raise UnusableVideoError(self.path, reason, kind)
        chosen = max(streams, key=lambda stream: bool(stream.disposition & Disposition.default))
        if chosen.codec_context is None:
            raise UnusableVideoError(self.path, f"there is no decoder for its {words}")
        return chosen

    @property
    def is_clocked(self) -> bool:
        """Stamps are those of a clock, which recordings that were joined do not share."""
        return self.container.format.name in ("mpegts", "mpeg")

    @property
    def tick(self) -> Fraction:
        """Seconds that a time stamp of the pictures counts."""
        return self.pictures.time_base or Fraction(1, FRAME_RATE)

    @property
    def rate(self) -> Fraction:
        """Usual number of pictures a second; of a sound file, the number of a video that it goes with."""
        # Some formats have none; some files have one of many thousands.
        rate = self.pictures.average_rate if self.moving else None
        return rate if rate and 1 <= rate <= 1000 else Fraction(FRAME_RATE)

    @property
    def seconds(self) -> float | None:
        """Where pictures and sound end; None: the file does not tell."""
        if not self.container.duration:
            return None
        # Matroska counts its duration from stamp 0, wherever the content begins.
        late = self.begin if self.container.format.name.startswith("matroska") else 0
        return float(Fraction(self.container.duration, av.time_base) - late)

    def shown_frames(
        self, packets: Iterable[av.Packet], wanted: int | None = None
    ) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Decode pictures in the order of showing, with the second at which each is shown.

        Pictures before the time stamp `wanted` that no other one refers to are left out.
        """
        context, tick, is_avi = self.pictures.codec_context, self.tick, self.container.format.name == "avi"
        decoding_stamps: list[int] = []
        num_frames, late, last = 0, Fraction(0), None
        longest = LONGEST_HOLE_SECONDS if self.is_clocked else math.inf
        for packet in packets:
            if packet.size and packet.dts is not None:  # Ogg has packets that only repeat a picture
                decoding_stamps.append(packet.dts)
            if wanted is not None and packet.pts is not None and context.name in SKIPPING_CODECS:
                context.skip_frame = "NONREF" if packet.pts < wanted else "DEFAULT"
            for frame in context.decode(packet):
                stamp = frame.pts
                # AVI does not tell the order of showing: the k-th picture takes the k-th packet's stamp.
                if stamp is None or is_avi:
                    stamp = decoding_stamps[num_frames] if decoding_stamps else num_frames
                num_frames += 1
                moment = stamp * tick - self.begin + late
                if last is not None and not -LONGEST_STEP_BACK < moment - last < longest:  # the clock jumped
                    late += last + 1 / self.rate - moment
                    moment = last + 1 / self.rate
                last = moment
                yield moment, frame


@contextmanager
def open_video(path: Path, content: bytes | None = None) -> Iterator[Video]:
    """Open a video or a sound file; whatever goes wrong in a decoder becomes UnusableVideoError.

    With its `content` given, `path` only names it.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableVideoError: it is no video, lacks the pictures or the sound asked for, or breaks on the way.
    """
    if content is None and not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    # A WAV file comes here where its header cannot be believed.
    options = {"format_whitelist": FORMATS, "ignore_length": "1"}
    try:
        # A title in another encoding than UTF-8 is no reason to refuse a video.
        file: Any = str(path) if content is None else io.BytesIO(content)
        with av.open(file, "r", metadata_errors="replace", options=options) as container:
            yield Video(path, container, Fraction(container.start_time or 0, av.time_base), content=content)
    except av.error.ArgumentError as error:
        raise UnusableVideoError(
            path,
            "it is not of a format that is read here (MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, ASF, Ogg …); "
            "what only names other files, as playlists do, is not, and for a picture there is test.py image",
        ) from error
    except BrokenFileError:
        raise
    except Exception as error:  # whatever a decoder raises for a damaged file
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        words += ": it is damaged, was cut off, or is no video or sound"
        raise UnusableVideoError(path, words) from error


# --------------------------------------------------------------------------------------------------- frames


def read_frames(path: Path, max_seconds: float | None = None) -> Iterator[tuple[float, Picture]]:
    """Yield each picture of a video with the second at which it is shown, in bounded memory.

    Seconds rise from 0 on; pictures are upright, with square pixels, all of one size. A file that ends early
    and pictures that the decoder marks as damaged are warned of in the log.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableVideoError: it breaks on the way, after the pictures before that, or has no picture.
    """
    last, size, num_damaged = -1.0, None, 0
    with open_video(path) as video:
        announced = video.seconds
        video.pictures.thread_type, video.pictures.codec_context.thread_count = "AUTO", 0  # all cores

        def picture_packets() -> Iterator[av.Packet]:
            for packet in video.container.demux(video.pictures, video.sound):
                if packet.pts is not None:
                    packet_end = (packet.pts + (packet.duration or 0)) * packet.time_base - video.begin
                    video.end = max(video.end, float(packet_end))
                if packet.stream.index == video.pictures.index:  # not stream_index, which is 0 at the end
                    yield packet

        for moment, frame in video.shown_frames(picture_packets()):
            seconds = float(moment)
            if max_seconds is not None and seconds >= max_seconds:
                announced = None
                break
            if seconds < 0 or seconds <= last:
                continue  # before the clip, or on screen for no time
            last = seconds
            num_damaged += frame.is_corrupt
            width = round(frame.width * float(video.pictures.sample_aspect_ratio or 1))
            size = size or (max(1, width), frame.height)
            yield seconds, _upright(frame, size)
    if size is None:
        raise UnusableVideoError(path, "no picture came out of the decoder")
    if num_damaged:
        logger.warning("%s: %d pictures are damaged, and shown as far as decoded.", path, num_damaged)
    if announced is not None and video.end < announced - CUT_OFF_SECONDS:
        logger.warning("%s was cut off: %.2f s are announced, it ends at %.2f s.", path, announced, video.end)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Return a, b, c, d: pixel (x, y) is shown at (a x + c y, b x + d y), moved into the picture."""
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know all kinds: EXIF of MJPEG, views of HEVC
        quarters = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
        return quarters[round(frame.rotation / 90) % 4]
    a, b, _, c, d = (1, 0, 0, 0, 1) if data is None else np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d


def _upright(frame: av.VideoFrame, size: tuple[int, int]) -> Picture:
    """Scale a frame to (width, height), bicubic, then turn and mirror it as its metadata say."""
    a, b, c, d = _display_matrix(frame)
    rgb = frame.reformat(*size, format="rgb24", interpolation="BICUBIC", threads=1).to_ndarray()
    if abs(b) > abs(a):  # a quarter turn
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def numbered_frames(
    opened: Video, numbers: Iterable[int], *, needed: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode frames by their rising numbers; those after the end are left out.

    Where the file has an index, decoding begins at the last key frame before them, otherwise with the file.
    A video that ends before the frame `needed` is too short.

    Raises:
        UnusableVideoError: it is too short, cannot be decoded, or a picture that is needed is damaged.
    """
    moments = {number: Fraction(2 * number - 1, 2 * FRAME_RATE) for number in numbers}
    waiting = iter(moments.items())
    number, due = next(waiting)
    is_indexed = opened.container.format.name.startswith(INDEXED_FORMATS)
    # Others cannot be trusted to go back to their beginning.
    with nullcontext(opened) if is_indexed else open_video(opened.path, opened.content) as video:
        stream, container = video.pictures, video.container
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # many videos, a core each
        frames: Iterator[Any] = video.shown_frames(container.demux(stream))
        if is_indexed:
            limit, place = (due + video.begin) / video.tick, int((due + video.begin) * av.time_base)
            container.seek(place)
            # Nothing is shown before it is decoded: what follows is too late.
            group = takewhile(lambda p: p.size and (p.dts is None or p.dts < limit), container.demux(stream))
            packets = [packet for packet in group if packet.pts is not None and packet.pts < limit]
            if packets and packets[0].is_keyframe:
                container.seek(place)
                wanted = max((p.pts or 0 for p in packets if not p.is_discard), default=None)
                # Pictures before the key frame may lack what they refer to.
                frames = video.shown_frames(container.demux(stream), wanted)
                frames = dropwhile(lambda shown: not shown[1].key_frame, frames)
            else:
                container.seek(container.start_time or 0)
        # The frame that is shown just before each moment; the first stands in for what precedes it.
        end = None
        for (moment, frame), following in pairwise(chain(frames, [None])):
            end = following[0] if following else moment + (frame.duration * video.tick or 1 / video.rate)
            while due <= end:
                if frame.is_corrupt:
                    raise UnusableVideoError(video.path, "a picture that is needed is damaged")
                yield number, frame
                if (later := next(waiting, None)) is None:
                    return
                number, due = later
    if end is None:
        raise UnusableVideoError(video.path, "no picture came out of the decoder")
    if number <= needed:
        at = float(moments[needed])
        words = f"its pictures end at {float(end):.2f} s, frame {needed} is shown at {at:.2f} s"
        raise UnusableVideoError(video.path, words, "too_short")


def encode_squares(frames: Iterable[tuple[int, av.VideoFrame]], side: int) -> Iterator[tuple[int, bytes]]:
    """Squash numbered frames to upright squares of `side` pixels, and encode them as JPEG.

    As by FFmpeg with -q:v 2: the planes are scaled, bicubic, and never become RGB.
    """
    encoder = cast(av.VideoCodecContext, av.CodecContext.create("mjpeg", "w"))
    encoder.width = encoder.height = side
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, FRAME_RATE)
    encoder.options = {"qmin": "2", "qmax": "2", "threads": "1", "huffman": "default"}
    last, content, reformatter = None, b"", VideoReformatter()  # which computes its filters once
    for number, frame in frames:
        if frame is not last:  # a slow video shows a picture more than once
            last = frame
            a, b, _, d = _display_matrix(frame)
            if abs(b) > abs(a) or a < 0 or d < 0:
                frame = av.VideoFrame.from_ndarray(_upright(frame, (side, side)), "rgb24")  # noqa: PLW2901
            square = reformatter.reformat(
                frame, side, side, "yuvj420p", interpolation="BICUBIC", threads=1,
                dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG,
            )  # fmt: skip
            square.pts, square.time_base = number, encoder.time_base
            content = b"".join(map(bytes, encoder.encode(square)))
        yield number, content


# ---------------------------------------------------------------------------------------------------- sound


def read_sound(
    path: Path | Video,
    sample_rate: int,
    max_seconds: float | None = None,
    *,
    refuse_cut_off: bool = False,
    left_channel: bool = False,
) -> NDArray[np.float32]:
    """Read the sound of a file: (L,) float32, the mean of its channels, nominally in [-1, 1].

    Sample 0 is heard at time 0. Holes in the time stamps, and in a video what is damaged, are silence, the
    latter with a warning. 10 minutes at 16 kHz take 38 MB.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableVideoError: it cannot be decoded or holds no sample; or, where that is to be refused, it is
            damaged or ends before its announced end.
    """
    limit = None if max_seconds is None else round(max_seconds * sample_rate)
    most = math.inf if limit is None else limit
    pieces: list[NDArray[np.float32]] = []
    with nullcontext(path) if isinstance(path, Video) else open_video(path) as video:
        for samples in _sound_pieces(video, sample_rate, most=most, refuse_damage=refuse_cut_off):  # (C, l)
            pieces.append(samples[0] if left_channel else samples.mean(axis=0, dtype=np.float32))
            if limit is not None and sum(map(len, pieces)) >= limit:
                break
        else:
            if refuse_cut_off:
                _check_end(video)
        if video.num_damaged and not refuse_cut_off:
            words = "%s: %d pieces of its sound are damaged, and silent."
            logger.warning(words, video.path, video.num_damaged)
    if not pieces:
        raise UnusableVideoError(video.path, "it holds no audio sample", "no_audio_stream")
    return np.concatenate(pieces)[:limit]


def _check_end(video: Video) -> None:
    """Refuse a sound that has been decoded to its end and was cut off, as far as its file tells."""
    stream, kind = video.sound, video.container.format.name
    stamp = (stream.start_time or 0) + (stream.duration or 0)  # announced; or of the beginning
    announced = float(stamp * (stream.time_base or 0) - video.begin)
    if kind in ("aac", "amr"):  # FFmpeg only guesses
        announced = 0.0
    elif kind == "mp3":  # so it does without an index
        content = video.content or video.path.read_bytes()
        index = MP3_INDEX.search(content[: 2**22])
        samples = int.from_bytes(index[1]) * (1152 if stream.rate >= 32_000 else 576) if index else 0
        announced = min(announced, samples / stream.rate)
    if is_cut_off(announced, video.end):
        words = f"it is cut off: {announced:.2f} s of sound are announced, it ends at {video.end:.2f} s"
        raise UnusableVideoError(video.path, words, "truncated")


def _sound_pieces(
    video: Video, sample_rate: int, layout: str | None = None, *, most: float, refuse_damage: bool = False
) -> Iterator[NDArray[np.float32]]:
    """Decode the sound from time 0 on: (C, l) each, mixed to a layout if given; holes are silence.

    No hole is longer than `most` samples, all that are wanted: a file may announce any length.
    """
    for part, frames in groupby(_sound_parts(video, refuse_damage=refuse_damage), itemgetter(0)):
        if part.silence:
            num_samples = int(min(round(part.silence * sample_rate), most))
            yield np.zeros((2 if layout == "stereo" else 1, num_samples), np.float32)
        resampler = av.AudioResampler("fltp", layout, sample_rate)
        samples = (samples for _, samples in frames)
        while batch := list(islice(samples, FRAMES_AT_ONCE)):
            together = av.AudioFrame.from_ndarray(np.concatenate(batch, axis=1), part.format, part.layout)
            together.sample_rate = part.rate  # without stamps, which are rounded
            yield from _arrays(resampler.resample(together))
        yield from _arrays(resampler.resample(None))


class _Part(NamedTuple):
    """Sound without holes and of one form; recordings that were joined may change from stereo to mono."""

    begin: float  # seconds
    silence: float  # before it, seconds
    format: str
    layout: str
    rate: int


def _sound_parts(video: Video, *, refuse_damage: bool) -> Iterator[tuple[_Part, NDArray[Any]]]:
    """Decode the sound frame by frame, (C, l) or (1, l C), with the part that each belongs to."""
    kind = video.container.format.name
    counts_samples = kind in SOUND_FILES and not video.moving
    hole = DAMAGE_SECONDS if counts_samples else HOLE_SECONDS
    step_back = hole if counts_samples else LONGEST_STEP_BACK
    part, stamp, late = None, None, 0.0
    # A longer hole is a jump of the clock; or, where there is none, longer than the whole file.
    longest = LONGEST_HOLE_SECONDS if video.is_clocked else max(LONGEST_HOLE_SECONDS, video.seconds or 0.0)
    for frame in _sound_frames(video, refuse_damage=refuse_damage):
        gap = 0.0  # seconds from what has been read so far to the frame
        if frame.time is not None and frame.time != stamp:  # some stamps only repeat
            stamp = frame.time
            gap = stamp - float(video.begin) + late - video.end
        # Where FLAC files were joined, samples are lost.
        is_damaged = (counts_samples and gap >= hole) or (kind == "flac" and gap <= -hole)
        if part and refuse_damage and is_damaged:
            words = f"it is damaged: its sound jumps by {gap:.2f} s at {video.end:.2f} s"
            raise UnusableVideoError(video.path, words)
        if part and not -step_back < gap < longest:  # the clock jumped
            late, gap = late - gap, 0.0
        elif part and abs(gap) < hole:
            gap = 0.0
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if part is None or gap > 0 or part[2:] != form:
            part = _Part(video.end, max(gap, 0.0), *form)
        video.end += max(gap, 0.0)
        left_out = min(frame.samples, max(0, round(-gap * frame.sample_rate)))
        video.end += (frame.samples - left_out) / frame.sample_rate
        if left_out < frame.samples:
            samples = frame.to_ndarray()
            yield part, samples[:, left_out * (samples.shape[1] // frame.samples) :]


def _sound_frames(video: Video, *, refuse_damage: bool) -> Iterator[av.AudioFrame]:
    kind = video.container.format.name
    if kind == "flac":  # its checksums are only looked at when asked for
        video.sound.codec_context.options = {"err_detect": "crccheck+explode"}
    for packet in video.container.demux(video.sound):
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            # In an MP3, whatever is between frames is skipped by all players.
            if refuse_damage and kind != "mp3":
                raise
            video.num_damaged += 1


def _arrays(frames: Sequence[av.AudioFrame | None]) -> list[NDArray[np.float32]]:
    # Where nothing is to be resampled, flushing gives None.
    return [np.asarray(frame.to_ndarray(), np.float32) for frame in frames if frame is not None]


# -------------------------------------------------------------------------------------------------- writing


def write_video(
    path: Path, frames: Iterable[tuple[float, Picture]], source: Path, *, max_seconds: float | None = None
) -> None:
    """Write pictures with the sound of another video: H.264 and AAC in an MP4 file.

    Args:
        path: of the file, whatever its name ends in.
        frames: seconds, rising, and uint8 RGB (H, W, 3), all of one size. An odd side grows by a copy of its
            last line, as H.264 stores colour at half the size.
        source: the video, or sound file, whose sound and rate are taken.
        max_seconds: where the sound ends; None: at its own end.

    Raises:
        UnusableVideoError: the sound of `source` cannot be decoded.
        OSError: the file cannot be written.
    """
    place, limit = 0, math.inf if max_seconds is None else round(max_seconds * SOUND_RATE)
    with open_video(source) as video:
        rate = video.rate

    def stereo() -> Generator[NDArray[np.float32], None, None]:
        with open_video(source) as video:
            yield from _sound_pieces(video, SOUND_RATE, "stereo", most=limit)

    # The index at the beginning lets browsers play before they have the whole file.
    options = {"movflags": "+faststart"}
    with closing(stereo()) as sound, av.open(str(path), "w", format="mp4", options=options) as out:
        # Without pictures between later ones (bf 0), no player has to start before time 0.
        bt709 = dict.fromkeys(("colorspace", "color_primaries", "color_trc"), "bt709")
        look = {"preset": "veryfast", "crf": "20", "bf": "0", "color_range": "tv", **bt709}
        shown = out.add_stream("libx264", rate, options=look)
        shown.pix_fmt, shown.codec_context.time_base = "yuv420p", Fraction(1, CLOCK)
        heard = out.add_stream("aac", SOUND_RATE, layout="stereo")

        def write_sound(until: float) -> None:
            nonlocal place
            while place < min(until * SOUND_RATE, limit) and (samples := next(sound, None)) is not None:
                samples = np.ascontiguousarray(samples[:, : min(limit - place, samples.shape[1])])  # (2, l)
                piece = av.AudioFrame.from_ndarray(samples, "fltp", "stereo")
                piece.sample_rate, piece.time_base, piece.pts = SOUND_RATE, Fraction(1, SOUND_RATE), place
                place += samples.shape[1]
                out.mux(heard.encode(piece))

        for seconds, picture in frames:
            even = np.pad(picture, [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)], "edge")
            if not shown.codec_context.is_open:
                shown.height, shown.width = even.shape[:2]
            frame = av.VideoFrame.from_ndarray(even, "rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = round(seconds * CLOCK), Fraction(1, CLOCK)
            out.mux(shown.encode(frame))
            write_sound(seconds)
        for packet in shown.encode(None):
            packet.duration = round(CLOCK / rate)  # counts for the last one only
            out.mux(packet)
        write_sound(math.inf)
        out.mux(heard.encode(None))
