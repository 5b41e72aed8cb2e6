"""Renders on its own thread, on request: similar waiting requests are batched."""

from collections import deque
from collections.abc import Callable

from model.decoders.decoder import Decoder
from model.decoders.rendering import most_at_once, render_batch
from model.decoders.wish import RenderStep, Wish
from model.inference.inbox import Inbox
from model.parts.devices import give_back_memory
from pipelines.sample import Decoded

Tell = Callable[[RenderStep | Decoded | Exception], None]


class Painter(Inbox[tuple[Wish, Tell]]):
    """A decoder shared by many clients; `at_once` limits batches further than the size of the media does.

    The painter owns the decoder from here on. Requests made before `close` are still completed. While idle, the decoder
    is on the device `rests_on`, if given.
    """

    def __init__(self, decoder: Decoder, *, at_once: int | None = None, rests_on: str | None = None) -> None:
        super().__init__()
        self._decoder, self._at_once = decoder, at_once
        self._works_on, self._rests_on = decoder.pipe.device, rests_on
        if rests_on is not None:
            decoder.to(rests_on)
        self._waiting: deque[tuple[Wish, Tell]] = deque()
        self.batches = 0  # rendered so far
        self._start("painter")

    def ask(self, wish: Wish, tell: Tell) -> None:
        """Requests a medium; `tell` is called from the worker thread with each step, then the medium or an error."""
        self._inbox.put((wish, tell))

    def _run(self) -> None:
        is_open = True
        while is_open or self._waiting:
            while is_open and (not self._waiting or not self._inbox.empty()):
                message = self._inbox.get()
                if message is None:
                    is_open = False
                else:
                    self._waiting.append(message)
            if self._waiting:
                self._render(self._next())
                if self._rests_on is not None and not self._waiting and self._inbox.empty():
                    self._decoder.to(self._rests_on)
                give_back_memory()

    def _next(self) -> list[tuple[Wish, Tell]]:
        """Takes the oldest request and similar ones from the queue; the others keep their order."""
        first = self._waiting[0][0]
        try:
            room = most_at_once(self._decoder, first.settings)
        except (TypeError, ValueError):  # Rendering it will report what is wrong.
            room = 1
        room = min(room, self._at_once or room)
        alike = [asked for asked in self._waiting if asked[0].kind == first.kind][:room]
        taken = {id(asked) for asked in alike}
        self._waiting = deque(asked for asked in self._waiting if id(asked) not in taken)
        return alike

    def _render(self, asked: list[tuple[Wish, Tell]]) -> None:
        wishes, tells = [wish for wish, _ in asked], [tell for _, tell in asked]
        self.batches += 1

        def on_step(done: int, total: int) -> None:
            for tell in tells:
                tell(RenderStep(done, total))

        try:
            if self._rests_on is not None:
                self._decoder.to(self._works_on)
            media = render_batch(self._decoder, wishes, on_step)
        except Exception as error:
            for tell in tells:
                tell(error)
            return
        for tell, medium in zip(tells, media, strict=True):
            tell(medium)
