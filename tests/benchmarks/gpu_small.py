"""Emulates a 24 GB card on a larger one: stage 3 and whole replies of its preset, through the code that users run.

Random weights are written to disk, so that they are loaded like released ones, and PyTorch may use no more memory than
such a card has.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from model.architectures.imagebind import ImageBind, ImageBindConfig
from model.parts.config import ModelConfig, load_preset
from model.parts.library_logs import quiet_libraries
from pipelines.sample import Image, Item, Modality, Turn
from tests.benchmarks import in_a_process_of_its_own, say, table_head, table_row, timed
from tests.benchmarks.decoder_shapes import DecoderShape
from tests.benchmarks.gpu_decoders import decoder_folder
from tests.benchmarks.gpu_memory import GIB, gibibytes, limit, reserved
from tests.benchmarks.gpu_steps import measure, write_llm

CARD = 23 * GIB  # of 24: CUDA itself uses some
_NEW_TOKENS = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallSizes:
    """The preset, the shapes of its parts, its training micro-batches, and the number of timed steps."""

    preset: str
    llama: Mapping[str, Any]
    imagebind: ImageBindConfig
    decoders: Mapping[Modality, DecoderShape]
    micro_batches: Sequence[int]
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """Seconds to load, of the first reply (which loads encoder and decoders) and of the second; peak bytes."""

    load: float
    first: float
    second: float
    peak: int
    media: int


def lines(folder: Path, device: str, sizes: SmallSizes) -> Iterator[str]:
    """The lines of both tables, as they are measured."""
    if load_preset(sizes.preset).llm.load_in_4bit and find_spec("bitsandbytes") is None:
        yield f"`{sizes.preset}`: not measured: the package bitsandbytes is not installed"
        return
    parts = _Parts.write(folder, device, sizes)
    yield f"`{sizes.preset}` in {gibibytes(CARD)}, the usable memory of a 24 GB card:"
    yield ""
    yield from _training(parts, device, sizes)
    yield ""
    yield from _replies(parts, device, sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The folders of the parts with random weights."""

    llm: Path
    imagebind: Path
    decoders: Mapping[Modality, Path]

    @classmethod
    def write(cls, folder: Path, device: str, sizes: SmallSizes) -> "_Parts":
        say("gpu: drawing the LLM and ImageBind")
        in_a_process_of_its_own(_write_llm, folder / "small-llm", sizes.llama, device)
        in_a_process_of_its_own(_write_imagebind, folder / "imagebind", sizes.imagebind, device)
        decoders = {m: decoder_folder(folder, m, shape, device) for m, shape in sizes.decoders.items()}
        return cls(llm=folder / "small-llm", imagebind=folder / "imagebind", decoders=decoders)

    def config(self, preset: str, on_device: str) -> ModelConfig:
        """The model of a preset, made of these parts."""
        values = load_preset(preset).model_dump(mode="json")
        values["llm"]["name"], values["encoder"]["name"] = str(self.llm), str(self.imagebind)
        values["decoders"]["on_device"] = on_device
        sizes = transformers.AutoConfig.from_pretrained(self.llm)
        values["llm"] |= {"vocab_size": sizes.vocab_size, "num_layers": sizes.num_hidden_layers}
        for modality, place in self.decoders.items():
            values["outputs"][modality]["decoder"] = str(place)
        return ModelConfig.model_validate(values)


def _write_llm(folder: Path, llama: Mapping[str, Any], device: str) -> None:
    write_llm(folder, llama)
    with quiet_libraries(), torch.device(device):
        config = transformers.AutoConfig.from_pretrained(folder)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def _write_imagebind(folder: Path, config: ImageBindConfig, device: str) -> None:
    with torch.device(device):
        ImageBind(config).save_pretrained(folder)


def _training(parts: _Parts, device: str, sizes: SmallSizes) -> Iterator[str]:
    yield from table_head(["stage 3, micro-batch", "samples/s", "tokens/s", "peak memory", "fits"])
    for count in sizes.micro_batches:
        say(f"gpu: {sizes.preset}, micro-batch of {count}")
        overrides = (f"batch_size={count}", f"micro_batch_size={count}")
        found = in_a_process_of_its_own(
            measure, parts.llm, sizes.preset, overrides, device, sizes.num_steps, False, CARD
        )
        cells = ["", "", "", "no"]
        if found is not None:
            rates = [f"{found.samples / found.seconds:.3g}", f"{found.tokens / found.seconds:,.0f}"]
            cells = [*rates, gibibytes(found.reserved_bytes), "yes"]
        yield table_row([str(count), *cells])


def _replies(parts: _Parts, device: str, sizes: SmallSizes) -> Iterator[str]:
    yield from table_head(
        ["a picture in, words and three media out", "media", "s to load", "s first", "s second", "peak memory", "fits"]
    )
    for on_device in ("one", "all"):
        say(f"gpu: {sizes.preset}, replies, decoders on the device: {on_device}")
        found = in_a_process_of_its_own(_answer, parts.config(sizes.preset, on_device), device)
        cells = ["", "", "", "", "", "no"]
        if found is not None:
            seconds = [f"{seconds:.1f}" for seconds in (found.load, found.first, found.second)]
            cells = [str(found.media), *seconds, gibibytes(found.peak), "yes"]
        yield table_row([f"decoders on the device: {on_device}", *cells])


def _answer(config: ModelConfig, device: str) -> _Figures | None:
    """Two replies, one after the other; None if they do not fit."""
    from model.core.nextgpt import NextGPT
    from model.core.tokenizer import load_tokenizer
    from model.inference.query import Query, Sampling
    from model.inference.responder import Responder

    limit(device, CARD)
    query = Query(
        turns=[Turn(role="user", parts=(Item(modality=Modality.IMAGE, name="it"), "Draw it, film it, sing it."))],
        media={"it": Image(pixels=np.full((480, 640, 3), 128, np.uint8))},
        require=list(Modality),
        sampling=Sampling(max_new_tokens=_NEW_TOKENS, max_items=len(Modality)),
    )
    try:
        with timed() as load:
            model = NextGPT.from_config(config, adapter=True, dtype=torch.bfloat16, device=device).eval()
            responder = Responder(model, load_tokenizer(config))
        with timed() as first:
            response = responder.respond(query)
        with timed() as second:
            responder.respond(query)
    except torch.OutOfMemoryError:
        return None
    return _Figures(
        load=load.seconds,
        first=first.seconds,
        second=second.seconds,
        peak=reserved(device),
        media=len(response.media),
    )
