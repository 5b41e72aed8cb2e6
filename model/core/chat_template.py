"""How a dialogue is written: in Vicuna v0's layout, or by the chat template of the LLM's own tokenizer.

A template is read once, by rendering it around marks in place of what is said. So what it does to words (it trims them,
or takes thoughts out of them) is left undone, and a dialogue is written alike in training and in every later prompt.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer

from model.core.tokenizer import adds_space, encode_text
from pipelines.sample import Item, Part, Turn

Script = tuple[str | int, ...]  # fixed text, and the ids of special tokens in it
Encode = Callable[[Sequence[str], Part | int | None], list[list[int]]]
STOP = "###"  # ends an answer in Vicuna v0's layout
_CURE = "set llm.template: vicuna_v0, or use an LLM with a chat template"
# Some templates (Llama 3, SmolLM3) write a date: always this one, which is Llama's own default.
_TODAY = datetime(2024, 7, 26)
_DATES = "{%- macro strftime_now(format) %}{{ format" + "".join(
    f" | replace('%{directive}', '{_TODAY.strftime(f'%{directive}')}')" for directive in "aAbBdejmyYHIMSp"
)
_DATES += " }}{% endmacro +%}"
_SYSTEM, _USER, _ANSWER, _NEXT = (f"\ue000{name}\ue001" for name in ("system", "user", "answer", "next"))
_MARK = "\ufdd0\ufdd1"  # no characters: nobody writes them


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """What is written around the turns of a dialogue.

    `head` comes before the first user's words, or with words of the system the pair `system` around these; without
    such a pair they stay in the user's turn. `opening` comes between a user's words and the answer, `lead` before the
    answer's first text. `end` ends an answer, and is learned with it; `tail` follows each, and `between` leads on to
    the next user's words.

    `encode` takes texts that follow each other and what they follow: an item, a special token, or nothing. It encodes
    none of them differently for those behind it. `ends` are ids and `stop` is a text that end an answer.
    """

    head: Script
    opening: Script
    end: Script
    between: Script
    encode: Encode
    lead: str = ""
    tail: Script = ()
    system: tuple[Script, Script] | None = None
    ends: frozenset[int] = frozenset()
    stop: str = ""

    def without_system(self, turns: Sequence[Turn], system: Sequence[str]) -> tuple[str, Sequence[Turn]]:
        """The system's words that begin the first turn, and the turns without them.

        `system` holds the system's messages within the users' turns. Where the template has no place for them, or they
        stand elsewhere, the turns stay as they are.
        """
        if self.system is None or not turns or turns[0].role != "user":
            return "", turns
        parts, taken = list(turns[0].parts), list[str]()
        for words in system:
            if not parts or not isinstance(parts[0], str) or not _begins(parts[0], words):
                break
            taken.append(words)
            rest = parts[0][len(words) :].removeprefix("\n")
            parts[:1] = [rest] if rest else []
        return "\n".join(taken), [Turn(role="user", parts=tuple(parts)), *turns[1:]] if taken else turns


def _begins(text: str, words: str) -> bool:
    return bool(words) and f"{text}\n".startswith(f"{words}\n")


@lru_cache(maxsize=4)
def chat_template(kind: Literal["auto", "vicuna_v0"], tokenizer: Any, system: str | None = None) -> ChatTemplate:
    """The template of settings `llm.template` and `llm.system`; cached, since a large tokenizer is copied.

    Raises ValueError if the tokenizer has none, one that cannot be used, or one that has no place for the system.
    """
    template = _vicuna_v0(tokenizer) if kind == "vicuna_v0" else _own(tokenizer)
    if system is None:
        return template
    if template.system is None:
        raise ValueError(f"{tokenizer.name_or_path}: its template has no turn of the system; leave llm.system out")
    before, after = template.system
    return replace(template, head=(*before, *filter(None, (system.strip(),)), *after))


def _vicuna_v0(tokenizer: Any) -> ChatTemplate:
    bos = tokenizer.bos_token_id
    return ChatTemplate(
        head=(*([] if bos is None else [int(bos)]), f"{STOP} Human: "),
        opening=(f"\n{STOP} Assistant:",),
        lead=" ",
        end=(f"\n{STOP}",),
        between=(" Human: ",),
        encode=lambda texts, _: [encode_text(tokenizer, text) for text in texts],
        stop=STOP,
    )


def _own(tokenizer: Any) -> ChatTemplate:
    name = tokenizer.name_or_path
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"{name}: its tokenizer has no chat template; {_CURE}")
    try:
        return _read(_Scribe(tokenizer))
    except Exception as error:  # A template is a program: it may fail in any way.
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: its chat template cannot be used ({reason}); {_CURE}") from None


def _read(scribe: "_Scribe") -> ChatTemplate:
    head, prompted = _cut(scribe.render("user", generation=True), _USER)
    _, answered, closing = _cut(scribe.render("user", "assistant"), _USER, _ANSWER)
    *_, following, _ = _cut(scribe.render("user", "assistant", "next"), _USER, _ANSWER, _NEXT)
    opening, lead = _opening(prompted, answered)
    end, between = _at_first_id(scribe.script(following))
    _, last = _at_first_id(scribe.script(closing))
    tail = _common(last, between)
    return ChatTemplate(
        head=scribe.script(head),
        opening=scribe.script(opening),
        lead=lead,
        end=end,
        tail=tail,
        between=_after(tail, between),
        system=_system(scribe, prompted),
        encode=scribe.encode,
        ends=frozenset(piece for piece in end if isinstance(piece, int)),
    )


def _cut(text: str, *marks: str) -> list[str]:
    """The text around marks, each of which must be in it once, in order."""
    pieces = re.split("|".join(map(re.escape, marks)), text)
    if re.findall("|".join(map(re.escape, marks)), text) != list(marks):
        raise ValueError("it does not write each turn once, in order")
    return pieces


def _opening(prompted: str, answered: str) -> tuple[str, str]:
    """What a prompt ends with, and white space between that and the first word of an answer.

    `prompted` is what a prompt ends with, and `answered` what is before an answer that has been given: a template may
    leave thoughts to be made, and then write that there were none.
    """
    if not answered.startswith(prompted):
        return prompted, ""
    more = answered[len(prompted) :]
    return (prompted, more) if not more.strip() else (answered, "")


def _at_first_id(script: Script) -> tuple[Script, Script]:
    place = next((place for place, piece in enumerate(script) if isinstance(piece, int)), None)
    if place is None:
        raise ValueError("it ends an answer with no token of its own")
    return script[: place + 1], script[place + 1 :]


def _common(one: Script, other: Script) -> Script:
    """What two scripts begin with alike."""
    common = list[str | int]()
    for mine, yours in zip(one, other, strict=False):
        if mine == yours:
            common.append(mine)
            continue
        if isinstance(mine, str) and isinstance(yours, str) and (yours.startswith(mine) or mine.startswith(yours)):
            common.append(min(mine, yours, key=len))
        break
    return tuple(common)


def _after(beginning: Script, script: Script) -> Script:
    """A script without its beginning."""
    rest = script[len(beginning) :]
    if beginning and beginning[-1] != (last := script[len(beginning) - 1]):
        return (str(last)[len(str(beginning[-1])) :], *rest)
    return rest


def _system(scribe: "_Scribe", prompted: str) -> tuple[Script, Script] | None:
    """What is written around the words of the system; None if the template takes none."""
    try:
        before, after, opening = _cut(scribe.render("system", "user", generation=True), _SYSTEM, _USER)
    except Exception:  # Templates raise errors of their own where they take no such turn.
        return None
    return (scribe.script(before), scribe.script(after)) if opening == prompted else None


_SAID = {"system": ("system", _SYSTEM), "user": ("user", _USER), "assistant": ("assistant", _ANSWER)}
_SAID["next"] = ("user", _NEXT)


class _Scribe:
    """Renders a tokenizer's template, and encodes texts as parts of the text that they are written in."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {token.content: (number, token) for number, token in tokenizer.added_tokens_decoder.items()}
        longest_first = sorted(map(re.escape, self._added), key=len, reverse=True)
        self._tokens = re.compile(f"({'|'.join(longest_first)})" if longest_first else "(?!)()")
        self._alone = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._alone.add_tokens([AddedToken(_MARK, normalized=False)])
        self._alone.encode_special_tokens = True  # What people write stays text.
        self._adds_space = adds_space(tokenizer)

    def render(self, *turns: str, generation: bool = False) -> str:
        """The text of turns, with marks for what is said."""
        return str(
            self._tokenizer.apply_chat_template(
                [{"role": role, "content": mark} for role, mark in map(_SAID.__getitem__, turns)],
                tokenize=False,
                add_generation_prompt=generation,
                chat_template=_DATES + self._tokenizer.get_chat_template(),
                enable_thinking=False,
                date_string=_TODAY.strftime("%d %b %Y"),
            )
        )

    def script(self, text: str) -> Script:
        """A template's own text with its tokens as ids, and without the spaces that these take in."""
        pieces = self._tokens.split(text)
        texts, tokens = pieces[::2], [self._added[content] for content in pieces[1::2]]
        for place, (_, token) in enumerate(tokens):
            if token.lstrip:
                texts[place] = texts[place].rstrip()
            if token.rstrip:
                texts[place + 1] = texts[place + 1].lstrip()
        script: list[str | int] = [texts[0]]
        for (number, _), after in zip(tokens, texts[1:], strict=True):
            script += [number, after]
        return tuple(piece for piece in script if piece != "")

    def encode(self, texts: Sequence[str], before: Part | int | None) -> list[list[int]]:
        """See `ChatTemplate`. Texts are encoded as one, unless a text would change the tokens of those before it."""
        done, known, result = "", list[int](), list[list[int]]()
        for text in texts:
            whole = self._ids(done + text, before)
            new = whole[len(known) :] if whole[: len(known)] == known else self._ids(text, 0)
            done, known = done + text, known + new
            result.append(new)
        return result

    def _ids(self, text: str, before: Part | int | None) -> list[int]:
        text = text.replace(_MARK, "")
        if before is None:
            return list(self._alone.encode(text, add_special_tokens=False).ids)
        if isinstance(before, Item) and self._adds_space and text.startswith(" "):
            text = text[1:]
        return list(self._alone.encode(_MARK + text, add_special_tokens=False).ids[1:])
