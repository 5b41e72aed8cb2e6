"""A picture of a run's best conversations, for a README: what was given at the left, what came back at the right."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image
from PIL.ImageDraw import Draw, ImageDraw
from PIL.ImageFont import FreeTypeFont, load_default

from pipelines.inspect.exhibits import CARD, LINE, PAPER, still
from pipelines.inspect.run_examples import ExampleTurn, GivenMedium, RunExample, choose, read_examples
from pipelines.storage.files import atomic_path

MOST_BYTES = 300_000
EXCHANGES = 6  # of user and model, at most
WIDTH, MARGIN, GAP = 1280, 28, 14  # pixels
_FIRST, _SECOND = 360, WIDTH - 2 * MARGIN - 360 - 3 * GAP  # widths of the user's and the model's column
_INK = (29, 31, 36)
_USER, _MODEL = (226, 230, 243), (239, 236, 227)
_SIZE, _LEADING, _PADDING, _ROUND = 17, 23, 12, 12


@dataclass(kw_only=True)
class _Block:
    """A medium, or nothing, under the words that stand before it."""

    words: list[str]
    picture: PIL.Image.Image | None = None
    lines: list[str] = field(default_factory=list)

    @property
    def width(self) -> int:
        """As wide as the medium, but at least so wide that words can be read."""
        return max(self.picture.width if self.picture else 0, 210)


def write_picture(runs: Sequence[Path], out: Path) -> None:
    """Writes a PNG of the best examples of the last run that has any, below 300 kB; equal runs give equal bytes.

    Raises:
        ValueError: no run has an example that is right.
    """
    examples = next((found for run in reversed(runs) if (found := read_examples(run))), [])
    chosen = choose(examples, EXCHANGES, right=True)
    if not chosen:
        raise ValueError(f"{', '.join(map(str, runs))}: no example that is right; run jobs/score.py first")
    with atomic_path(out) as temporary:
        temporary.write_bytes(_fitting(_few(chosen)))


def _few(examples: Sequence[RunExample]) -> list[RunExample]:
    """Those that together have no more exchanges than are drawn; the first in any case."""
    kept, left = list(examples[:1]), EXCHANGES - len(examples[0].turns) // 2
    for example in examples[1:]:
        if len(example.turns) // 2 <= left:
            kept.append(example)
            left -= len(example.turns) // 2
    return kept


def _fitting(examples: list[RunExample]) -> bytes:
    """As many of them as fit into the size that is allowed."""
    while True:
        buffer = io.BytesIO()
        # 256 colours tell all of ours apart, and take a third of the bytes.
        _drawn(examples).quantize(256, dither=PIL.Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
        if buffer.tell() <= MOST_BYTES or len(examples) == 1:
            return buffer.getvalue()
        examples = examples[:-1]


def _drawn(examples: Sequence[RunExample]) -> PIL.Image.Image:
    cards = [_card(example) for example in examples]
    height = sum(card.height + GAP for card in cards) - GAP + 2 * MARGIN
    canvas, top = PIL.Image.new("RGB", (WIDTH, height), PAPER), MARGIN
    for card in cards:
        canvas.paste(card, (MARGIN, top))
        top += card.height + GAP
    return canvas


def _card(example: RunExample) -> PIL.Image.Image:
    """A conversation, each exchange a row."""
    font = load_default(_SIZE)
    assert isinstance(font, FreeTypeFont)
    asked, answered = example.turns[::2], example.turns[1::2]
    rows = [
        (_bubble(user, _FIRST, _USER, font), _bubble(model, _SECOND, _MODEL, font))
        for user, model in zip(asked, answered, strict=True)
    ]
    heights = [max(user.height, model.height) + GAP for user, model in rows]
    canvas = PIL.Image.new("RGB", (WIDTH - 2 * MARGIN, sum(heights) + GAP), PAPER)
    Draw(canvas).rounded_rectangle((0, 0, canvas.width - 1, canvas.height - 1), _ROUND + 4, fill=CARD, outline=LINE)
    top = GAP
    for (user, model), height in zip(rows, heights, strict=True):
        # Beside each other, their middles on one line.
        for bubble, left in ((user, GAP + _FIRST - user.width), (model, 2 * GAP + _FIRST)):
            canvas.paste(bubble, (left, top + (height - GAP - bubble.height) // 2), bubble)
        top += height
    return canvas


def _bubble(turn: ExampleTurn, width: int, colour: tuple[int, int, int], font: FreeTypeFont) -> PIL.Image.Image:
    """What one said, no wider than `width`: blocks beside each other, in as many lines as they take."""
    inner = width - 2 * _PADDING
    lines: list[list[_Block]] = [[]]
    for block in _blocks(turn):
        if lines[-1] and sum(one.width + GAP for one in lines[-1]) + block.width > inner:
            lines.append([])
        lines[-1].append(block)
    for line in lines:
        for block in line:
            # The last of a line has all the room that is left.
            spare = inner - sum(one.width + GAP for one in line[:-1])
            block.lines = _wrapped(block.words, spare if block is line[-1] else block.width, font)
    heights = [max(_height(block) for block in line) for line in lines]
    used = max(sum(one.width + GAP for one in line[:-1]) + _drawn_width(line[-1], font) for line in lines)
    canvas = PIL.Image.new("RGBA", (used + 2 * _PADDING, sum(heights) + GAP * (len(lines) - 1) + 2 * _PADDING))
    draw, top = Draw(canvas), _PADDING
    draw.rounded_rectangle((0, 0, canvas.width - 1, canvas.height - 1), _ROUND, fill=colour)
    for line, height in zip(lines, heights, strict=True):
        left = _PADDING
        for block in line:
            _place(block, canvas, draw, left, top, height, font)
            left += block.width + GAP
        top += height + GAP
    return canvas


def _drawn_width(block: _Block, font: FreeTypeFont) -> int:
    words = max((math.ceil(font.getlength(line)) for line in block.lines), default=0)
    return max(words, block.picture.width if block.picture else 0)


def _place(
    block: _Block, canvas: PIL.Image.Image, draw: ImageDraw, left: int, top: int, height: int, font: FreeTypeFont
) -> None:
    for number, words in enumerate(block.lines):
        draw.text((left, top + number * _LEADING), words, fill=_INK, font=font)
    if block.picture is not None:
        canvas.paste(block.picture, (left, top + height - block.picture.height))


def _height(block: _Block) -> int:
    words = _LEADING * len(block.lines)
    return words + (block.picture.height + (6 if words else 0) if block.picture else 0)


def _blocks(turn: ExampleTurn) -> Iterable[_Block]:
    words: list[str] = []
    for part in turn.parts:
        if isinstance(part, GivenMedium):
            yield _Block(words=words, picture=still(part.decoded))
            words = []
        elif part:
            words.append(part)
    if words or not turn.parts:
        yield _Block(words=words or ["(nothing)"])


def _wrapped(words: Sequence[str], width: int, font: FreeTypeFont) -> list[str]:
    lines: list[str] = []
    for text in words:
        for paragraph in text.splitlines():
            line = ""
            for word in paragraph.split():
                longer = f"{line} {word}".strip()
                if line and font.getlength(longer) > width:
                    lines.append(line)
                    longer = word
                line = longer
            lines.append(line)
    return lines
