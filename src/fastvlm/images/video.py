"""Video -> RGB images: a few frames that stand for all.

The rule, with N = `Selection.max_frames`:

1. The video is divided into equal parts: N for sampling "time", 4 N for "change". The frame shown in the middle of
   each part is a candidate. The times are those of the packets in the file, not of its header.
2. "time": these are the frames. "change": a candidate is skipped if it looks like the last one that was kept: both are
   averaged to 32 x 32 cells, and no cell differs by more than :data:`CHANGE` of 255 in red, green or blue.
3. If more than N are left, N of them are taken, evenly spaced, the first and the last among them.

Decoding starts at the nearest key frame before each candidate, so an hour takes hardly longer than a minute.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image, ImageChops

from fastvlm.errors import ImageError, ImageTooLargeError
from fastvlm.images.frames import Frame, FrameLimits, Selection, evenly
from fastvlm.images.signatures import HEAD_BYTES, video_format

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

CHANGE = 16  # of 255, in one channel of one cell; noise of a standard deviation of 30 changes a cell by up to 10
_CELLS = (32, 32)
_CANDIDATES_EACH = 4
# FFmpeg has hundreds of decoders; these are what cameras, phones, screens and the web write.
_CODECS = (
    *("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "prores", "h263", "theora"),
    *("ffv1", "rawvideo"),
)


@dataclass(frozen=True)
class _Timeline:
    """Presentation times of all frames, and of those where decoding can start: sorted, in the stream's unit."""

    times: list[int]
    keys: list[int]
    unit_s: float

    def shown_at(self, parts: int) -> list[int]:
        """The times of the frames shown in the middle of each of `parts` equal parts of the video, each once."""
        first, last, count = self.times[0], self.times[-1], len(self.times)
        duration = last - first + (last - first) / max(1, count - 1)  # the last frame is shown for a while, too
        middles = (first + (index + 0.5) * duration / parts for index in range(parts))
        shown = (self.times[max(0, bisect_right(self.times, middle) - 1)] for middle in middles)
        return list(dict.fromkeys(shown))

    def key_before(self, time: int, *, spare: int) -> int | None:
        """Where decoding can start to reach `time`: the nearest key frame, or the one `spare` key frames before it."""
        place = bisect_right(self.keys, time) - 1 - spare
        return self.keys[place] if place > 0 else None


def video_frames(source: Path | bytes, name: str, selection: Selection, limits: FrameLimits) -> list[Frame]:
    """Frames by the rule above. To be called in a process of its own: a decoder can take any time and memory.

    Raises:
        ImageError: damaged or truncated, no video in it, a codec that is not read.
        ImageTooLargeError: more pixels or frames than the limits allow.
    """
    import av  # noqa: PLC0415 - an extra

    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            # A file object and a fixed format: no protocol, playlist or other file is opened.
            container_format = video_format(file.read(HEAD_BYTES))
            if container_format == "mov" and _ends_early(file):
                raise ImageError(f"{name} is a truncated video. Pass a whole one.")
            file.seek(0)
            with av.open(file, mode="r", format=container_format) as container:
                timeline = _timeline(container, video_stream(container, name, limits), name, limits.max_packets)
            file.seek(0)
            with av.open(file, mode="r", format=container_format) as container:
                return _frames(container, timeline, name, selection, limits)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # the demuxers and decoders raise a dozen kinds of errors on damaged data
        raise ImageError(
            f"{name} is a damaged or truncated video ({type(error).__name__}: {error}). Pass a whole one."
        ) from error


def _ends_early(file: BinaryIO) -> bool:
    """True if the last box of an MP4 or MOV file (ISO/IEC 14496-12, 4.2) is longer than the rest of the file."""
    num_bytes, position = file.seek(0, io.SEEK_END), 0
    while position + 8 <= num_bytes:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:], "big") if length == 1 else length
        if length < 8:  # 0: up to the end of the file; others are no box, and the demuxer's to judge
            return False
        position += length
    return position > num_bytes


def _frames(
    container: InputContainer, timeline: _Timeline, name: str, selection: Selection, limits: FrameLimits
) -> list[Frame]:
    is_by_change = selection.sampling == "change"
    most = min(selection.max_frames, limits.max_frames)
    wanted = timeline.shown_at(most * (_CANDIDATES_EACH if is_by_change else 1))
    kept: list[Frame] = []
    for time, image in _decoded(container, timeline, wanted, name, limits):
        if is_by_change and kept and not has_changed(kept[-1].image, image):
            continue
        number = bisect_right(timeline.times, time)
        time_s = (time - timeline.times[0]) * timeline.unit_s
        kept.append(Frame(image, "frame", number, len(timeline.times), time_s))
    if not kept:
        raise ImageError(f"{name} is a video, but none of its frames can be decoded. Pass a whole one.")
    return evenly(kept, most)


def video_stream(container: InputContainer, name: str, limits: FrameLimits) -> VideoStream:
    """The first video stream, set to refuse frames over the limits. Raises ImageError, ImageTooLargeError."""
    if not container.streams.video:
        raise ImageError(f"{name} has no video in it, only {_kinds(container)}. Pass a video with frames.")
    stream = container.streams.video[0]
    codec = stream.codec_context
    if codec.codec.canonical_name not in _CODECS:
        raise ImageError(f"{name} is encoded as {codec.codec.canonical_name}; expected one of {', '.join(_CODECS)}.")
    limits.image.check_size((codec.width, codec.height), name)
    codec.options = {"max_pixels": str(limits.image.max_pixels)}  # also where a frame is larger than the header says
    codec.thread_count = 2
    return stream


def _kinds(container: InputContainer) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _timeline(container: InputContainer, stream: VideoStream, name: str, max_packets: int) -> _Timeline:
    """From all packets, none of which is decoded."""
    times: list[int] = []
    keys: list[int] = []
    for packet in container.demux(stream):
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or packet.is_discard:
            continue
        times.append(time)
        if packet.is_keyframe:
            keys.append(time)
        if len(times) > max_packets:
            raise ImageTooLargeError(f"{name} has more than {max_packets} frames, which is the limit. Cut it.")
    if not times:
        raise ImageError(f"{name} is a video without frames. Pass one with at least one.")
    assert stream.time_base is not None  # noqa: S101 - a stream with packets has one
    return _Timeline(sorted(times), sorted(keys), float(stream.time_base))


def _decoded(
    container: InputContainer, timeline: _Timeline, wanted: list[int], name: str, limits: FrameLimits
) -> Iterator[tuple[int, Image.Image]]:
    """(time, image) of each of the `wanted` times, in their order; of the next frame where that one is missing."""
    stream = video_stream(container, name, limits)
    spare = 1 if container.format.name == "mpegts" else 0  # it has no index: seeking may miss a key frame
    position = timeline.times[0] - 1
    frames = container.decode(stream)
    for time in wanted:
        key = timeline.key_before(time, spare=spare)
        if key is not None and key > position:
            container.seek(key, stream=stream, backward=True)
            frames = container.decode(stream)
        for frame in frames if position < time else ():
            shown = frame.dts if frame.pts is None else frame.pts
            position = position if shown is None else shown
            if position >= time:
                yield position, upright_image(frame, stream.sample_aspect_ratio, name, limits)
                break


def upright_image(frame: VideoFrame, aspect: Fraction | None, name: str, limits: FrameLimits) -> Image.Image:
    """Upright, with square pixels (`aspect` is theirs, width / height), reduced to `limits.max_side_px`.

    It needs no stream: a frame may be converted when its container is closed.
    """
    limits.image.check_size((frame.width, frame.height), name)
    image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    sides = (limits.max_side_px, limits.max_side_px)
    image.thumbnail(sides, reducing_gap=None)
    if aspect and aspect != 1 and 1 / 16 <= aspect <= 16:
        image = image.resize((max(1, round(image.width * float(aspect))), image.height))
        image.thumbnail(sides, reducing_gap=None)
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def has_changed(before: Image.Image, after: Image.Image) -> bool:
    """True if a cell of the image differs by more than :data:`CHANGE`, or the size does; both RGB."""
    if before.size != after.size:
        return True
    cells = [image.resize(_CELLS, Image.Resampling.BOX) for image in (before, after)]
    return any(any(band.histogram()[CHANGE + 1 :]) for band in ImageChops.difference(*cells).split())
