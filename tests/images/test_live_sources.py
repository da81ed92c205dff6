"""Live sources by their names: a camera (played by a video file), a screen, streams of a local server, a folder."""

import gc
import threading
import time
from dataclasses import replace

import pytest
from media_files import disk, sound, video
from PIL import Image
from stream_server import serving

from fastvlm.errors import ImageError, ImageTooLargeError, MissingExtraError, UsageError
from fastvlm.images import live_sources, live_video, signatures
from fastvlm.images.frames import FrameLimits
from fastvlm.images.limits import ImageLimits
from fastvlm.images.live_frames import ChangeFilter
from fastvlm.images.live_sources import find_source, shown_url

COLORS = ("red", "green", "blue")


def color(frame):
    middle = frame.image.getpixel((frame.image.width // 2, frame.image.height // 2))
    return COLORS[middle.index(max(middle))]


def changes(source, **options):
    """(number, color) of the new frames, and the warnings."""
    warnings = []
    only = ChangeFilter()
    frames = source.frames(threading.Event(), warnings.append, **options)
    return [(frame.number, color(frame)) for frame in frames if only.takes(frame)], warnings


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(video([disk(one) for one in COLORS], each=5, fps=20))
    return path


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr(live_video, "RETRY_PAUSES_S", (0.01, 0.02))


def test_a_video_gives_each_frame_with_its_time(clip):
    frames = list(find_source(str(clip)).frames(threading.Event(), print, is_paced=False))
    assert [frame.number for frame in frames] == list(range(1, 16))
    assert [frame.time_s for frame in frames] == pytest.approx([index / 20 for index in range(15)])
    assert changes(find_source(str(clip)), is_paced=False)[0] == [(1, "red"), (6, "green"), (11, "blue")]


def test_frames_are_converted_after_their_container_is_closed(clip):
    frames = list(find_source(str(clip)).frames(threading.Event(), print, is_paced=False))
    gc.collect()
    assert [color(frame) for frame in frames[::5]] == list(COLORS)


def test_a_video_is_played_at_its_own_speed_and_can_be_stopped(clip):
    start_s = time.monotonic()
    assert len(list(find_source(str(clip)).frames(threading.Event(), print))) == 15
    assert time.monotonic() - start_s >= 14 / 20
    stop = threading.Event()
    frames = find_source(str(clip)).frames(stop, print)
    next(frames)
    stop.set()
    assert list(frames) == []


@pytest.mark.parametrize("name", ["camera:0", "camera:/dev/video7", "/dev/video7"])
def test_a_camera_is_played_by_a_video(clip, name, monkeypatch):
    monkeypatch.setattr(live_sources.sys, "platform", "linux")
    camera = find_source(name)
    assert (camera.address, camera.container_format) == (f"/dev/video{0 if name == 'camera:0' else 7}", "v4l2")
    fake = replace(camera, address=str(clip), container_format=None)
    seen = []
    with pytest.raises(ImageError, match=f"^{name} has broken off.$"):  # unplugged
        seen += [(seen.append(color(frame)), frame.number) for frame in fake.frames(threading.Event(), print)]
    assert seen[0] == "red" and seen[-1] == "blue" and len(seen) == 15


@pytest.mark.parametrize(
    ("platform", "name", "address", "container_format"),
    [
        ("win32", "camera:HD Webcam", "video=HD Webcam", "dshow"),
        ("darwin", "camera:0", "0", "avfoundation"),
        ("win32", "screen", "desktop", "gdigrab"),
        ("darwin", "screen", "Capture screen 0", "avfoundation"),
        ("linux", "screen", ":7", "x11grab"),
    ],
)
def test_devices_of_each_system(platform, name, address, container_format, monkeypatch):
    monkeypatch.setattr(live_sources.sys, "platform", platform)
    monkeypatch.setenv("DISPLAY", ":7")
    source = find_source(name)
    assert (source.address, source.container_format) == (address, container_format)


def test_a_stream_of_jpegs_breaks_off_and_is_opened_again(short_pauses):
    with serving([disk(one) for one in COLORS], rounds=2) as (address, asked):
        source = find_source(f"{address.replace('//', '//user:secret@')}/mjpeg?key=secret")
        warnings, only = [], ChangeFilter()
        frames = source.frames(threading.Event(), warnings.append)
        seen = [color(next(one for one in frames if only.takes(one))) for _ in range(6)]
        with pytest.raises(ImageError, match=r"cannot be opened .* Opened again 2 times in vain\.$") as failure:
            list(frames)
    assert seen == [*COLORS, *COLORS]
    assert "has broken off" in warnings[0] and "Opening it again in 0.01 s (1 of 2)." in warnings[0]
    assert len(asked) >= 4 and len(warnings) == 3
    assert "secret" not in "".join(warnings) + str(failure.value)


def test_a_video_over_http_ends_as_a_file_does(clip):
    with serving(content=clip.read_bytes()) as (address, _):
        found, warnings = changes(find_source(f"{address}/clip.mp4"))
    assert found == [(1, "red"), (6, "green"), (11, "blue")] and warnings == []


def test_a_stream_that_cannot_be_opened_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(live_video, "OPEN_TIMEOUT_S", 0.5)
    with serving() as (address, asked):
        for path, reason in (("/none", ""), ("/silent", "no answer in time")):
            with pytest.raises(ImageError, match=rf"cannot be opened \(.*{reason}\)\. Check the address"):
                next(find_source(address + path).frames(threading.Event(), print))
        assert asked == ["/none", "/silent"]


def test_a_playlist_is_not_followed(tmp_path):
    secret = tmp_path / "secret.ts"
    secret.write_bytes(video([disk("red")], container="mpegts", codec="mpeg2video", fps=25))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    with serving(content=playlist.encode()) as (address, _), pytest.raises(ImageError, match="cannot be opened"):
        next(find_source(f"{address}/clip.mp4").frames(threading.Event(), print))


def test_limits_hold_for_each_frame(clip):
    small = FrameLimits(image=ImageLimits(max_pixels=100))
    with pytest.raises(ImageTooLargeError, match="the limit is 100"):
        replace(find_source(str(clip)), limits=small).check()


def test_a_file_without_a_video_in_it_and_a_damaged_one(tmp_path):
    (tmp_path / "sound.mp4").write_bytes(sound())
    with pytest.raises(ImageError, match="has no video in it"):
        find_source(str(tmp_path / "sound.mp4")).check()
    (tmp_path / "cut.mp4").write_bytes(video([disk("red")])[:300])
    with pytest.raises(ImageError, match="cannot be opened"):
        find_source(str(tmp_path / "cut.mp4")).check()


def test_names_that_are_no_source(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(live_sources.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(UsageError, match=r"is not a video; .* For one image: fastvlm ask"):
        find_source(str(tmp_path / "a.png"))
    with pytest.raises(UsageError, match="There is no source 'nothing'; expected camera:0, screen,"):
        find_source("nothing")
    with pytest.raises(ImageError, match="DISPLAY is not set"):
        find_source("screen")
    with pytest.raises(ImageError, match=r"^camera:99 cannot be opened .* Check that it is connected"):
        find_source("camera:99").check()
    assert shown_url("rtsp://me:secret@camera/1?token=secret") == "'rtsp://camera/1'"


def test_without_the_extra_one_line_names_it(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "find_spec", lambda _: None)
    for name in ("camera:0", "screen", "rtsp://camera/1", str(clip)):
        with pytest.raises(MissingExtraError, match=r"fastvlm\[video\]"):
            find_source(name)
    assert find_source(str(tmp_path)).kind == "folder"


def test_a_folder_gives_new_and_changed_files_when_they_are_whole(tmp_path):
    source, stop = find_source(str(tmp_path)), threading.Event()
    disk("red").save(tmp_path / "before.png")
    (tmp_path / "notes.txt").write_text("no image")
    frames, seen = source.frames(stop, print), []

    def write():
        time.sleep(0.4)
        disk("green").save(tmp_path / "new.png")
        (tmp_path / ".hidden.png").write_bytes(b"")
        with (tmp_path / "slow.jpg").open("wb") as file:  # written in pieces
            disk("blue").save(tmp_path / "whole.bmp", "JPEG")
            for part in (data := (tmp_path / "whole.bmp").read_bytes())[:99], data[99:999], data[999:]:
                file.write(part)
                file.flush()
                time.sleep(0.15)
        (tmp_path / "before.png").unlink()
        disk("blue").save(tmp_path / "before.png")

    writer = threading.Thread(target=write)
    writer.start()
    for frame in frames:
        seen.append((frame.file, color(frame)))
        if len(seen) == 4:
            stop.set()
    writer.join()
    assert seen[0] == ("new.png", "green")
    assert sorted(seen[1:]) == [("before.png", "blue"), ("slow.jpg", "blue"), ("whole.bmp", "blue")]


def test_a_folder_that_goes_away_is_one_line(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    frames = find_source(str(folder)).frames(threading.Event(), print)
    folder.rmdir()
    with pytest.raises(ImageError, match="cannot be read"):
        next(frames)
