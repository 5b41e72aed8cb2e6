"""The chat page: Gradio in front of the same service that the API asks."""

import asyncio
import io
import json
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from jobs.replies.events import Finished, Full, Lost, Made
from jobs.serving.cases import CASES, drawn
from jobs.serving.requests import uploads
from jobs.serving.requests.openai_format import MIME, alternating, error
from jobs.serving.requests.sessions import COOKIE, Session, Sessions
from jobs.serving.requests.visitors import Visitors
from jobs.serving.service import Service
from jobs.serving.showing import Growing, asked_before, messages, place_of, state_of
from model.checkpoints.description import SHIPPED
from model.inference.query import Query, Sampling
from pipelines.media.policy import Refused
from pipelines.sample import Item, Modality, Part, Turn, turns_document

_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # nothing is fetched from elsewhere
_SHORTEST_WAIT = 0.04  # seconds between two pictures of a growing reply
_LONGEST_TEXT = 20_000
_INTRO = """# NExT-GPT on Ray
Any mix of text, pictures, videos and sounds in; any mix out.
"""
_PLANS = {"scheduler": "The LLM plans what its tools do, and is told in words; the last plan stands below.\n"}
# What the model that ships can talk about.
_SMALL = "This model is small, and knows coloured shapes, how they move, and notes on instruments: "
_FOR_INSTANCE = "*Draw a small red circle at the left.* *Make it blue.* *Let me hear a low mi on the flute.*"


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
        gr.Markdown(_INTRO + _PLANS.get(service.architecture, "") + _untrained(service), elem_id="intro")
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
        state = gr.HTML(state_of(None), elem_id="state")
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
            async for shown in _respond(service, session, chosen):
                yield shown, gr.skip(), state_of(session)

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
            yield messages(session), {"text": "", "files": []}, state_of(session)
            async for update in respond(session, *values):
                yield update

        async def case(title: str, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
            session = session_of(request)
            _check_idle(session)
            session.turns.append(await asyncio.to_thread(_example, session, title))
            yield messages(session), gr.skip(), state_of(session)
            async for update in respond(session, *values):
                yield update

        async def retry(event: gr.RetryData, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
            session = session_of(request)
            _check_idle(session)
            session.truncate(asked_before(session, event.index))
            async for update in respond(session, *values):
                yield update

        async def edit(event: gr.EditData, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
            session = session_of(request)
            _check_idle(session)
            turn, part = place_of(session, event.index)
            parts = list(session.turns[turn].parts)
            parts[part] = str(event.value)[:_LONGEST_TEXT]
            session.truncate(turn + 1)
            session.turns[turn] = Turn(role="user", parts=tuple(parts))
            yield messages(session), gr.skip(), state_of(session)
            async for update in respond(session, *values):
                yield update

        def wipe(request: gr.Request) -> Any:
            session = session_of(request)
            _check_idle(session)
            session.truncate(0)
            return [], state_of(session)

        def load(request: gr.Request) -> Any:
            session = session_of(request)
            return messages(session), state_of(session)

        async def settle(request: gr.Request) -> Any:
            session = session_of(request)
            for _ in range(200):  # What was stopped notices at its next word.
                if not session.is_busy:
                    break
                await asyncio.sleep(0.05)
            return messages(session), state_of(session)

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
    growing, shown = Growing(), 0.0
    _check_idle(session)
    session.is_busy = True
    try:
        yield messages(session, growing)
        query = await asyncio.to_thread(_query, session, chosen, service)
        async with aclosing(service.answer(query)) as events:
            async for event in events:
                growing.take(event, session)
                if isinstance(event, Finished):
                    session.turns.append(Turn(role="assistant", parts=tuple(growing.parts)))
                    session.plan = growing.plan
                elif isinstance(event, Made) or time.monotonic() - shown > _SHORTEST_WAIT:
                    shown = time.monotonic()
                    yield messages(session, growing)
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
    yield messages(session)


def _query(session: Session, chosen: dict[str, Any], service: Service) -> Query:
    """What the model is asked: the conversation, and what the page's controls are set to."""
    turns = alternating(session.turns)
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
