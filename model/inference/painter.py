"""Renders on a thread of its own, as it is asked: what waits and is alike goes in one batch."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from model.decoders.decoder import Decoder
from model.decoders.rendering import Wish, most_at_once, render_batch
from model.inference.inbox import Inbox
from model.parts.devices import give_back_memory
from pipelines.sample import Decoded


@dataclass(frozen=True, slots=True)
class Step:
    """How far a medium is: `done` denoising steps of `total`."""

    done: int
    total: int


Tell = Callable[[Step | Decoded | Exception], None]


class Painter(Inbox[tuple[Wish, Tell]]):
    """A decoder for many who ask; `at_once` bounds a batch below what its media's size allows.

    From here on nobody else may use the decoder. What was asked before it is closed is still done. While nobody asks,
    the decoder is on the device `rests_on`, if there is one.
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
        """Asks; `tell` is called from the other thread with each step, and at last the medium, or the error instead."""
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
        """The one that waits longest, and those like it; the others keep their places."""
        first = self._waiting[0][0]
        try:
            room = most_at_once(self._decoder, first.settings)
        except (TypeError, ValueError):  # Rendering it will say what is wrong.
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
                tell(Step(done, total))

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
