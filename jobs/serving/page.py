"""The chat page: Gradio in front of the same service that the API asks."""

import asyncio
import io
import json
import time
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from jobs.serving import uploads
from jobs.serving.events import Begun, Event, Finished, Full, Lost, Made, Progress, Said
from jobs.serving.openai_format import MIME, error
from jobs.serving.service import Service
from jobs.serving.sessions import COOKIE, Session, Sessions
from jobs.serving.visitors import Visitors
from model.description import SHIPPED
from model.query import Query, Sampling
from pipelines.media_policy import Refused
from pipelines.sample import Item, Modality, Part, Turn, turns_document

_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_NOUNS = {Modality.IMAGE: "picture", Modality.VIDEO: "video", Modality.AUDIO: "sound"}
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # nothing is fetched from elsewhere
_SHORTEST_WAIT = 0.04  # seconds between two pictures of a growing reply
_LONGEST_TEXT = 20_000
# The four cases of NExT-GPT's tutorial: what is shown on a button, and the kind of conversation in our world.
CASES = {
    "Picture → sound": "image_to_sound",
    "Video → sound": "video_to_sound",
    "Picture → picture + video": "image_to_video",
    "Words → all three": "everything",
}
_CASE_SEED = 7
_INTRO = """# NExT-GPT on Ray
Any mix of text, pictures, videos and sounds in; any mix out.
"""
# What the model that ships can talk about.
_SMALL = "This model is small, and knows coloured shapes, how they move, and notes on instruments: "
_FOR_INSTANCE = "*Draw a small red circle at the left.* *Make it blue.* *Let me hear a low mi on the flute.*"


@dataclass(slots=True)
class _Growing:
    """A reply on its way: its parts so far, how far each item is, and those that are there."""

    parts: list[Part] = field(default_factory=list)
    progress: dict[int, str] = field(default_factory=dict)
    made: dict[int, Item] = field(default_factory=dict)

    def take(self, event: Event, session: Session) -> None:
        match event:
            case Said(text):
                if self.parts and isinstance(self.parts[-1], str):
                    self.parts[-1] += text
                else:
                    self.parts.append(text.lstrip())
            case Begun(number, modality):
                self.parts.append(Item(modality=modality))
                self.progress[number] = f"thinking of a {_NOUNS[modality]} …"
            case Progress(number, done, total):
                self.progress[number] = f"{done} of {total} steps"
            case Made(number, media):
                self.made[number] = session.keep(media)
            case Finished(parts=parts):
                items = iter([self.made[number] for number in sorted(self.made)])
                self.parts = [next(items) if isinstance(part, Item) else part for part in parts]

    def shown(self) -> Iterator[tuple[Part, str]]:
        """Each part, and what is to be said of an item that is not there yet."""
        number = 0
        for part in self.parts:
            if isinstance(part, Item) and not part.name:
                made = self.made.get(number)
                yield (made, "") if made else (part, self.progress.get(number, "waiting …"))
                number += 1
            else:
                number += isinstance(part, Item)
                yield part, ""


def add_page(app: FastAPI, service: Service, sessions: Sessions) -> Any:
    """The application with the page at `/`, its visitors' media and the download of a conversation."""

    def session_of(request: Any) -> Session:
        session = sessions.find(request.cookies.get(COOKIE, ""))
        if session is None:
            raise gr.Error("This page has lost its session: reload it.", print_exception=False)
        return session

    @app.get("/media/{name}", include_in_schema=False)
    async def media(name: str, request: Request) -> Response:
        session = sessions.find(request.cookies.get(COOKIE, ""))
        path = session.path(name) if session else None
        if path is None:
            return JSONResponse(error("this conversation holds no such medium", "not_found_error"), 404)
        return FileResponse(
            path, media_type=MIME.get(path.suffix[1:], "audio/flac"), headers={"Cache-Control": "private, max-age=3600"}
        )

    @app.get("/conversation.zip", include_in_schema=False)
    async def conversation(request: Request) -> Response:
        session = sessions.find(request.cookies.get(COOKIE, ""))
        if session is None:
            return JSONResponse(error("there is no conversation", "not_found_error"), 404)
        name = 'attachment; filename="conversation.zip"'
        return Response(_zip(session), media_type="application/zip", headers={"Content-Disposition": name})

    blocks = _blocks(service, session_of)
    app = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        show_error=True,
        max_file_size=uploads.LIMITS.max_bytes,
        footer_links=[],
        theme=gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=_FONTS, font_mono=["monospace"]),
        css=_CSS,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        run_history=False,
    )
    return Visitors(app, sessions)


def _blocks(service: Service, session_of: Any) -> gr.Blocks:
    settings = service.about.settings
    with gr.Blocks(
        title="NExT-GPT on Ray", analytics_enabled=False, fill_height=True, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown(_INTRO + _untrained(service), elem_id="intro")
        chat = gr.Chatbot(
            elem_id="chat",
            show_label=False,
            height="60vh",
            min_height=320,
            scale=1,
            editable="user",
            buttons=["copy"],
            feedback_options=None,
            group_consecutive_messages=True,
            layout="bubble",
            placeholder=_placeholder(service),
            latex_delimiters=[],
        )
        state = gr.HTML(_state(None), elem_id="state")
        with gr.Row(elem_id="cases"):
            buttons = [gr.Button(title, size="sm", min_width=120) for title in CASES]
        box = gr.MultimodalTextbox(
            elem_id="box",
            show_label=False,
            placeholder="Write, or drop, paste or record something",
            sources=["upload", "microphone"],
            file_types=["image", "video", "audio"],
            file_count="multiple",
            max_plain_text_length=_LONGEST_TEXT,
            stop_btn=True,
            autofocus=True,
        )
        with gr.Row(elem_id="tools"):
            clear = gr.Button("Clear", size="sm", min_width=90)
            gr.Button("Download", size="sm", min_width=90, link="/conversation.zip", elem_id="download")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            controls = _controls(settings)
        inputs = list(controls.values())

        async def respond(session: Session, *values: Any) -> AsyncIterator[Any]:
            chosen = dict(zip(controls, values, strict=True))
            async for messages in _respond(service, session, chosen):
                yield messages, gr.skip(), _state(session)

        async def submit(message: dict[str, Any], request: gr.Request, *values: Any) -> AsyncIterator[Any]:
            session = session_of(request)
            text, parts = (message.get("text") or "").strip(), list[Part]()
            try:
                for path in message.get("files") or ():
                    parts.append(await asyncio.to_thread(_take_upload, session, _path_of(path)))
            except (Refused, ValueError) as refused:
                gr.Warning(escape(f"{_name_of(path)}: {refused}"))
                yield gr.skip(), {"text": text, "files": []}, gr.skip()
                return
            if text:
                parts.append(text[:_LONGEST_TEXT])
            if not parts:
                yield gr.skip(), gr.skip(), gr.skip()
                return
            _check_idle(session)
            session.turns.append(Turn(role="user", parts=tuple(parts)))
            yield _messages(session), {"text": "", "files": []}, _state(session)
            async for update in respond(session, *values):
                yield update

        async def case(title: str, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
            session = session_of(request)
            _check_idle(session)
            session.turns.append(await asyncio.to_thread(_example, session, title))
            yield _messages(session), gr.skip(), _state(session)
            async for update in respond(session, *values):
                yield update

        async def retry(event: gr.RetryData, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
            session = session_of(request)
            _check_idle(session)
            session.truncate(_turn_of(session, event.index, after_user=True))
            async for update in respond(session, *values):
                yield update

        async def edit(event: gr.EditData, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
            session = session_of(request)
            _check_idle(session)
            turn, part = _place_of(session, event.index)
            parts = list(session.turns[turn].parts)
            parts[part] = str(event.value)[:_LONGEST_TEXT]
            session.truncate(turn + 1)
            session.turns[turn] = Turn(role="user", parts=tuple(parts))
            yield _messages(session), gr.skip(), _state(session)
            async for update in respond(session, *values):
                yield update

        def wipe(request: gr.Request) -> Any:
            session = session_of(request)
            _check_idle(session)
            session.truncate(0)
            return [], _state(session)

        def load(request: gr.Request) -> Any:
            session = session_of(request)
            return _messages(session), _state(session)

        async def settle(request: gr.Request) -> Any:
            session = session_of(request)
            for _ in range(200):  # What was stopped notices at its next word.
                if not session.is_busy:
                    break
                await asyncio.sleep(0.05)
            return _messages(session), _state(session)

        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        running: list[Any] = [
            box.submit(submit, [box, *inputs], [chat, box, state], **quiet),
            chat.retry(retry, inputs, [chat, box, state], **quiet),
            chat.edit(edit, inputs, [chat, box, state], **quiet),
            *(
                button.click(_bound(case, title), inputs, [chat, box, state], **quiet)
                for button, title in zip(buttons, CASES, strict=True)
            ),
        ]
        box.stop(settle, None, [chat, state], cancels=running, **quiet)
        clear.click(wipe, None, [chat, state], cancels=running, **quiet)
        chat.clear(wipe, None, [chat, state], cancels=running, **quiet)
        page.load(load, None, [chat, state], **quiet)
    return page


def _bound(case: Any, title: str) -> Any:
    # Gradio tells by the signature who wants the request.
    async def of_title(request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        async for update in case(title, request, *values):
            yield update

    return of_title


def _controls(settings: dict[Modality, dict[str, Any]]) -> dict[str, Any]:
    """The settings by name; an empty number leaves it to the decoder."""
    controls: dict[str, Any] = {}
    with gr.Row():
        controls["temperature"] = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0: the likeliest words")
        controls["top_p"] = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p")
        controls["seed"] = gr.Number(0, precision=0, minimum=0, maximum=2**31 - 1, label="Seed")
    with gr.Row():
        steps = max((known["num_inference_steps"] for known in settings.values()), default=20)
        controls["steps"] = gr.Slider(0, 4 * steps, 0, step=1, label="Steps", info="0: each decoder's own")
        controls["guidance"] = gr.Slider(0, 20, 0, step=0.5, label="Guidance", info="0: each decoder's own")
        if frames := settings.get(Modality.VIDEO, {}).get("num_frames"):
            controls["num_frames"] = gr.Slider(1, 2 * frames, frames, step=1, label="Frames of a video")
        if seconds := settings.get(Modality.AUDIO, {}).get("audio_length_in_s"):
            controls["audio_length_in_s"] = gr.Slider(
                min(0.5, seconds / 2), 2 * seconds, seconds, label="Seconds of a sound"
            )
    return controls


def _check_idle(session: Session) -> None:
    if session.is_busy:
        raise gr.Error("The reply before is not finished: stop it, or wait.", print_exception=False)


async def _respond(service: Service, session: Session, chosen: dict[str, Any]) -> AsyncIterator[Any]:
    """Messages of the page while the session's last turn is answered."""
    growing, shown = _Growing(), 0.0
    _check_idle(session)
    session.is_busy = True
    try:
        yield _messages(session, growing)
        query = await asyncio.to_thread(_query, session, chosen, service)
        async with aclosing(service.answer(query)) as events:
            async for event in events:
                growing.take(event, session)
                if isinstance(event, Finished):
                    session.turns.append(Turn(role="assistant", parts=tuple(growing.parts)))
                elif isinstance(event, Made) or time.monotonic() - shown > _SHORTEST_WAIT:
                    shown = time.monotonic()
                    yield _messages(session, growing)
    except (Full, Lost, ValueError) as failure:
        raise gr.Error(f"{str(failure)[:1].upper()}{str(failure)[1:]}.", print_exception=False) from None
    finally:
        session.is_busy = False
        if session.turns and session.turns[-1].role == "user":
            # What came before it was stopped stays to be seen, and is answered to.
            if growing.made or any(isinstance(part, str) and part for part in growing.parts):
                kept = [part for part, _ in growing.shown() if isinstance(part, str) or part.name]
                session.turns.append(Turn(role="assistant", parts=tuple(kept)))
            else:
                session.truncate(len(session.turns))
    yield _messages(session)


def _query(session: Session, chosen: dict[str, Any], service: Service) -> Query:
    """What the model is asked: the conversation, and what the page's controls are set to."""
    turns = _alternating(session.turns)
    items = [part for turn in turns if turn.role == "user" for part in turn.parts if isinstance(part, Item)]
    settings = {}
    for modality, known in service.about.settings.items():
        own = {name: chosen[name] for name in ("num_frames", "audio_length_in_s") if name in known and chosen.get(name)}
        settings[modality] = own | {name: chosen[name] for name in ("steps", "guidance") if chosen.get(name)}
    return Query(
        turns=turns,
        media={item.name: uploads.decode(session.read(item)) for item in items},
        sampling=Sampling(
            max_items=4,
            temperature=float(chosen["temperature"]),
            top_p=float(chosen["top_p"]),
            seed=int(chosen["seed"] or 0),
        ),
        settings=settings,
    )


def _alternating(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of one speaker that follow each other, as after an error, as one."""
    joined = list[Turn]()
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Turn(role=turn.role, parts=(*joined[-1].parts, *turn.parts))
        else:
            joined.append(turn)
    return joined


def _messages(session: Session, growing: _Growing | None = None) -> list[dict[str, Any]]:
    """The conversation as the chat shows it: one message a part."""
    messages = [{"role": turn.role, "content": _content(part, "")} for turn in session.turns for part in turn.parts]
    if growing is not None:
        parts = list(growing.shown()) or [("…", "")]
        messages += [{"role": "assistant", "content": _content(part, note)} for part, note in parts]
    return messages


def _content(part: Part, note: str) -> Any:
    if isinstance(part, str):
        return part
    if not part.name:
        noun = _NOUNS[part.modality]
        return gr.HTML(f'<div class="coming" role="status">Making a {noun}: {escape(note)}</div>')
    source = f"/media/{escape(part.name)}"
    match part.modality:
        case Modality.IMAGE:
            return gr.HTML(f'<a href="{source}" download><img class="medium" src="{source}" alt="picture"></a>')
        case Modality.VIDEO:
            return gr.HTML(f'<video class="medium" src="{source}" controls autoplay loop muted playsinline></video>')
        case Modality.AUDIO:
            return gr.HTML(f'<audio class="medium" src="{source}" controls preload="auto"></audio>')


def _state(session: Session | None) -> str:
    """What is going on, in words; `data-replies` counts the replies that are whole."""
    replies = sum(turn.role == "assistant" for turn in session.turns) if session else 0
    words = "Answering …" if session and session.is_busy else ""
    return f'<span role="status" data-replies="{replies}" data-busy="{str(bool(words)).lower()}">{words}</span>'


def _places(session: Session) -> list[tuple[int, int]]:
    """Turn and part of each message that the chat shows."""
    return [(place, number) for place, turn in enumerate(session.turns) for number, _ in enumerate(turn.parts)]


def _place_of(session: Session, index: Any) -> tuple[int, int]:
    places, place = _places(session), index[0] if isinstance(index, list | tuple) else index
    if not 0 <= int(place) < len(places) or session.turns[places[int(place)][0]].role != "user":
        raise gr.Error("There is nothing to edit there: reload the page.", print_exception=False)
    return places[int(place)]


def _turn_of(session: Session, index: Any, *, after_user: bool) -> int:
    """How many turns to keep so that the one at a message, or the user's before it, is the last."""
    places, place = _places(session), int(index[0] if isinstance(index, list | tuple) else index)
    turn = places[min(place, len(places) - 1)][0] if places else -1
    while turn >= 0 and session.turns[turn].role != "user":
        turn -= 1
    if turn < 0:
        raise gr.Error("There is nothing to answer yet.", print_exception=False)
    return turn + after_user


def _take_upload(session: Session, path: str) -> Item:
    """Checks what the page has uploaded, keeps it in the session, and removes the upload."""
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


def _name_of(file: Any) -> str:
    return Path(_path_of(file)).name


@cache
def drawn(kind: str) -> tuple[str, tuple[Any, ...]]:
    """A case's words, and its media as files, drawn from the world."""
    from pipelines.media import encode
    from pipelines.world.conversations import converse
    from pipelines.world.render import render

    conversation = converse(kind, _CASE_SEED, 0)
    turn = conversation.turns[0]
    text = " ".join(part for part in turn.parts if isinstance(part, str))
    items = [part for part in turn.parts if isinstance(part, Item)]
    return text.strip(), tuple(encode(render(conversation.media[item.name], _CASE_SEED)) for item in items)


def _example(session: Session, title: str) -> Turn:
    text, media = drawn(CASES[title])
    return Turn(role="user", parts=(*(session.keep(medium) for medium in media), text))


def _zip(session: Session) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        document = json.dumps({"turns": turns_document(tuple(session.turns))}, ensure_ascii=False, indent=1)
        archive.writestr("conversation.json", document)
        for turn in session.turns:
            for part in turn.parts:
                if isinstance(part, Item) and (path := session.path(part.name)):
                    archive.write(path, f"media/{part.name}")
    return buffer.getvalue()


def _placeholder(service: Service) -> str:
    known = f"\n\n{_SMALL}{_FOR_INSTANCE}" if f"builtin:{service.about.name}" == SHIPPED else ""
    return f"**Say or show something.** Or try one of the four cases below.{known}"


def _untrained(service: Service) -> str:
    names = ", ".join(service.about.untrained)
    return f"\n> Untrained parts (random weights, for trying the way alone): {names}\n" if names else ""
