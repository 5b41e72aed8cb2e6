"""What the page and the API share: one way to ask the model, and how many may ask at once."""

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from jobs.replies.respond import Architecture
from jobs.serving.deployments import About
from jobs.serving.requests.events import Event, Full
from model.inference.query import Query

Answer = Callable[[Query], AsyncGenerator[Event, None]]
_LEAST_WAIT = 1


@dataclass(slots=True)
class Service:
    """A model that answers up to `places` conversations at a time.

    Who finds all of them taken is told at once, and when to come again.
    """

    about: About
    answer_all: Answer
    places: int
    architecture: Architecture = "joint"
    taken: int = 0
    seconds: float = 5.0  # that a reply took of late

    async def answer(self, query: Query) -> AsyncGenerator[Event, None]:
        """Tells a reply as it comes, as the `answer` of an architecture does; raises Full besides."""
        if self.taken >= self.places:
            raise Full(max(_LEAST_WAIT, round(self.seconds)))
        self.taken += 1
        started = time.monotonic()
        try:
            async for event in self.answer_all(query):
                yield event
            self.seconds += 0.1 * (time.monotonic() - started - self.seconds)
        finally:
            self.taken -= 1
