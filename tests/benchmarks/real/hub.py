"""A folder with all published parts of preset `nextgpt_7b`, full-size or cut, and a preset that names them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from model.parts.config import ModelConfig, load_preset, parse_config
from tests.benchmarks import say
from tests.benchmarks.real import llm
from tests.benchmarks.real.decoders import FOLDERS, decoder
from tests.benchmarks.real.imagebind import FILE, imagebind
from tests.benchmarks.real.layout import Layout
from tests.benchmarks.real.llm import DELTA_FILE, LAYERS, VICUNA
from tests.benchmarks.real.vocabularies import fetch_vocabularies

_SMALL_OUTPUT = {"hidden": 64, "ffn": 128, "layers": 1}


@dataclass(frozen=True, kw_only=True)
class Hub:
    """The parts of preset `base` in `root`, cut to `layers` of the LLM; in the small cut, all narrow."""

    root: Path
    base: str = "nextgpt_7b"
    layers: int = LAYERS
    small: bool = False

    @property
    def cut(self) -> str:
        """A description of what is included, for people."""
        if self.small:
            return f"a small cut: {self.layers} narrow layers of the LLM, one block of each encoder, narrow decoders"
        return f"{self.layers} of {LAYERS} layers of the LLM, all else whole"

    @property
    def delta(self) -> Path:
        """The released file of trained weights."""
        return self.root / f"7b_tiva_v0{self._suffix}" / DELTA_FILE

    @property
    def _suffix(self) -> str:
        return "" if self.layers == LAYERS and not self.small else f"-{self.layers}-layers"

    def preset(self, folder: Path) -> dict[str, Any]:
        """The contents of a user's preset file for these parts, with names relative to a folder."""
        root = Path(os.path.relpath(self.root, folder))
        base_llm: dict[str, Any] = {"name": str(root / (VICUNA + self._suffix)), "num_layers": self.layers}
        outputs: dict[str, Any] = {m.value: {"decoder": str(root / name)} for m, name in FOLDERS.items()}
        if self.small:
            base_llm["hidden_size"] = self.vicuna.documents["config.json"]["hidden_size"]
            outputs = {name: {**output, **_SMALL_OUTPUT} for name, output in outputs.items()}
        return {
            "base": self.base,
            "llm": base_llm,
            "encoder": {"name": str(root / "imagebind" / FILE)},
            "outputs": outputs,
        }

    def config(self) -> ModelConfig:
        """The model of this preset."""
        values = _laid_over(load_preset(self.base).model_dump(mode="json"), self.preset(self.root))
        return parse_config({name: value for name, value in values.items() if name != "base"}, str(self.root))

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """The parts by their folders."""
        decoders = {name: decoder(modality, small=self.small) for modality, name in FOLDERS.items()}
        return {
            VICUNA + self._suffix: self.vicuna,
            "imagebind": imagebind(small=self.small),
            **decoders,
            self.delta.parent.name: llm.delta(self.config()),
        }

    @cached_property
    def vicuna(self) -> Layout:
        """The LLM."""
        return llm.vicuna(self.layers, small=self.small)

    def write(self) -> None:
        """Writes the missing parts."""
        missing = {name: layout for name, layout in self.layouts.items() if not (self.root / name).is_dir()}
        files = fetch_vocabularies() if missing else {}
        for name, layout in missing.items():
            say(f"writing {self.root / name}, {layout.num_bytes / 1e9:.2f} GB")
            layout.write(self.root / name, files)

    def write_preset(self, path: Path) -> None:
        """Writes a preset file for commands started in its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.preset(path.parent), sort_keys=False), encoding="utf-8")


def _laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    laid = dict(base)
    for name, value in over.items():
        laid[name] = _laid_over(base[name], value) if isinstance(value, Mapping) else value
    return laid
