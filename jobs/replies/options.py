"""The options of a reply: defaults, bounds and help, shared by the command line, the API and the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from jobs.common import cli
from jobs.common.cli import Option
from model.checkpoints.description import SHIPPED, SMALL
from model.inference.query import Sampling
from pipelines.sample import Modality

Architecture = Literal["joint", "scheduler"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model answers, and how."""

    checkpoint: Annotated[
        str | None, Option(f"a checkpoint, a run, a hub id, {SHIPPED} or {SMALL} (a shipped one if omitted)", "RUN")
    ] = None
    architecture: Annotated[
        Architecture,
        Option("one LLM that sees and makes media, or one that schedules tools and exchanges text with them"),
    ] = "joint"


@dataclass(frozen=True, slots=True)
class ReplyOption(Option):
    """An option of the command line, with the `public` bounds that hold where requests come over the network."""

    public: tuple[int | None, int | None] = (None, None)

    def field(self) -> Any:
        """The public bounds, as a pydantic field of the API."""
        least, most = self.public
        return Field(ge=least, gt=self.above, le=most, allow_inf_nan=False if self.kind is float else None)


Steps = Annotated[
    int | None,
    ReplyOption("denoising steps (each decoder's own number if omitted)", "N", least=1, public=(1, 200)),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyOptions:
    """How a reply is sampled, and its media made."""

    max_items: Annotated[int, ReplyOption("maximum number of media in a reply", "N", least=0, public=(0, 8))] = 4
    max_new_tokens: Annotated[
        int, ReplyOption("maximum number of tokens in a reply", "N", least=1, public=(1, None))
    ] = 256
    temperature: Annotated[float, ReplyOption("0 always takes the likeliest token", least=0, public=(0, 2))] = 0.0
    top_p: Annotated[
        float,
        ReplyOption(
            "sample among the likeliest tokens whose probabilities add up to this", above=0, most=1, public=(None, 1)
        ),
    ] = 1.0
    seed: Annotated[int, ReplyOption("seed of the text and of the media", public=(0, 2**31 - 1))] = 0
    steps: Steps = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaOptions:
    """What the API and the page offer besides."""

    guidance: Annotated[float | None, ReplyOption("classifier-free guidance scale", least=0, public=(0, 50))] = None
    num_frames: Annotated[int | None, ReplyOption("frames of a video", least=1, public=(1, 64))] = None
    audio_length_in_s: Annotated[float | None, ReplyOption("seconds of a sound", above=0, public=(None, 30))] = None


_DECLARED = (*cli.declared(ReplyOptions), *cli.declared(MediaOptions))
OPTIONS = {option.name: option for option in _DECLARED if isinstance(option, ReplyOption)}
_SAMPLING = ("max_new_tokens", "max_items", "temperature", "top_p", "seed")


def sampling(values: Mapping[str, Any]) -> Sampling:
    """How a reply is sampled; an option that `values` lack, or hold as None, has its default."""
    given = {name: values[name] for name in _SAMPLING if values.get(name) is not None}
    asked: dict[str, Any] = {name: OPTIONS[name].kind(given.get(name, OPTIONS[name].default)) for name in _SAMPLING}
    return Sampling(**asked)


def decoder_settings(steps: int | None) -> dict[Modality, dict[str, int]]:
    """The same number of denoising steps for every decoder; without one, each decoder keeps its own."""
    return {modality: {"steps": steps} for modality in Modality} if steps else {}
