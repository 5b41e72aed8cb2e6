"""Decodes in a separate process: a crash, a hang or a decompression bomb costs its own medium only.

Several media are on their way at a time, so that this process reads and writes files while the other decodes.
"""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from pipelines.media.child import OUT_OF_MEMORY, read_message, write_message
from pipelines.media.policy import MediaPolicy, Refused
from pipelines.media.stored import Stored
from pipelines.sample import Media

COMMAND = (sys.executable, "-P", "-m", "pipelines.media.child")
# Enough to never wait for each other; bounds what is held of media that wait.
_MAX_IN_FLIGHT = 8
_MAX_BYTES_IN_FLIGHT = 32 * 2**20
_MAX_WAITING = 256
_TIMERS = (signal.SIGPROF, signal.SIGALRM)
_HUNG = "decoder hung"
_GOING = 5.0  # seconds a child may take to end that has closed its end of the pipe
# All that a child sees of the environment: no keys to anything.
_VARIABLES = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYTHON", "LC_", "LD_")
T = TypeVar("T")


class MediaProcess:
    """A child process that decodes and stores media in order; if it dies, it is replaced."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._sent: deque[tuple[Media, MediaPolicy]] = deque()
        self._bytes = 0
        self._start()

    def store(self, elements: Iterable[T | Media], policy: MediaPolicy) -> Iterator[T | Stored | Refused]:
        """Stores the media among `elements`, or returns the reason; other elements pass through in place."""
        waiting: deque[T | Media] = deque()
        for element in elements:
            if isinstance(element, Media):
                while self._sent and self._bytes + len(element.data) > _MAX_BYTES_IN_FLIGHT:
                    yield self._next(waiting)
                self._send(element, policy)
            waiting.append(element)
            while waiting and (self._is_ahead(waiting) or not isinstance(waiting[0], Media)):
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def close(self) -> None:
        """Kills the child."""
        self._process.kill()
        self._end()

    @property
    def is_idle(self) -> bool:
        """Whether the child is alive and has no pending request."""
        return not self._sent and self._process.poll() is None

    def _is_ahead(self, waiting: deque[Any]) -> bool:
        return len(self._sent) >= _MAX_IN_FLIGHT or len(waiting) > _MAX_WAITING

    def _next(self, waiting: deque[Any]) -> Any:
        element = waiting.popleft()
        return self._receive() if isinstance(element, Media) else element

    def _send(self, media: Media, policy: MediaPolicy) -> None:
        self._sent.append((media, policy))
        self._bytes += len(media.data)
        self._queue.put((media, policy))

    def _receive(self) -> Stored | Refused:
        """The answer to the oldest request; after a death it is put once more, to a child that saw no other.

        So a medium is refused for what it does itself, not for what others left behind. A hang is not repeated.
        """
        media, policy = self._sent[0]
        for is_last in (False, True):
            try:
                answer = _answer(media, *read_message(self._replies))
            except (
                EOFError,
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
            ):  # Dead, or taken over and talking nonsense.
                refusal = self._cause(policy, self._end())
                is_final = is_last or str(refusal).startswith(_HUNG)
                if is_final:
                    self._forget()
                self._start()
                if is_final:
                    return refusal
            else:
                self._forget()
                return answer
        raise AssertionError

    def _forget(self) -> None:
        media, _ = self._sent.popleft()
        self._bytes -= len(media.data)

    def _end(self) -> int:
        """Cleans up after a dead or dying child; returns its exit status."""
        self._queue.put(None)
        self._replies.close()
        try:
            return self._process.wait(_GOING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _cause(self, policy: MediaPolicy, status: int) -> Refused:
        if status == OUT_OF_MEMORY:
            return Refused(f"too large: decoding it takes more than {policy.limits.max_memory // 2**20} MiB of memory")
        if -status in _TIMERS:
            return Refused(f"{_HUNG}: more than {policy.limits.max_decode_seconds:g} s")
        return Refused(f"decoder crashed: {signal.Signals(-status).name if status < 0 else f'exit status {status}'}")

    def _start(self) -> None:
        """Starts a child and resends all unanswered requests."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment()
        )
        self._replies = cast(BinaryIO, self._process.stdout)
        try:
            read_message(self._replies)
        except EOFError:
            command = " ".join(self._command)
            raise RuntimeError(
                f"the media process cannot start (exit status {self._process.wait()}): {command}"
            ) from None
        self._queue: queue.SimpleQueue[tuple[Media, MediaPolicy] | None] = queue.SimpleQueue()
        for request in self._sent:
            self._queue.put(request)
        requests = cast(BinaryIO, self._process.stdin)
        threading.Thread(target=_write_requests, args=(requests, self._queue), daemon=True).start()


_idle: deque[MediaProcess] = deque()
# A forked process must not talk to its parent's children.
os.register_at_fork(after_in_child=_idle.clear)


@contextmanager
def media_process() -> Iterator[MediaProcess]:
    """A child for exclusive use, kept afterwards for the next caller; it ends with this process."""
    process = _idle.pop() if _idle else MediaProcess()
    if not process.is_idle:  # It died while nobody looked.
        process.close()
        process = MediaProcess()
    try:
        yield process
    finally:
        if process.is_idle:
            _idle.append(process)
        else:
            process.close()


def _answer(media: Media, header: dict[str, Any], data: bytes) -> Stored | Refused:
    """What a child says, of which nothing is taken on trust: the format becomes part of a file name."""
    if "refused" in header:
        return Refused(str(header["refused"]))
    format, facts = str(header["format"]), {str(name): round(value, 3) for name, value in header["facts"].items()}
    if not re.fullmatch(r"[a-z0-9]{1,8}", format):
        raise ValueError(f"{format!r} is not a format")
    data = media.data if header["unchanged"] else data
    return Stored(media=Media(modality=media.modality, data=data, format=format), facts=facts)


def _write_requests(stream: BinaryIO, requests: "queue.SimpleQueue[tuple[Media, MediaPolicy] | None]") -> None:
    """Writes requests until there are none left or the reader is gone."""
    try:
        with stream:
            while request := requests.get():
                media, policy = request
                header = {"modality": media.modality, "format": media.format, "policy": policy.model_dump_json()}
                write_message(stream, header, media.data)
    except OSError:  # The child is gone; who waits for its answer notices.
        pass


def _environment() -> dict[str, str]:
    """The child's environment: it finds this package, and each library uses one thread."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    quick = {"PYDANTIC_DISABLE_PLUGINS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    return {**kept, "PYTHONPATH": path, **quick}
