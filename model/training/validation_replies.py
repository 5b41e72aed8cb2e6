"""Sample replies to held-out prompts during training: one per modality, with its generated medium."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from model.core.adapter import base_of
from model.core.nextgpt import NextGPT
from model.inference.generation import generate
from model.inference.query import Reply
from model.parts.features import first, input_items
from model.runs.run_log import Sampled
from model.training.feed import Row, features_of
from pipelines.sample import Decoded, Item, Modality, Role, Turn, turns_from_json

if TYPE_CHECKING:
    from model.decoders.decoder import Decoder  # imports diffusers, which takes seconds


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A context for evaluation without gradients, which restores the training mode and random state."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        model.train(was_training)


class Sampler:
    """Generates replies to the same prompts at every call; `engine` is DeepSpeed's, or the model itself.

    Decoders are loaded on first use, on the model's device, and kept; `steps` is their number of denoising steps. With
    `renders` false nothing is decoded: under ZeRO-3 all ranks generate, but only one renders.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: Any,
        *,
        renders: bool = True,
        seed: int = 0,
        steps: int = 10,
        max_new_tokens: int = 96,
    ) -> None:
        self.model: NextGPT = getattr(engine, "module", engine)
        self._offload = getattr(getattr(engine, "optimizer", None), "parameter_offload", None)
        self.tokenizer, self.renders = tokenizer, renders
        self.seed, self.steps, self.max_new_tokens = seed, steps, max_new_tokens
        self._decoders: dict[Modality, Decoder | None] = {}
        self._told: set[str] = set()

    def __call__(self, rows: Sequence[Row]) -> list[Sampled]:
        """Replies to the first row of each modality: one with such an item in its answer, else in its prompt.

        Rows are those of the hand-over, with embeddings as arrays. Errors never affect the training: they are printed
        in one line, and the sample or its medium is left out.
        """
        found = []
        with undisturbed(self.model), self._steps_told():
            for modality in Modality:
                try:
                    sampled = self._sample(modality, rows)
                except Exception as error:  # a sample for the log must not stop the training
                    self._tell(f"no {modality} sample", error)
                else:
                    found += [sampled] if sampled is not None else []
        return found

    @contextmanager
    def _steps_told(self) -> Iterator[None]:
        """Signals the start of a step to ZeRO-3 at each token.

        ZeRO-3 starts a step at a forward pass of the whole model, which generation never makes. A whole answer would be
        traced as one step, and its thousands of module calls searched at every call.
        """
        if self._offload is None:
            yield
            return
        decoder = base_of(self.model.llm).get_decoder()
        reset = self._offload.get_param_coordinator().reset_step
        hook = decoder.register_forward_pre_hook(lambda *_: reset(), prepend=True)
        try:
            yield
        finally:
            hook.remove()

    def _sample(self, modality: Modality, rows: Sequence[Row]) -> Sampled | None:
        chosen = _choose(modality, rows, "assistant") if modality in self.model.config.outputs else None
        require = [modality] if chosen is not None else []
        chosen = chosen or _choose(modality, rows, "user")
        if chosen is None:
            return None
        row, turns, answer = chosen
        reply = generate(
            self.model,
            self.tokenizer,
            turns,
            first(features_of(row), input_items(turns)),
            system=row.get("system") or (),
            max_new_tokens=self.max_new_tokens,
            require=require,
            max_items=len(require),
        )
        medium = self._render(modality, reply) if reply.conditions and self.renders else None
        prompt = "\n".join(f"{turn.role}: {_as_text(turn)}" for turn in turns) if len(turns) > 1 else _as_text(turns[0])
        return Sampled(modality=modality, prompt=prompt, expected=_as_text(answer), text=reply.text, medium=medium)

    def _render(self, modality: Modality, reply: Reply) -> Decoded | None:
        try:
            decoder = self._decoder(modality)
            if decoder is None:
                return None
            decoder.to(self.model.new_input_rows.weight.device)
            try:
                _, condition_LD = reply.conditions[0]
                negative_LD = reply.negatives.get(modality)
                return decoder.generate(condition_LD, seed=self.seed, steps=self.steps, negative=negative_LD)
            finally:
                if self.model.config.decoders.on_device == "one":
                    decoder.to("cpu")  # training continues, and needs the memory
        except Exception as error:
            self._tell(f"{modality} samples are text only", error)
            return None

    def _decoder(self, modality: Modality) -> "Decoder | None":
        if modality not in self._decoders:
            from model.decoders.decoder import Decoder  # late, see above

            self._decoders[modality] = None  # a failed load is not retried
            weight = self.model.new_input_rows.weight
            name = self.model.config.outputs[modality].decoder
            self._decoders[modality] = Decoder(modality, name, weight.device, self.model.config.decoders)
        return self._decoders[modality]

    def _tell(self, what: str, error: Exception) -> None:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if what not in self._told:
            print(f"note: {what}: {reason}", flush=True)
        self._told.add(what)


def _choose(modality: Modality, rows: Sequence[Row], role: Role) -> tuple[Row, list[Turn], Turn] | None:
    """The first row with such an item in a turn of `role`: the turns up to the next answer, and that answer."""
    for row in rows:
        turns = turns_from_json(row["turns"])
        for place, turn in enumerate(turns):
            if turn.role == role and any(isinstance(part, Item) and part.modality is modality for part in turn.parts):
                end = place if role == "assistant" else place + 1
                return row, list(turns[:end]), turns[end]
    return None


def _as_text(turn: Turn) -> str:
    """A turn as text for people; an item is shown as its modality, with its caption if it has one."""
    return " ".join(part.strip() if isinstance(part, str) else _item_as_text(part) for part in turn.parts)


def _item_as_text(item: Item) -> str:
    return f"[{item.modality}: {item.caption}]" if item.caption else f"[{item.modality}]"
