"""Answers queries on its own thread, with continuous batching: later queries join those in progress."""

from collections.abc import Callable
from itertools import count

from model.inference.generation import Generator
from model.inference.inbox import Inbox
from model.inference.query import AT_ONCE, Query, Reply
from model.inference.responder import Responder
from pipelines.sample import Part

Tell = Callable[[Part | Reply | Exception], None]


class Speaker(Inbox[tuple[int, Query | None, Tell]]):
    """A model's LLM and encoder, shared by many clients.

    Up to `at_once` answers are generated concurrently; further queries wait. The speaker owns the responder from here
    on. Queries that are pending when it is closed receive an error.
    """

    def __init__(self, responder: Responder, *, at_once: int = AT_ONCE) -> None:
        super().__init__()
        self._responder, self._at_once = responder, at_once
        responder.model.eval()
        self._tickets = count()
        self._asked: dict[int, tuple[int, Tell]] = {}  # ticket and listener by the generator's number
        self._generator = self._new_generator()
        self._start("speaker")

    def ask(self, query: Query, tell: Tell) -> int:
        """Submits a query; returns a ticket. `tell` is called from the worker thread.

        It receives the parts, as `on_part` of `generate_batch` does, and then the reply or an error, such as the
        ValueErrors of `Responder.respond`.
        """
        ticket = next(self._tickets)
        self._inbox.put((ticket, query, tell))
        return ticket

    def drop(self, ticket: int) -> None:
        """Cancels a query."""
        self._inbox.put((ticket, None, lambda _: None))

    def _new_generator(self) -> Generator:
        return Generator(self._responder.model, self._responder.tokenizer, at_once=self._at_once)

    def _run(self) -> None:
        while self._take():
            try:
                replies = self._generator.step()
            except Exception as error:  # Out of memory, for example: these queries are lost, the next may fit.
                self._fail(error)
                continue
            for number, reply in replies.items():
                _, tell = self._asked.pop(number)
                tell(reply)
        self._fail(RuntimeError("the model is being shut down"))

    def _take(self) -> bool:
        """Takes pending messages, waiting for one if idle; returns False once closed."""
        while self._generator.is_idle or not self._inbox.empty():
            message = self._inbox.get()
            if message is None:
                return False
            ticket, query, tell = message
            if query is None:
                for number in [number for number, (asked, _) in self._asked.items() if asked == ticket]:
                    self._generator.drop(number)
                    del self._asked[number]
                continue
            try:
                [embedded] = self._responder.embedded([query])
                number = self._generator.add(embedded, tell)
            except Exception as error:
                tell(error)
                continue
            self._asked[number] = ticket, tell
        return True

    def _fail(self, error: Exception) -> None:
        asked, self._asked = self._asked, {}
        self._generator = self._new_generator()
        for _, tell in asked.values():
            tell(error)
