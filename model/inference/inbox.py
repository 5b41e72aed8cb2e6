"""A worker thread with a message queue."""

import threading
from abc import ABC, abstractmethod
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(ABC, Generic[T]):
    """Runs `_run` on its own thread once `_start` is called; a None message ends it."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[T | None] = SimpleQueue()

    def close(self) -> None:
        """Stops the thread and waits for it."""
        self._inbox.put(None)
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def _start(self, name: str) -> None:
        """Starts the thread; call it last, once everything the thread needs exists."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @abstractmethod
    def _run(self) -> None:
        """Processes messages until None."""
