"""What the chat page does on each event: sending, retrying, editing, clearing, and showing a reply while it grows."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from jobs.replies import options
from jobs.replies.events import Full, Lost, Made
from jobs.serving.requests import uploads
from jobs.serving.requests.openai_format import alternating
from jobs.serving.requests.sessions import COOKIE, Session, Sessions
from jobs.serving.service import Service
from jobs.serving.showing import Growing, asked_before, messages, place_of, state_of
from model.inference.query import Query, Response
from pipelines.media.codecs import encode
from pipelines.media.policy import Refused
from pipelines.sample import Item, Media, Modality, Part, Turn
from pipelines.world.conversations import converse
from pipelines.world.render import render

_MIN_REFRESH = 0.04  # seconds between two updates of a growing reply
_STOP_CHECKS, _STOP_INTERVAL = 200, 0.05  # how often, and at what interval in seconds, a stopped reply is waited for
# By the labels of their buttons: the kind of conversation from which what is shown comes, and what is said.
CASES = {
    "Picture → sound": ("image_to_sound", "How does this picture sound?"),
    "Video → sound": ("video_to_sound", "What does this video sound like?"),
    "Picture → picture + video": ("image_to_video", "Make it red, and then let it move to the left."),
    "Words → all three": (
        "everything",
        "Make a picture, a video and a sound: a small red circle at the top, a blue square that moves to the right, "
        "and a low mi on the flute.",
    ),
}
# The smallest requests: one medium each, by the label of its button.
TRIES = {
    Modality.IMAGE: ("A picture", "Draw a small red circle at the left."),
    Modality.VIDEO: ("A video", "Show me a video of a large blue square that moves to the right."),
    Modality.AUDIO: ("A sound", "Let me hear a low mi on the flute."),
}
_SEED = 7


class PageEvents:
    """Event handlers of the page; `controls` names the settings whose values each event brings as its last inputs.

    Events that lead to a reply yield updates of the chat, the text box and the state line, the others return the chat
    and the state line.
    """

    def __init__(self, service: Service, sessions: Sessions, controls: Sequence[str]) -> None:
        self._service, self._sessions, self._controls = service, sessions, controls

    async def submit(self, message: dict[str, Any], request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        """Sends what is in the text box; a file that is refused is reported, and nothing is sent."""
        session = self._session(request)
        text, parts = (message.get("text") or "").strip(), list[Part]()
        try:
            for path in map(_path_of, message.get("files") or ()):
                parts.append(await asyncio.to_thread(_take_upload, session, path))
        except (Refused, ValueError) as refused:
            gr.Warning(escape(f"{Path(path).name}: {refused}"))
            yield gr.skip(), {"text": text, "files": []}, gr.skip()
            return
        if text:
            parts.append(text)
        if not parts:
            yield gr.skip(), gr.skip(), gr.skip()
            return
        _check_idle(session)
        session.turns.append(Turn(role="user", parts=tuple(parts)))
        yield messages(session), {"text": "", "files": []}, state_of(session)
        async for update in self._respond(session, values):
            yield update

    def case(self, title: str) -> Callable[..., AsyncIterator[Any]]:
        """The handler of a case's button."""
        return self._asking(lambda session: _example(session, title))

    def say(self, text: str) -> Callable[..., AsyncIterator[Any]]:
        """The handler of a button that says something."""
        return self._asking(lambda session: Turn(role="user", parts=(text,)))

    def _asking(self, turn_in: Callable[[Session], Turn]) -> Callable[..., AsyncIterator[Any]]:
        # Gradio reads the signature to find out who wants the request, so this is no partial.
        async def ask(request: gr.Request, *values: Any) -> AsyncIterator[Any]:
            session = self._session(request)
            _check_idle(session)
            session.turns.append(await asyncio.to_thread(turn_in, session))
            yield messages(session), gr.skip(), state_of(session)
            async for update in self._respond(session, values):
                yield update

        return ask

    async def retry(self, event: gr.RetryData, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        """Answers again the question before a message."""
        session = self._session(request)
        _check_idle(session)
        session.truncate(asked_before(session, event.index))
        async for update in self._respond(session, values):
            yield update

    async def edit(self, event: gr.EditData, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        """Replaces a text of the user's, drops all that came after it, and answers."""
        session = self._session(request)
        _check_idle(session)
        turn, part = place_of(session, event.index)
        parts = list(session.turns[turn].parts)
        parts[part] = str(event.value)
        session.truncate(turn + 1)
        session.turns[turn] = Turn(role="user", parts=tuple(parts))
        yield messages(session), gr.skip(), state_of(session)
        async for update in self._respond(session, values):
            yield update

    def clear(self, request: gr.Request) -> Any:
        """Deletes the conversation and its media."""
        session = self._session(request)
        _check_idle(session)
        session.truncate(0)
        return [], state_of(session)

    def load(self, request: gr.Request) -> Any:
        """Shows the conversation so far."""
        session = self._session(request)
        return messages(session), state_of(session)

    async def settle(self, request: gr.Request) -> Any:
        """Shows what is left of a reply that was stopped, which notices at its next token."""
        session = self._session(request)
        for _ in range(_STOP_CHECKS):
            if not session.is_busy:
                break
            await asyncio.sleep(_STOP_INTERVAL)
        return messages(session), state_of(session)

    def _session(self, request: gr.Request) -> Session:
        session = self._sessions.find(request.cookies.get(COOKIE, ""))
        if session is None:
            raise gr.Error("This page has lost its session: reload it.", print_exception=False)
        return session

    async def _respond(self, session: Session, values: Sequence[Any]) -> AsyncIterator[Any]:
        """Answers the session's last turn."""
        _check_idle(session)
        session.is_busy = True
        growing = Growing()
        try:
            yield _update(session, growing)
            chosen = dict(zip(self._controls, values, strict=True))
            query = await asyncio.to_thread(_query, session, chosen, self._service)
            async with aclosing(self._grown(session, query, growing)) as changes:
                async for _ in changes:
                    yield _update(session, growing)
        except (Full, Lost, ValueError) as failure:
            raise gr.Error(f"{str(failure)[:1].upper()}{str(failure)[1:]}.", print_exception=False) from None
        finally:
            session.is_busy = False
            _keep_unfinished(session, growing)
        yield _update(session)

    async def _grown(self, session: Session, query: Query, growing: Growing) -> AsyncGenerator[None, None]:
        """Takes the events of a reply into `growing`; yields whenever the page should show it."""
        updated = 0.0
        async with aclosing(self._service.answer(query)) as events:
            async for event in events:
                growing.take(event, session)
                if isinstance(event, Response):
                    session.turns.append(Turn(role="assistant", parts=tuple(growing.parts)))
                    session.plan = growing.plan
                elif isinstance(event, Made) or time.monotonic() - updated > _MIN_REFRESH:
                    updated = time.monotonic()
                    yield


def _update(session: Session, growing: Growing | None = None) -> Any:
    return messages(session, growing), gr.skip(), state_of(session)


def _keep_unfinished(session: Session, growing: Growing) -> None:
    """Keeps what a stopped reply has so far as a turn; where it has nothing, its question is taken back."""
    if not session.turns or session.turns[-1].role != "user":
        return
    if growing.made or any(isinstance(part, str) and part for part in growing.parts):
        kept = [part for part, _ in growing.shown() if isinstance(part, str) or part.name]
        session.turns.append(Turn(role="assistant", parts=tuple(kept)))
    else:
        session.truncate(len(session.turns))


def _check_idle(session: Session) -> None:
    if session.is_busy:
        raise gr.Error("The previous reply is not finished: stop it, or wait.", print_exception=False)


def _query(session: Session, chosen: dict[str, Any], service: Service) -> Query:
    """The conversation, and the values of the page's controls; a control at 0 leaves a setting to the decoder."""
    turns = alternating(session.turns)
    items = [part for turn in turns if turn.role == "user" for part in turn.parts if isinstance(part, Item)]
    settings = {}
    for modality, known in service.about.settings.items():
        names = ["steps", "guidance", *(name for name in ("num_frames", "audio_length_in_s") if name in known)]
        settings[modality] = {name: chosen[name] for name in names if chosen.get(name)}
    return Query(
        turns=turns,
        media={item.name: uploads.decode(session.read(item)) for item in items},
        sampling=options.sampling(chosen),
        settings=settings,
    )


def _take_upload(session: Session, path: str) -> Item:
    """Checks a file that the page has uploaded, keeps it in the session, and removes the upload."""
    if path not in session.uploads:
        raise ValueError("not uploaded by this page; try again")
    session.uploads.discard(path)
    file = Path(path)
    try:
        uploads.LIMITS.check_bytes(file.stat().st_size)
        return session.keep(uploads.recognise(file.read_bytes()))
    except OSError:
        raise ValueError("the upload is gone; try again") from None
    finally:
        file.unlink(missing_ok=True)


def _path_of(file: Any) -> str:
    return str(file["path"] if isinstance(file, dict) else getattr(file, "path", file))


def _example(session: Session, title: str) -> Turn:
    kind, text = CASES[title]
    return Turn(role="user", parts=(*(session.keep(medium) for medium in shown(kind)), text))


@cache
def shown(kind: str) -> tuple[Media, ...]:
    """The files that the user shows in a kind of conversation."""
    return tuple(encode(render(subject, _SEED)) for subject in converse(kind, _SEED, 0).media.values())
