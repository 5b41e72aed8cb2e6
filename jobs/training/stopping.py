"""Ends a run between two steps, with a checkpoint, when a signal asks for it."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TypeVar

from jobs.common import signals
from jobs.common.signals import Interrupted
from model.runs.run_state import first_step, resumable
from pipelines.storage.files import is_local, read_json_lines, write_json

REQUEST = "stop-requested.json"  # in a run: its workers are to save and end after the step that they are at
# Less than the 30 seconds after which Kubernetes and Slurm kill what they have asked to end.
GRACE_SECONDS = 22.0
_LOOK_EVERY = 0.1
_LOOK_EVERY_REMOTE = 5.0

T = TypeVar("T")


def until_stopped(work: Callable[[], T], run: Path) -> T:
    """The result of `work`, which trains in `run`; when interrupted, its workers get some time to save and end.

    Raises:
        Interrupted: after that time, or at the next signal.
    """
    # In a thread: in the main one, Ray Train would handle Ctrl-C itself, and signals wait for its calls to return.
    done = Future[T]()
    Thread(target=_fulfil, args=(done, work), daemon=True, name="training").start()
    try:
        return done.result()
    except Interrupted as signal:
        print(
            f"{signal.kind.name}: saving after this step, {GRACE_SECONDS:.0f} seconds at most; a second signal ends "
            "the run at once",
            flush=True,
        )
        write_json(run / REQUEST, {"signal": signal.kind.name})
        with suppress(Exception):  # what fails while it ends does not matter any more
            done.result(timeout=GRACE_SECONDS)
        raise
    finally:
        (run / REQUEST).unlink(missing_ok=True)


def _fulfil(done: Future[T], work: Callable[[], T]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)


def stop_requests(run: Path) -> Callable[[], bool]:
    """A function that says whether the run is to stop; it looks into the folder now and then."""
    every = _LOOK_EVERY if is_local(run) else _LOOK_EVERY_REMOTE
    looked, found = time.monotonic(), False

    def is_requested() -> bool:
        nonlocal looked, found
        if not found and time.monotonic() - looked > every:
            looked, found = time.monotonic(), (run / REQUEST).is_file()
        return found

    return is_requested


@dataclass(slots=True)
class Course:
    """A run, and of how many steps it is once that is known."""

    run: Path
    num_steps: int | None = None


@contextmanager
def interruptible(run: Path) -> Iterator[Course]:
    """Lets SIGINT and SIGTERM end what trains in `run`, at any time.

    Raises:
        Interrupted: a signal came; its line says where the run stands. No process of a Ray of its own is left.
    """
    course = Course(run)
    with signals.handled(*signals.KINDS):
        try:
            yield course
        except BaseException:
            stop = signals.received()
            if stop is None:
                raise
            signals.end_ray()  # before another run may take the folder
            raise Interrupted(stop.kind, where_it_stands(course)) from None


def where_it_stands(course: Course) -> str:
    """In one line: the last step, the checkpoint to resume from, and how to go on."""
    run, of = course.run, f" of {course.num_steps}" if course.num_steps is not None else ""
    log, checkpoint = run / "log.jsonl", resumable(run)
    step, saved = max((row["step"] for row in read_json_lines(log) if "loss" in row), default=0), first_step(run)
    if checkpoint is None:
        return f"stopped after step {step}{of}, without a checkpoint; the same command starts the run again"
    at = f"after step {saved}{of}" if saved >= step else f"after step {step}{of}, saved at step {saved}"
    if saved == course.num_steps:
        return f"stopped {at}, its last; checkpoint {checkpoint}"
    return f"stopped {at}; checkpoint {checkpoint}; the same command goes on from there"
