"""How the chat page shows a conversation, and a reply while it grows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from jobs.replies.events import Begun, Event, ItemProgress, Made, Planned, Said
from jobs.serving.requests.sessions import Session
from model.inference.query import Response
from pipelines.sample import Item, Modality, Part
from pipelines.scheduling.tool_plans import from_json
from pipelines.world.captions import NOUNS


@dataclass(slots=True)
class Growing:
    """An unfinished reply: its parts so far, the progress of each item, finished items, and its plan in words."""

    parts: list[Part] = field(default_factory=list)
    progress: dict[int, str] = field(default_factory=dict)
    made: dict[int, Item] = field(default_factory=dict)
    plan: str = ""

    def take(self, event: Event, session: Session) -> None:
        """Takes an event; media are stored in the session."""
        match event:
            case Planned(plan):
                self.plan = plan_in_words(plan)
            case Said(text):
                if self.parts and isinstance(self.parts[-1], str):
                    self.parts[-1] += text
                else:
                    self.parts.append(text.lstrip())
            case Begun(number, modality):
                self.parts.append(Item(modality=modality))
                self.progress[number] = f"thinking of a {NOUNS[modality]} …"
            case ItemProgress(number, done, total):
                self.progress[number] = f"{done} of {total} steps"
            case Made(number, media):
                self.made[number] = session.keep(media)
            case Response(parts=parts):
                items = iter([self.made[number] for number in sorted(self.made)])
                self.parts = [next(items) if isinstance(part, Item) else part for part in parts]

    def shown(self) -> Iterator[tuple[Part, str]]:
        """Yields each part, and the progress of an item that is not ready."""
        number = 0
        for part in self.parts:
            if isinstance(part, Item) and not part.name:
                made = self.made.get(number)
                yield (made, "") if made else (part, self.progress.get(number, "waiting …"))
                number += 1
            else:
                number += isinstance(part, Item)
                yield part, ""


def messages(session: Session, growing: Growing | None = None) -> list[dict[str, Any]]:
    """The conversation as Gradio messages, one per part."""
    shown = [{"role": turn.role, "content": _content(part, "")} for turn in session.turns for part in turn.parts]
    if growing is not None:
        parts = list(growing.shown()) or [(growing.plan or "…", "")]
        shown += [{"role": "assistant", "content": _content(part, note)} for part, note in parts]
    return shown


def _content(part: Part, note: str) -> Any:
    if isinstance(part, str):
        return part
    if not part.name:
        noun = NOUNS[part.modality]
        return gr.HTML(f'<div class="coming" role="status">Making a {noun}: {escape(note)}</div>')
    source = f"/media/{escape(part.name)}"
    match part.modality:
        case Modality.IMAGE:
            picture = f'<a href="{source}" download><img class="medium" src="{source}" alt="picture"></a>'
            return gr.HTML(picture + (f"<p>{escape(part.caption)}</p>" if part.caption else ""))
        case Modality.VIDEO:
            return gr.HTML(f'<video class="medium" src="{source}" controls autoplay loop muted playsinline></video>')
        case Modality.AUDIO:
            return gr.HTML(f'<audio class="medium" src="{source}" controls preload="auto"></audio>')


def plan_in_words(plan: str) -> str:
    """A plan in one line of text."""
    steps = [f"{step.tool.replace('_', ' ')} ({step.input})" for step in from_json(plan)]
    return f"Plan: {', '.join(steps) or 'words alone'}"


def state_of(session: Session | None) -> str:
    """The state line; `data-replies` counts finished replies."""
    replies = sum(turn.role == "assistant" for turn in session.turns) if session else 0
    is_busy = session is not None and session.is_busy
    words = "Answering …" if is_busy else session.plan if session else ""
    return f'<span role="status" data-replies="{replies}" data-busy="{str(is_busy).lower()}">{escape(words)}</span>'


def place_of(session: Session, index: int | Sequence[int]) -> tuple[int, int]:
    """Turn and part of a displayed message; raises gr.Error if it is not the user's."""
    found = _at(session, index)
    if found is None or session.turns[found[0]].role != "user":
        raise gr.Error("There is nothing to edit here: reload the page.", print_exception=False)
    return found


def asked_before(session: Session, index: int | Sequence[int]) -> int:
    """The number of turns up to the last user's turn at or before a message."""
    found = _at(session, index) or (len(session.turns) - 1, 0)
    for turn in range(found[0], -1, -1):
        if session.turns[turn].role == "user":
            return turn + 1
    raise gr.Error("There is nothing to answer yet.", print_exception=False)


def _at(session: Session, index: int | Sequence[int]) -> tuple[int, int] | None:
    """Turn and part of the message at Gradio's index."""
    place = int(index if isinstance(index, int) else index[0])
    places = [(turn, part) for turn, said in enumerate(session.turns) for part, _ in enumerate(said.parts)]
    return places[place] if 0 <= place < len(places) else None
