"""A thread of one's own that takes what others put into its inbox."""

import threading
from abc import ABC, abstractmethod
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(ABC, Generic[T]):
    """Runs `_run` on a thread once `_start` is called; None in its inbox ends it."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[T | None] = SimpleQueue()

    def close(self) -> None:
        """Ends the thread, and waits for that."""
        self._inbox.put(None)
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether it still works."""
        return self._thread.is_alive()

    def _start(self, name: str) -> None:
        """The last thing to do when all that the thread needs is there."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @abstractmethod
    def _run(self) -> None:
        """Takes from the inbox until None comes."""
