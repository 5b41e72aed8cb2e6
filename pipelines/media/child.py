"""The process that decodes untrusted media: it reads requests and writes stored media, and has no other access.

    python -P -m pipelines.media.child

A message is two lengths of 4 bytes, JSON and bytes. Once it has said that it is ready it can open no file and no
connection, write no file and leave no core; a medium may take so much memory and time, and then the kernel ends it. It
ends with its standard input. `pipelines/media/process.py` is the other end.
"""

import importlib
import json
import os
import pkgutil
import resource
import signal
import struct
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import av
import PIL.Image
import PIL.ImageColor
import PIL.ImageFilter
import PIL.ImagePalette

from pipelines.media.policy import Limits, MediaPolicy, OutOfMemory, Refused
from pipelines.media.stored import store
from pipelines.sample import Media, Modality

OUT_OF_MEMORY = 71  # Exit status: what is left after a MemoryError is not to be trusted with the next medium.
_LENGTHS = struct.Struct(">II")
_MAX_HEADER = 1 << 20
# Processor time does not run while others have the machine, so the clock on the wall only ends what sleeps for ever.
_PATIENCE = 10


def write_message(stream: BinaryIO, header: Any, data: bytes = b"") -> None:
    """Writes one whole message."""
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), len(data)) + text)
    stream.write(data)
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[Any, bytes]:
    """Reads one message; raises EOFError where the stream ends before it does, ValueError where it is none."""
    text_length, data_length = _LENGTHS.unpack(_read(stream, _LENGTHS.size))
    if text_length > _MAX_HEADER:
        raise ValueError(f"a header of {text_length} bytes")
    return json.loads(_read(stream, text_length)), _read(stream, data_length)


def main() -> None:
    """Answers requests until the input ends."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    _import_all()
    memory = _data_bytes()
    write_message(replies, "ready")
    _lock_up()
    while True:
        try:
            header, data = read_message(requests)
            reply, stored = _answer(header, data, memory)
        except (OutOfMemory, MemoryError):
            os._exit(OUT_OF_MEMORY)
        except EOFError:
            return
        write_message(replies, reply, stored)


def _answer(header: dict[str, str], data: bytes, memory: int) -> tuple[dict[str, Any], bytes]:
    policy = _policy(header["policy"])
    media = Media(modality=Modality(header["modality"]), data=data, format=header["format"])
    _limit(policy.limits, memory)
    try:
        stored = store(media, policy)
    except OutOfMemory:
        raise
    except Refused as error:
        return {"refused": str(error)}, b""
    finally:
        _set_timers(0)
    unchanged = stored.media.data is data
    return {"format": stored.media.format, "facts": stored.facts, "unchanged": unchanged}, (
        b"" if unchanged else stored.media.data
    )


@lru_cache(maxsize=8)
def _policy(text: str) -> MediaPolicy:
    return MediaPolicy.model_validate_json(text)


def _import_all() -> None:
    """Imports everything that Pillow and PyAV import lazily, since files cannot be opened later."""
    PIL.Image.preinit()
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _lock_up() -> None:
    """Drops all rights that decoding does not need; the two pipes stay open."""
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def _limit(limits: Limits, memory: int) -> None:
    if memory:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = memory + limits.max_memory
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    _set_timers(limits.max_decode_seconds)


def _set_timers(seconds: float) -> None:
    """Sets timers whose signals end the process, even inside C code."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE * seconds)


def _data_bytes() -> int:
    """What of this process counts as data before any medium; 0 where the system cannot tell (nor limit it)."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[5]) * resource.getpagesize() if status.exists() else 0


def _read(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
