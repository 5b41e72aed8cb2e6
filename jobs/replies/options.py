"""The options of a reply: defaults, bounds and help, shared by the command line, the API and the page."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import Field

from model.checkpoints.description import SHIPPED
from model.inference.query import Sampling
from pipelines.sample import Modality

Architecture = Literal["joint", "scheduler"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: its type, default, bounds and help; `public` bounds hold where requests come over the network."""

    kind: type[int] | type[float] = int
    default: Any = None
    least: int | None = None
    above: int | None = None
    most: int | None = None
    public: tuple[int | None, int]
    metavar: str | None = None
    help: str

    def field(self) -> Any:
        """The public bounds, as a pydantic field of the API."""
        least, most = self.public
        return Field(ge=least, gt=self.above, le=most, allow_inf_nan=False if self.kind is float else None)

    def mistake(self, value: float) -> str | None:
        """What is wrong with a value of the command line; None where nothing is."""
        is_enough = (self.above is None or value > self.above) and (self.least is None or value >= self.least)
        if is_enough and (value < float("inf") if self.most is None else value <= self.most):
            return None
        bound = f"more than {self.above}" if self.above is not None else f"at least {self.least}"
        return f"must be {bound}" + (f", and {self.most} at most" if self.most is not None else "")


OPTIONS = {
    "max_items": Option(default=4, least=0, public=(0, 8), metavar="N", help="maximum number of media in a reply"),
    "max_new_tokens": Option(
        default=256, least=1, public=(1, 2048), metavar="N", help="maximum number of tokens in a reply"
    ),
    "temperature": Option(kind=float, default=0.0, least=0, public=(0, 2), help="0 always takes the likeliest token"),
    "top_p": Option(
        kind=float,
        default=1.0,
        above=0,
        most=1,
        public=(None, 1),
        help="sample among the likeliest tokens whose probabilities add up to this",
    ),
    "seed": Option(default=0, public=(0, 2**31 - 1), help="seed of the text and of the media"),
    "steps": Option(
        least=1, public=(1, 200), metavar="N", help="denoising steps (each decoder's own number if omitted)"
    ),
    "guidance": Option(kind=float, least=0, public=(0, 50), help="classifier-free guidance scale"),
    "num_frames": Option(least=1, public=(1, 64), help="frames of a video"),
    "audio_length_in_s": Option(kind=float, above=0, public=(None, 30), help="seconds of a sound"),
}
_SAMPLING = ("max_new_tokens", "max_items", "temperature", "top_p", "seed")


def sampling(values: Mapping[str, Any]) -> Sampling:
    """How a reply is sampled; an option that `values` lack, or hold as None, has its default."""
    given = {name: values[name] for name in _SAMPLING if values.get(name) is not None}
    asked: dict[str, Any] = {name: OPTIONS[name].kind(given.get(name, OPTIONS[name].default)) for name in _SAMPLING}
    return Sampling(**asked)


def decoder_settings(steps: int | None) -> dict[Modality, dict[str, int]]:
    """The same number of denoising steps for every decoder; without one, each decoder keeps its own."""
    return {modality: {"steps": steps} for modality in Modality} if steps else {}


def add_options(parser: ArgumentParser, *names: str) -> None:
    """Adds options to a command."""
    for name in names:
        option = OPTIONS[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=option.kind,
            default=option.default,
            metavar=option.metavar,
            help=option.help,
        )


def add_model(parser: ArgumentParser) -> None:
    """Adds --checkpoint and --architecture to a command."""
    parser.add_argument(
        "--checkpoint", default=SHIPPED, metavar="RUN", help="a checkpoint, a run, a hub id, or the shipped model"
    )
    parser.add_argument(
        "--architecture",
        choices=ARCHITECTURES,
        default=ARCHITECTURES[0],
        help="one LLM that sees and makes media, or one that schedules tools and exchanges text with them",
    )


def mistakes(arguments: Namespace) -> Iterator[str]:
    """What is wrong with the options of a command line, a line each."""
    for name, option in OPTIONS.items():
        value = getattr(arguments, name, None)
        if value is not None and (mistake := option.mistake(value)):
            yield f"--{name.replace('_', '-')} {value}: {mistake}"
