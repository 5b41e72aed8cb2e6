"""The chat page: layout and routes. Its events are in `page_events`."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from jobs.replies.options import OPTIONS
from jobs.serving.page_events import CASES, TRIES, PageEvents
from jobs.serving.requests import uploads
from jobs.serving.requests.guard import MAX_BODY
from jobs.serving.requests.openai_answers import MIME, error
from jobs.serving.requests.sessions import COOKIE, Session, Sessions, Visitors
from jobs.serving.service import Service
from jobs.serving.showing import state_of
from model.checkpoints.description import SHIPPED, SMALL
from pipelines.sample import Item, Modality, turns_document
from pipelines.world.captions import NOUNS

_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # no web fonts
_INTRO = """# NExT-GPT on Ray
Any mix of text, pictures, videos and sounds in; any mix out.
"""
_CAN = "**It talks, sees, hears, and makes {made}.** Try one with a click, or write, drop or record something."
_PLANS = {"scheduler": "The LLM plans tool calls and exchanges text with the tools; the last plan is shown below.\n"}
# What the shipped models can talk about.
_KNOWN = {
    SHIPPED: "This model is small. It knows coloured shapes, their motion, and notes on instruments: ",
    SMALL: "Its LLM has 135 million weights: it knows some English and is often wrong. What it sees, hears and makes "
    "are coloured shapes, their motion, and notes on instruments: ",
}
_FOR_INSTANCE = "*Draw a small red circle at the left.* *Make it blue.* *Let me hear a low mi on the flute.*"


def add_page(app: FastAPI, service: Service, sessions: Sessions) -> Any:
    """Adds the page at `/`, visitors' media and the download of a conversation to an application."""

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

    blocks = _blocks(service, sessions)
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


def _blocks(service: Service, sessions: Sessions) -> gr.Blocks:
    with gr.Blocks(
        title="NExT-GPT on Ray", analytics_enabled=False, fill_height=True, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown(_INTRO + _PLANS.get(service.architecture, "") + _untrained(service), elem_id="intro")
        chat = _chat(service)
        state = gr.HTML(state_of(None), elem_id="state")
        tries = [TRIES[modality] for modality in service.about.settings]
        with gr.Row(elem_id="tries"):
            buttons = {text: gr.Button(f"Try: {title.lower()}", size="sm", min_width=120) for title, text in tries}
        with gr.Row(elem_id="cases"):
            cases = {title: gr.Button(title, size="sm", min_width=120) for title in CASES}
        box = _box()
        with gr.Row(elem_id="tools"):
            clear = gr.Button("Clear", size="sm", min_width=90)
            gr.Button("Download", size="sm", min_width=90, link="/conversation.zip", elem_id="download")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            controls = _controls(service.about.settings)
        events = PageEvents(service, sessions, tuple(controls))
        inputs, outputs, seen = list(controls.values()), [chat, box, state], [chat, state]
        hidden: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        running: list[Any] = [
            box.submit(events.submit, [box, *inputs], outputs, **hidden),
            chat.retry(events.retry, inputs, outputs, **hidden),
            chat.edit(events.edit, inputs, outputs, **hidden),
            *(button.click(events.say(text), inputs, outputs, **hidden) for text, button in buttons.items()),
            *(button.click(events.case(title), inputs, outputs, **hidden) for title, button in cases.items()),
        ]
        box.stop(events.settle, None, seen, cancels=running, **hidden)
        clear.click(events.clear, None, seen, cancels=running, **hidden)
        chat.clear(events.clear, None, seen, cancels=running, **hidden)
        page.load(events.load, None, seen, **hidden)
    return page


def _chat(service: Service) -> gr.Chatbot:
    return gr.Chatbot(
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


def _box() -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        elem_id="box",
        show_label=False,
        placeholder="Write, or drop, paste or record something",
        sources=["upload", "microphone"],
        file_types=["image", "video", "audio"],
        file_count="multiple",
        max_plain_text_length=MAX_BODY,  # a longer text is refused as too long, not cut
        stop_btn=True,
        autofocus=True,
    )


def _controls(settings: dict[Modality, dict[str, Any]]) -> dict[str, Any]:
    """The settings by name; 0 or an empty field leaves a setting to the decoder."""
    controls: dict[str, Any] = {}
    with gr.Row():
        controls["temperature"] = _slider("temperature", step=0.05, info="0: the likeliest words")
        controls["top_p"] = _slider("top_p", step=0.05)
        controls["seed"] = gr.Number(
            OPTIONS["seed"].default,
            precision=0,
            minimum=OPTIONS["seed"].public[0],
            maximum=OPTIONS["seed"].public[1],
            label="Seed",
        )
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


def _slider(name: str, *, step: float, **more: Any) -> gr.Slider:
    option = OPTIONS[name]
    least, most = option.public
    assert most is not None
    label = name.capitalize().replace("_", "-")
    return gr.Slider(step if least is None else least, most, option.default, step=step, label=label, **more)


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
    known = f"\n\n{words}{_FOR_INSTANCE}" if (words := _KNOWN.get(f"builtin:{service.about.name}")) else ""
    made = [f"{NOUNS[modality]}s" for modality in service.about.settings]
    can = _CAN.format(made=" and ".join([", ".join(made[:-1])] * (len(made) > 1) + made[-1:]) or "words")
    return f"{can}{known}"


def _untrained(service: Service) -> str:
    names = ", ".join(service.about.untrained)
    return f"\n> Untrained parts (random weights, only for trying out the system): {names}\n" if names else ""
