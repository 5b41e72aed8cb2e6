"""Ctrl-C and SIGTERM: a command ends with one line, the exit code that shells expect, and without processes left."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn
from unittest import mock

KINDS = (signal.SIGINT, signal.SIGTERM)
_has_started_ray = False
_received: "Interrupted | None" = None


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; its text, one line, is the last that is printed."""

    def __init__(self, kind: int, line: str | None = None) -> None:
        self.kind = signal.Signals(kind)
        super().__init__(line or ("terminated" if kind == signal.SIGTERM else "interrupted"))

    @property
    def code(self) -> int:
        """The exit code that shells give to a process which the signal ends."""
        return 128 + self.kind


def interrupt(kind: int, _: object = None) -> NoReturn:
    """A handler of signals: ends the command from where it is, by an Interrupted."""
    global _received
    _received = Interrupted(kind)
    raise _received


def received() -> Interrupted | None:
    """The signal that came, for where another error tells of it: some libraries turn it into one while they load."""
    return _received


@contextmanager
def handled(*kinds: signal.Signals) -> Iterator[None]:
    """Lets these signals raise Interrupted, even SIGINT, which shells have commands in the background ignore."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _received
    before = {kind: signal.signal(kind, interrupt) for kind in kinds}
    try:
        yield
    finally:
        _set_handlers(before)
        if interrupt not in before.values():
            _received = None


@contextmanager
def starting_ray() -> Iterator[None]:
    """Keeps the handlers: Ray's own, of Python and of C++, end with the signal's number as exit code, or a dump."""
    global _has_started_ray
    from ray._private import utils

    before = {kind: signal.getsignal(kind) for kind in KINDS}
    _has_started_ray = True
    with mock.patch.object(utils, "set_sigterm_handler"):
        try:
            yield
        finally:
            _set_handlers(before)


def _set_handlers(handlers: Mapping[signal.Signals, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


def owns_ray() -> bool:
    """Whether this process started the Ray that it uses, and so may shut it down."""
    from ray._private import worker

    node = worker._global_node
    return node is not None and node.is_head()


def end_ray() -> set[int]:
    """Leaves Ray; of what this process started, even in part, nothing is left. Returns the ids of those processes.

    Signals are ignored from here on: what this takes is a few seconds at most.
    """
    import psutil
    import ray

    _set_handlers(dict.fromkeys(KINDS, signal.SIG_IGN))
    ours = psutil.Process().children(recursive=True)
    ray.shutdown()
    _, left = psutil.wait_procs(ours, timeout=1)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=0.2)
    return {process.pid for process in ours}


def end(error: KeyboardInterrupt) -> NoReturn:
    """Ends the process, with the Ray that it started, if it did."""
    told = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
    if _has_started_ray:
        end_ray()
    print(f"error: {told}", file=sys.stderr)
    if _has_started_ray:
        leave(told.code)
    sys.exit(told.code)


def leave(code: int) -> NoReturn:
    """Ends the process now: a regular exit takes seconds to unload torch and Ray's client, and may end in an abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
