"""What all frozen media encoders share: inputs are prepared on any CPU, sent to the device, and embedded in batches."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.encoders.media_inputs import PrepareMedia
from model.parts.builtin import resolve
from model.parts.devices import Sender, Sent
from model.parts.library_logs import quiet_libraries
from model.parts.mixed_precision import Precision
from pipelines.sample import Decoded, Modality

# Part of every encoder id: increment it with any change to what is made of media that affects values.
PREPROCESSING_VERSION = 1

# What a checkpoint of both towers holds beside the one that is loaded.
_OTHER_TOWER = [r"^(text|vision|audio)_(model|projection)\.", r"^logit_"]

Arrays = Sequence[npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputKind:
    """How one kind of input is embedded: finished on the device, each alone, then run together.

    `forward` maps finished inputs to (N, ...); `num_clips` is how many clips or frames one of them is.
    """

    finish: Callable[[Tensor], Tensor]
    forward: Callable[[list[Tensor]], Tensor]
    num_clips: int = 1


class FrozenEncoder:
    """A frozen encoder of media, loaded once.

    `batch_size` counts clips per forward pass. Equal `id`s give equal embeddings; `shapes` are those of an item's
    embedding, by modality. `kinds` are told by the type and the number of axes of what `prepare` makes.
    """

    def __init__(
        self,
        *,
        id: str,
        shapes: Mapping[Modality, tuple[int, ...]],
        prepare: PrepareMedia,
        kinds: Mapping[tuple[torch.dtype, int], InputKind],
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.id, self.shapes, self.prepare = id, dict(shapes), prepare
        self.device, self.batch_size = device, batch_size
        self._kinds, self._sender = kinds, Sender(device)

    def __call__(self, items: Sequence[Decoded]) -> npt.NDArray[np.float32]:
        """Embeds items, in order; returns (len(items), ...). An item's row does not depend on the others."""
        return self.embed(self.send(self.prepare(items)))

    def send(self, inputs: Arrays) -> Sent:
        """Begins to move what `prepare` made to the device."""
        return self._sender.send(inputs)

    @torch.inference_mode()
    def embed(self, sent: Sent) -> npt.NDArray[np.float32]:
        """Embeds what was sent, in order: (N, ...).

        Raises:
            ValueError: embeddings of these media are of different shapes; each modality is then embedded by itself.
        """
        tensors = sent.take()
        embeddings = torch.empty((len(tensors), *next(iter(self.shapes.values()))), device=self.device)
        is_first = True
        for kind, found in self._kinds.items():
            rows = [row for row, tensor in enumerate(tensors) if (tensor.dtype, tensor.ndim) == kind]
            step = max(1, self.batch_size // found.num_clips)
            for chunk in (rows[start : start + step] for start in range(0, len(rows), step)):
                made = found.forward([found.finish(tensors[row]) for row in chunk])
                if is_first:
                    embeddings, is_first = embeddings.new_empty((len(tensors), *made.shape[1:])), False
                if made.shape[1:] != embeddings.shape[1:]:
                    raise ValueError(
                        f"embeddings are {tuple(made.shape[1:])} and {tuple(embeddings.shape[1:])}; "
                        "embed each modality by itself"
                    )
                embeddings[chunk] = made.to(embeddings.dtype)
        return embeddings.cpu().numpy()


def encoder_id(name: str, facts: Sequence[Any], patches: int | None, precision: str) -> str:
    """A readable name, and a hash of all that the embeddings depend on beside what follows it."""
    readable = name.removeprefix("builtin:") if name.startswith("builtin:") else name.rstrip("/").rsplit("/", 1)[-1]
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", readable.removesuffix(".pth")).strip("-") or "imagebind"
    identity = json.dumps([PREPROCESSING_VERSION, *facts], sort_keys=True)
    kept = f"-{patches}patches" if patches else ""
    rounded = f"-{precision}" if precision != "float32" else ""
    return f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}{kept}{rounded}"


def load_frozen(kind: Any, name: str) -> Any:
    """Loads the part of a checkpoint that is of a class of transformers, in float32.

    Raises:
        ValueError: weights are missing.
    """
    tower: Any = type(kind.__name__, (kind,), {"_keys_to_ignore_on_load_unexpected": _OTHER_TOWER})
    with quiet_libraries():
        model, info = tower.from_pretrained(resolve(name), dtype=torch.float32, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{name}: {missing[0]} is missing ({len(missing)} tensors in all); download it again")
    return model.eval().requires_grad_(False)


def products(device: str, precision: Precision) -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts in which matrix products are of a precision; sums and norms are of float32 in any."""
    if precision == "float32":
        return nullcontext
    return partial(torch.autocast, torch.device(device).type, dtype=torch.bfloat16)
