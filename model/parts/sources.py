"""Locates a model's frozen parts: every name is resolved and checked once, before anything is loaded.

A name is a built-in part (`builtin:`), a path, or a repository on the Hugging Face hub. Paths are made absolute,
because workers, and checkpoints loaded elsewhere, run in other working directories.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model.parts import small_llm
from model.parts.builtin import BUILTIN, SMALL_LLM, is_builtin
from model.parts.config import ModelConfig
from model.parts.encoder_kinds import encoder_mistakes
from model.parts.families import MODELS, TOKENIZERS, wanted
from model.parts.family_table import FAMILIES
from pipelines.sample import Modality
from pipelines.storage.files import read_json

LLM = "model.llm.name"
ENCODER = "model.encoder.name"  # of one that embeds all modalities; see `encoder_key`
HUB_SECONDS = 10.0
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_FILE_TYPES = (".pth", ".pt", ".bin", ".safetensors", ".gguf")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A frozen part of a model: its configuration key, its name, and for a decoder its modality."""

    key: str
    name: str
    modality: Modality | None = None

    @property
    def is_encoder(self) -> bool:
        """Whether it embeds input media."""
        return self.key.startswith("model.encoder.")


def encoder_key(modality: Modality | None) -> str:
    """The configuration key of a modality's encoder; None is the one that embeds all."""
    return ENCODER if modality is None else f"model.encoder.{modality}.name"


def decoder_key(modality: Modality) -> str:
    """The configuration key of a modality's decoder."""
    return f"model.outputs.{modality}.decoder"


def parts_of(config: ModelConfig) -> list[Part]:
    """All frozen parts of a model: the LLM, the encoders, and the decoders."""
    return [
        Part(key=LLM, name=config.llm.name),
        *(Part(key=encoder_key(modality), name=part.name) for modality, part in config.encoder.inputs.items()),
        *(
            Part(key=decoder_key(modality), name=output.decoder, modality=modality)
            for modality, output in config.outputs.items()
        ),
    ]


def find_parts(config: ModelConfig, needed: Collection[str] | None = None) -> tuple[ModelConfig, list[str]]:
    """Returns the configuration with absolute paths, and the problems of the `needed` parts, one line each.

    `needed` holds keys as `parts_of` gives them; by default all. Parts that are not needed are not checked, and the hub
    is not asked for them; their paths are made absolute if they exist.
    """
    parts, hub = parts_of(config), _Hub()
    wanted = [part for part in parts if needed is None or part.key in needed]
    mistakes = [f"{part.key}: {mistake}" for part in wanted for mistake in _mistakes(part, hub)]
    for modality in config.encoder.inputs:
        key = encoder_key(modality)
        if any(part.key == key for part in wanted) and not any(line.startswith(key) for line in mistakes):
            mistakes += [f"{key}: {mistake}" for mistake in encoder_mistakes(config.encoder, modality)]
    return with_names(config, {part.key: _absolute(part.name) for part in parts}), mistakes


def with_names(config: ModelConfig, names: Mapping[str, str]) -> ModelConfig:
    """Returns a configuration with parts renamed, by key."""
    outputs = {
        modality: output.model_copy(update={"decoder": names.get(decoder_key(modality), output.decoder)})
        for modality, output in config.outputs.items()
    }
    return config.model_copy(
        update={
            "llm": config.llm.model_copy(update={"name": names.get(LLM, config.llm.name)}),
            "encoder": config.encoder.renamed(
                {m: names.get(encoder_key(m), part.name) for m, part in config.encoder.inputs.items()}
            ),
            "outputs": outputs,
        }
    )


def looks_like_a_path(name: str) -> bool:
    """Whether a name cannot be a hub repository: `/x`, `./x`, `~/x`, `a/b/c`, `x.pth`."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith(_FILE_TYPES)


class _Hub:
    """The hub during one check of a configuration: once unreachable, it is not asked again."""

    def __init__(self) -> None:
        self._unreachable = ""

    def refusal(self, name: str) -> str:
        """Why a repository cannot be downloaded; empty if it can."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

        if self._unreachable:
            return self._unreachable
        try:
            HfApi().model_info(name, timeout=HUB_SECONDS)
        except GatedRepoError:
            return "access on the hub is restricted; request it there and run hf auth login"
        except RepositoryNotFoundError:
            return "and the hub has no such repository, or you have no access to it"
        except HfHubHTTPError as error:
            return f"the hub refused it ({str(error).partition(chr(10))[0]})"
        except Exception as error:  # from whatever HTTP library the client uses: no answer
            self._unreachable = f"and no connection to the hub ({type(error).__name__})"
        return self._unreachable


def _absolute(name: str) -> str:
    if name.startswith(BUILTIN):
        return name
    path = Path(name).expanduser()
    return os.path.abspath(path) if looks_like_a_path(name) or path.exists() else name


def _mistakes(part: Part, hub: _Hub) -> Iterator[str]:
    """The problems of a part; none if it is complete."""
    if part.name.startswith(BUILTIN):
        if not is_builtin(part.name):
            yield f"{part.name}: no such built-in part"
        elif part.name == SMALL_LLM and (lacking := small_llm.missing()):
            yield f"{part.name}: {lacking}"
        return
    path = Path(_absolute(part.name))
    if path.exists():
        yield from (f"{part.name}: {missing} in {path}" for missing in _missing(part, path))
    elif looks_like_a_path(part.name) or part.key == ENCODER:
        what = "file or folder" if part.is_encoder else "folder"
        yield f"{part.name}: no such {what}; looked for {os.path.abspath(path)}; set {part.key} to where it is"
    else:
        yield from _mistakes_on_hub(part, hub)


def _missing(part: Part, path: Path) -> Iterator[str]:
    """What is missing in a part's folder or file."""
    if part.is_encoder:
        if path.is_dir() and not any(_matching(path, "", _WEIGHTS)):
            yield f"no weights ({', '.join(_WEIGHTS)})"
    elif path.is_file():
        yield "a file, not a folder,"
    elif part.modality is None:
        yield from _missing_of_llm(path)
    else:
        yield from _missing_of_decoder(part.modality, path)


def _missing_of_llm(folder: Path) -> Iterator[str]:
    if not (folder / "config.json").is_file():
        yield "no config.json"
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        yield f"no tokenizer ({', '.join(_TOKENIZERS)})"
    yield from _missing_weights(folder, "")


def _missing_of_decoder(modality: Modality, folder: Path) -> Iterator[str]:
    try:
        index: dict[str, Any] = read_json(folder / "model_index.json")
    except (OSError, ValueError):
        yield f"no diffusers pipeline (model_index.json of a {wanted(modality)})"
        return
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is None or family.modality is not modality:
        yield f"a {index.get('_class_name')}, not the {wanted(modality)} that {modality} needs,"
        return
    yield from _missing_package(index)
    present = {part for part, said in index.items() if isinstance(said, list) and said[0]}
    for component in sorted({"scheduler", *TOKENIZERS, *MODELS} & present):
        if not (folder / component).is_dir():
            yield f"no {component}"
        elif component in MODELS:
            yield from _missing_weights(folder, f"{component}/")


def _missing_package(index: dict[str, Any]) -> Iterator[str]:
    """Schedulers that draw their noise with torchsde: Stable Audio Open's, for one."""
    kind = (index.get("scheduler") or [None, None])[1]
    if kind in ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler") and find_spec("torchsde") is None:
        yield f"no package torchsde (pip install torchsde) for the {kind}"


def _missing_weights(folder: Path, prefix: str) -> Iterator[str]:
    for name in _INDEXES:
        index = folder / prefix / name
        if index.is_file():
            shards = sorted(set(read_json(index)["weight_map"].values()))
            absent = [shard for shard in shards if not (folder / prefix / shard).is_file()]
            if absent:
                yield f"no {prefix}{absent[0]}, which {prefix}{name} names ({len(absent)} of {len(shards)} are missing)"
            return
    if not any(_matching(folder, prefix, _WEIGHTS)):
        yield f"no weights ({', '.join(prefix + pattern for pattern in _WEIGHTS)})"


def _matching(folder: Path, prefix: str, patterns: Collection[str]) -> Iterator[str]:
    directory = folder / prefix
    names = os.listdir(directory) if directory.is_dir() else []
    return (name for name in names if any(fnmatch(name, pattern) for pattern in patterns))


def _mistakes_on_hub(part: Part, hub: _Hub) -> Iterator[str]:
    """The problems of a hub repository, judged by the local cache if it is there, else by the hub."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    file = "config.json" if part.modality is None else "model_index.json"
    try:
        cached = try_to_load_from_cache(part.name, file)
    except HFValidationError:
        yield f"{part.name}: no such folder, and not a valid repository name; set {part.key} to a folder"
        return
    if isinstance(cached, str):
        if constants.HF_HUB_OFFLINE:  # what is not cached cannot be downloaded
            snapshot = Path(cached).parent
            yield from (
                f"{part.name}: {missing} in the hub's cache, {snapshot}" for missing in _missing(part, snapshot)
            )
        return
    where = f"no such folder, and not in the hub's cache ({constants.HF_HUB_CACHE})"
    if constants.HF_HUB_OFFLINE:
        yield f"{part.name}: {where}; HF_HUB_OFFLINE is set, so the hub is not asked; set {part.key} to a folder"
    elif refusal := hub.refusal(part.name):
        yield f"{part.name}: {where}; {refusal}; set {part.key} to a folder"
