"""Live sources by their names: ``camera:0``, ``screen``, an rtsp or http URL, a video file, a folder of images.

What FFmpeg may open is fixed for each kind: a device, one file that is opened here, or a URL whose protocols and
containers are listed. So neither a file nor a server can make it open another file.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fastvlm.errors import ImageError, UsageError
from fastvlm.images.live_folder import FolderSource
from fastvlm.images.live_video import VideoSource
from fastvlm.images.signatures import check_installed, file_head, video_format

SOURCES = "camera:0, screen, an rtsp or http URL, a video file, or a folder of images"
_CAMERA = re.compile(r"camera:(.+)")
_URL = re.compile(r"(rtsps?|https?)://", re.IGNORECASE)
_NETWORK = {
    # Containers of network cameras and web servers. Playlists (HLS, DASH) are left out: they name other addresses.
    "format_whitelist": "mpjpeg,mjpeg,mov,mp4,matroska,webm,mpegts,avi,flv,rtsp,sdp,rtp",
    "protocol_whitelist": "http,https,httpproxy,tls,tcp,udp,rtp,srtp",
}
_TCP = {"rtsp_transport": "tcp"}  # lost UDP packets are gray blocks in the image


def find_source(name: str) -> VideoSource | FolderSource:
    """The source called `name`; nothing is opened yet.

    Raises:
        UsageError: no such source; an image file.
        ImageError: a file that cannot be read, or no screen to capture.
        MissingExtraError: anything but a folder without the extra `video`.
    """
    if _URL.match(name):
        check_installed("video")
        return VideoSource("stream", shown_url(name), name, options=_NETWORK | (_TCP if name[:4] == "rtsp" else {}))
    if name == "screen" or _CAMERA.fullmatch(name) or _is_device(name):
        check_installed("video")
        return _screen(os.environ) if name == "screen" else _camera(name)
    path = Path(name)
    if path.is_dir():
        return FolderSource(path)
    if not path.is_file():
        raise UsageError(f"There is no source {name!r}; expected {SOURCES}.")
    return _video_file(path)


def shown_url(url: str) -> str:
    """`url` as messages show it: without user, password and query."""
    parts = urlsplit(url)
    return repr(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:100])


def _is_device(name: str) -> bool:
    try:
        return name.startswith("/dev/video") or stat.S_ISCHR(Path(name).stat().st_mode)
    except (OSError, ValueError):
        return False


def _video_file(path: Path) -> VideoSource:
    try:
        container_format = video_format(file_head(path))
    except OSError as error:
        raise ImageError(f"{str(path)!r} cannot be read ({error.strerror}). Check its permissions.") from error
    if container_format is None:
        raise UsageError(f"{str(path)!r} is not a video; expected {SOURCES}. For one image: fastvlm ask.")
    check_installed("video")
    return VideoSource("video", repr(str(path)), path, container_format)


def _camera(name: str) -> VideoSource:
    """Windows and macOS are not tested: their device names are those of FFmpeg's dshow and avfoundation."""
    which = name.removeprefix("camera:")
    if sys.platform == "win32":
        return VideoSource("camera", name, f"video={which}", "dshow")
    if sys.platform == "darwin":
        return VideoSource("camera", name, which, "avfoundation", {"framerate": "30"})
    path = f"/dev/video{which}" if which.isdecimal() else which
    return VideoSource("camera", name, path, "v4l2")


def _screen(environment: Mapping[str, str]) -> VideoSource:
    rate = {"framerate": "10"}
    if sys.platform == "win32":
        return VideoSource("screen", "screen", "desktop", "gdigrab", rate)
    if sys.platform == "darwin":
        return VideoSource("screen", "screen", "Capture screen 0", "avfoundation", rate)
    display = environment.get("DISPLAY")
    if not display:
        raise ImageError("screen needs an X display, but DISPLAY is not set. Run it in a graphical session under X.")
    return VideoSource("screen", "screen", display, "x11grab", rate)
