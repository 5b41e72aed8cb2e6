"""A video that is read frame by frame, as players show it: when it says, upright, with square pixels.

When its frames are shown, and so how much there is, is told by the time stamps of its packets, which are read before
any frame is kept; counts and lengths of headers may say anything.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from pipelines.media.headers import begins_anew, begins_with_empty_edit, claimed_seconds, is_cut
from pipelines.media.policy import Limits, Refused
from pipelines.media.streams import open_container

_JITTER = 0.02  # seconds by which time stamps may miss their even places: GIF counts in 0.01 s, phones are not exact.
_MOST_FPS = 60.0  # to which a video without an even rate is spread where no rate is asked for
_UPRIGHT = (1, 0, 0, 1)
Frame = npt.NDArray[np.uint8]
Turn = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Stamp:
    """At which second a packet is shown, for how many, and whether packets lie in that order here."""

    time: float
    duration: float
    is_in_order: bool


class _Clock:
    """Makes one run of a clock that begins anew where transport or program streams were joined, as players do."""

    def __init__(self, container: av.container.InputContainer) -> None:
        self._may_restart = container.format.name in ("mpegts", "mpeg")
        self._last, self._step, self._added = -math.inf, 0.0, 0.0

    def added(self, time: float) -> float:
        """The seconds to add to time stamps from this one on, which follow each other."""
        passed = time - self._last
        if self._may_restart and passed < -1:  # Less is only a frame that comes late.
            self._added += self._step - passed
        elif 0 < passed < math.inf:
            self._step = passed
        self._last = time
        return self._added


@dataclass(frozen=True, slots=True)
class Timing:
    """When the frames of a video are shown: from `start` (by its own clock) on, `seconds` in all.

    `rate` is in frames per second, their mean where the video is not `is_even`; `shortest` the seconds between the two
    frames that are nearest to each other; `last` those from 0 to the last frame.
    """

    start: float
    seconds: float
    last: float
    rate: float
    shortest: float
    is_even: bool


@dataclass(frozen=True, slots=True)
class Film:
    """An opened video; `turn` maps coded pixels to upright ones, `aspect` is a pixel's width divided by its height."""

    container: av.container.InputContainer
    stream: av.VideoStream
    limits: Limits
    timing: Timing
    turn: Turn
    aspect: Fraction

    @property
    def is_plain(self) -> bool:
        """Whether the coded pixels are square and upright."""
        return self.turn == _UPRIGHT and self.aspect == 1

    def grid(self, fps: float | None = None) -> float:
        """The frames a second that show it well: its own rate where that is even, and at most `fps`."""
        if self.timing.is_even:
            return min(self.timing.rate, fps or math.inf)
        return fps or min(1 / self.timing.shortest, _MOST_FPS)

    def frames(
        self, fps: float, short_side: int | None = None, seconds: float = math.inf
    ) -> Iterator[tuple[int, Frame]]:
        """Yields frames to keep, uint8 (H, W, 3), upright, all as large as the first, each with its place in time.

        There is at most one in each 1/fps seconds, and its place counts these: the first of those that come, or the
        last where it is shown for longer. `short_side` shrinks to even sizes; `seconds` ends it early.
        """
        convert = VideoReformatter()  # one for all frames: its tables cost more than a frame
        for place, _, frame, size in self._shown(fps, short_side, seconds):
            yield place, self._pixels(convert, frame, size)

    def count(self, fps: float) -> int:
        """How many places of 1/fps seconds frames fill, by the time stamps of their packets."""
        count = self._place(self.timing.last, fps) + 1
        return count if self.timing.is_even else max(count, round(self.timing.seconds * fps))

    def frames_at(self, fps: float, places: Collection[int]) -> dict[int, Frame] | None:
        """What is shown at some of the places that `count` counts; no other frame is made pixels of, or even decoded.

        None where it is not as the time stamps say; `frames` then tells.
        """
        wanted, convert, found = set(places), VideoReformatter(), dict[int, Frame]()
        if self._is_simple and fps == self.timing.rate:
            for frame in self._decode_only(wanted, fps):
                place = self._place((frame.time or 0.0) - self.timing.start, fps)
                if frame.is_corrupt or place in found:
                    return None
                size = _shown_size(frame.width, frame.height, self.aspect, None)
                if place in wanted:
                    found[place] = self._pixels(convert, frame, size)
            return found if found.keys() == wanted else None
        count, last = self.count(fps), -1
        for place, until, frame, size in self._shown(fps):
            begin = 0 if last < 0 else place  # before the first is shown, it stands in
            last, served = place, wanted.intersection(range(begin, count if until is None else until))
            if served:
                found |= dict.fromkeys(served, self._pixels(convert, frame, size))
        return found if last < count and (last == count - 1 or not self.timing.is_even) else None

    @property
    def _is_simple(self) -> bool:
        """Whether its frames stand one in each place, and its time stamps are those of what is decoded."""
        is_mp4 = "mp4" in self.container.format.name
        return is_mp4 and self.stream.codec_context.name == "h264" and self.timing.is_even

    def _decode_only(self, wanted: Collection[int], fps: float) -> Iterator[av.VideoFrame]:
        """Decodes what wanted frames need: groups of pictures that hold any, and of these no needless last ones.

        Groups are left out only where each can be decoded without those before it.
        """
        groups, context, tick = list[list[Any]](), self.stream.codec_context, float(self.stream.time_base or 1)
        for packet in self.container.demux(self.stream):
            if packet.is_keyframe or not groups or not packet.size:  # an empty one comes last
                groups.append([])
            groups[-1].append(packet)
        alone = all(begins_anew(bytes(group[0])) for group in groups)
        for group in groups:
            times = [None if packet.pts is None else packet.pts * tick - self.timing.start for packet in group]
            needed = [time is None or self._place(time, fps) in wanted for time in times]
            if alone and not any(needed):
                continue
            for packet, is_needed in zip(group, needed, strict=True):
                # What no other frame is made from is not decoded unless it is wanted.
                context.skip_frame = "DEFAULT" if is_needed else "NONREF"
                yield from packet.decode()

    def _place(self, time: float, fps: float) -> int:
        """The place of a time in seconds; of an even video's frame, rounded, it may come a little before its place."""
        return math.floor(time * fps + (0.5 if self.timing.is_even and fps == self.timing.rate else 1e-6))

    def _pixels(self, convert: VideoReformatter, frame: av.VideoFrame, size: tuple[int, int]) -> Frame:
        return _turned(convert.reformat(frame, *size, format="rgb24").to_ndarray(), self.turn)

    def _shown(
        self, fps: float, short_side: int | None = None, seconds: float = math.inf
    ) -> Iterator[tuple[int, int | None, av.VideoFrame, tuple[int, int]]]:
        """Yields what `frames` does, before it is pixels: the place, the next frame's, the frame, and its size."""
        size, kept, latest = (0, 0), None, None
        for time, frame in self._timed():
            if time >= seconds:
                break
            size = size if latest else _shown_size(frame.width, frame.height, self.aspect, short_side)
            place = self._place(time, fps)
            if kept and place > kept[0]:
                yield kept[0], place, latest if latest and place > kept[0] + 1 else kept[1], size
            if kept is None or place > kept[0]:
                kept = place, frame
            latest = frame
        if kept is None or latest is None:
            raise Refused("unreadable: no frames")
        ends = math.floor(min(self.timing.seconds, seconds) * fps)
        yield kept[0], None, latest if not self.timing.is_even and ends > kept[0] + 1 else kept[1], size

    def _timed(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yields every frame and the time in seconds at which it is shown. Raises Refused if the end is missing."""
        count, time, frame, clock = 0, 0.0, None, _Clock(self.container)
        for count, frame in enumerate(_decoded(self.container, self.stream), start=1):
            if count > self.limits.max_frames:
                raise Refused(f"too long: more than {self.limits.max_frames} frames")
            time = (count - 1) / self.timing.rate
            if frame.time is not None:
                time = max(0.0, frame.time + clock.added(frame.time) - self.timing.start)
            self.limits.check_pixels(frame.width, frame.height)
            self.limits.check_seconds(time)
            yield time, frame
        if frame is not None and frame.is_corrupt:
            raise Refused("unreadable: cut off: its last frame is not whole")
        if count and time < 0.9 * self.timing.last:
            raise Refused(f"unreadable: cut off after {time:.1f} of {self.timing.seconds:.1f} s")


@contextmanager
def open_video(data: bytes, limits: Limits) -> Iterator[Film]:
    """Opens the first video stream that is not a cover picture."""
    with open_container(data) as container:
        stream = _first_video(container, limits)
        if "mp4" in container.format.name:
            limits.check_seconds(claimed_seconds(data))
        if is_cut(data, container.format.name):
            raise Refused("unreadable: cut off: the file ends before its container does")
        stamps, turn = _survey(container, stream, limits)
        delays = "mp4" in container.format.name and begins_with_empty_edit(data, stream.id)
        timing = _timing(stamps, stream, delays)
    limits.check_seconds(timing.seconds)
    # Not every container can be read again from its beginning by seeking.
    with open_container(data) as container:
        stream = _first_video(container, limits)
        aspect = max(stream.sample_aspect_ratio or Fraction(1), Fraction(0)) or Fraction(1)
        limits.check_pixels(round(stream.codec_context.width * aspect), stream.codec_context.height)
        yield Film(container, stream, limits, timing, turn, aspect)


def _first_video(container: av.container.InputContainer, limits: Limits) -> av.VideoStream:
    covers = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & covers), None)
    if stream is None:
        raise Refused("no video stream")
    limits.check_pixels(stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.thread_count = 1  # Samples are decoded side by side; a codec's own threads only compete.
    return stream


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yields every frame; what comes before the first key frame cannot be decoded, and players leave it out, too."""
    is_shown = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if is_shown or packet.is_keyframe:
                raise
            continue
        for frame in frames:
            is_shown = True
            yield frame


def _survey(
    container: av.container.InputContainer, stream: av.VideoStream, limits: Limits
) -> tuple[list[_Stamp], Turn]:
    """Reads every packet and decodes one frame: the time stamps of what is shown, and how frames are turned."""
    stamps, frame, is_keyed, is_cut_off, present = list[_Stamp](), None, False, False, -math.inf
    clock, tick = _Clock(container), float(stream.time_base or 1)
    for packet in container.demux():
        if not packet.size:
            continue
        # Of the last one: there was less than it should hold. A transport stream may end anywhere.
        is_cut_off = packet.is_corrupt and container.format.name != "mpegts"
        if packet.stream.index != stream.index:
            continue
        frame = frame or _first_frame(packet)
        if packet.is_keyframe and not is_keyed:  # Nothing can be decoded before the first, if any is marked.
            is_keyed = True
            stamps.clear()
        pts, dts = packet.pts if packet.pts is not None else packet.dts, packet.dts
        if pts is None:
            continue
        present = max(present, pts if dts is None else dts)
        time = pts * tick + clock.added((pts if dts is None else dts) * tick)
        if not packet.is_discard:  # An edit list hides packets that only help to decode others.
            stamps.append(_Stamp(time, (packet.duration or 0) * tick, dts in (None, pts)))
        if len(stamps) > 2 * limits.max_frames:  # A packet may be a field, half a frame.
            raise Refused(f"too long: more than {limits.max_frames} frames")
    if "mp4" in container.format.name:
        promised = (entry.timestamp for entry in stream.index_entries if entry.size and not entry.is_discard)
        is_cut_off = is_cut_off or present < max(promised, default=present)
    if is_cut_off:
        raise Refused("unreadable: cut off: frames are missing at its end")
    if not stamps:
        raise Refused("unreadable: no frames")
    return sorted(stamps, key=lambda stamp: stamp.time), _UPRIGHT if frame is None else _turn(frame)


def _first_frame(packet: "av.Packet[av.VideoStream]") -> av.VideoFrame | None:
    try:
        return next(iter(packet.decode()), None)
    except av.FFmpegError:  # Who reads the frames will be told.
        return None


def _timing(stamps: list[_Stamp], stream: av.VideoStream, delays: bool) -> Timing:
    """The timing of frames, from the sorted time stamps of their packets (at least one)."""
    times = np.array([stamp.time for stamp in stamps])
    start = 0.0 if delays else float(times[0])
    times -= start
    gaps = np.diff(times)
    gaps = gaps[gaps > 0]
    claimed = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    usual = float(np.sort(gaps)[len(gaps) // 2]) if len(gaps) else 1 / (claimed[0] if claimed else 1.0)
    lasts = stamps[-1].duration or usual
    if not stamps[-1].is_in_order and len(gaps):  # Then its duration is that of another.
        lasts = min(lasts, float(gaps.max()))
    last = float(times[-1])
    for rate in (*claimed, 1 / usual, (len(gaps) or 1) / max(last - float(times[0]), usual)):
        if _is_even(times - times[0], rate) and abs(lasts - 1 / rate) < min(2 * _JITTER, 0.4 / rate):
            return Timing(start, last + 1 / rate, last, rate, 1 / rate, is_even=True)
    rate = len(times) / (last + lasts)
    return Timing(start, last + lasts, last, rate, float(gaps.min()) if len(gaps) else lasts, is_even=False)


def _is_even(times: npt.NDArray[np.float64], rate: float) -> bool:
    """Whether times, starting at 0, follow a constant rate up to rounding."""
    off = np.abs(times - np.arange(len(times)) / rate)
    return bool(off.max() < min(_JITTER, 0.4 / rate))


def _turn(frame: av.VideoFrame) -> Turn:
    """The display matrix of a frame in quarters of a turn and mirrors: upright x = a x + c y, y = b x + d y."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return _UPRIGHT
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(int).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def _turned(pixels: npt.NDArray[Any], turn: Turn) -> Frame:
    """Pixels (H, W, 3) transformed by `turn`, which may swap height and width."""
    a, b, c, d = turn
    if b:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: b + d, :: a + c])


def _shown_size(width: int, height: int, aspect: Fraction, short_side: int | None) -> tuple[int, int]:
    """Width and height in square pixels, the short side at most `short_side`; even where they change, for H.264."""
    wide = float(width * aspect)
    scale = min(1.0, (short_side or math.inf) / min(wide, height))
    if scale == 1 and aspect == 1:
        return width, height
    return max(2, 2 * round(wide * scale / 2)), max(2, 2 * round(height * scale / 2))
