"""Answers on a thread of its own, as they are asked: those that come later join the ones on their way."""

from collections.abc import Callable
from itertools import count

from model.inference.generation import Generator, Reply
from model.inference.inbox import Inbox
from model.inference.query import Query
from model.inference.responder import Responder
from pipelines.sample import Part

Tell = Callable[[Part | Reply | Exception], None]
AT_ONCE = 32


class Speaker(Inbox[tuple[int, Query | None, Tell]]):
    """The LLM of a model and its encoder, for many who ask.

    Up to `at_once` answers grow side by side; the others wait. From here on nobody else may use the responder. Who
    waits when it is closed is told.
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
        """Asks; returns a ticket. `tell` is called from the other thread.

        It is told the parts as `generate_batch` tells them, and at last the reply, or the error instead: ValueError as
        `Responder.respond` raises it.
        """
        ticket = next(self._tickets)
        self._inbox.put((ticket, query, tell))
        return ticket

    def drop(self, ticket: int) -> None:
        """Forgets a query that nobody waits for any more."""
        self._inbox.put((ticket, None, lambda _: None))

    def _new_generator(self) -> Generator:
        return Generator(self._responder.model, self._responder.tokenizer, at_once=self._at_once)

    def _run(self) -> None:
        while self._take():
            try:
                replies = self._generator.step()
            except Exception as error:  # Out of memory, say: these are lost, the next may fit.
                self._fail(error)
                continue
            for number, reply in replies.items():
                _, tell = self._asked.pop(number)
                tell(reply)
        self._fail(RuntimeError("the model is being shut down"))

    def _take(self) -> bool:
        """Takes what has come, and waits for it where there is nothing else to do; False at the end."""
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
                [prompt] = self._responder.prompts([query])
                number = self._generator.add(prompt, tell)
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
