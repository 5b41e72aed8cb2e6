"""NExT-GPT: a frozen LLM between an input projection and one output projection per modality.

Suffixes: B rows, T tokens, H LLM width, N input items, K tokens of an item, M output items of a modality, G tokens of a
signal group, L and D length and width of a condition, P positions with a label, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from model.core.adapter import add_adapter, base_of, has_adapter, is_adapter_tensor
from model.core.batch import Batch, InputFeatures
from model.core.dialogue import IGNORE
from model.core.llm import capped, check_fits, fingerprint, load_llm
from model.core.projections import InputProjection, OutputConnector, OutputProjection
from model.core.vocabulary import SignalVocabulary
from model.parts.config import MediaEncoderConfig, ModelConfig, OutputConfig
from pipelines.sample import Modality

STAGES = (1, 2, 3)
NEW_ROWS = ("new_input_rows.", "new_output_rows.")
_TRAINED: dict[int, tuple[str, ...]] = {
    1: ("input_projection.", *NEW_ROWS),
    2: ("output_projections.", *NEW_ROWS),
    3: ("input_projection.", "output_projections.", *NEW_ROWS),
}
# Standard deviation of the new rows around the mean of the base rows, relative to that of the base rows.
_NOISE = 0.02


class Predictions(NamedTuple):
    """Logits and labels of the positions with a label, and each modality's conditions (M, L, D).

    `nulls` holds the null condition (L, D) of each modality that learns its own. A tuple, because DeepSpeed
    looks for tensors to attach backward hooks to only in tuples, lists and dicts.
    """

    logits_PV: Tensor
    labels_P: Tensor
    conditions: dict[Modality, Tensor]
    nulls: dict[Modality, Tensor] = {}  # noqa: RUF012  never changed


def signal_states(hidden_BTH: Tensor, embeds_BTH: Tensor, rows_M: Tensor, positions_M: Tensor, length: int) -> Tensor:
    """Hidden states plus input embeddings at the signal tokens: (M, G, H), with groups of `length` tokens.

    Used in training and in generation (Wu et al. 2023, arXiv:2309.05519, section 3).
    """
    places_MG = positions_M[:, None] + torch.arange(length, device=positions_M.device)
    return hidden_BTH[rows_M[:, None], places_MG] + embeds_BTH[rows_M[:, None], places_MG]


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


class NextGPT(nn.Module):
    """The trained parts around a frozen base LLM, whose own weights and embedding rows never change.

    New tokens have embedding and output rows of their own; base logits come from the base `lm_head` and stay
    bit-identical during training. Encoders and decoders are not part of it: it maps features to conditions.
    """

    def __init__(self, config: ModelConfig, llm: Any) -> None:
        super().__init__()
        check_fits(config, llm)
        text_config = llm.config.get_text_config()
        width, base_size = text_config.hidden_size, text_config.vocab_size
        self.config = config
        self.vocabulary = SignalVocabulary(base_size, config.signal_groups)
        self.llm = llm
        self.llm_fingerprint = ""
        # Saved in checkpoints: the stages so far, the model card, and the hash of replaced base rows.
        self.stages: Sequence[Mapping[str, Any]] = ()
        self.card: Mapping[str, Any] = {}
        self.base_rows = ""
        self.new_input_rows = nn.Embedding(len(self.vocabulary.tokens), width)
        self.new_output_rows = nn.Linear(width, len(self.vocabulary.tokens), bias=False)
        # One for all that is embedded alike, named after the first modality of each where there are several.
        projections = {
            str(inputs[0]): InputProjection(
                encoder.dim,
                width,
                num_patches=encoder.patches,
                kind=config.input_projection.kind,
                num_input_tokens=config.input_projection.num_input_tokens,
                hidden=config.input_projection.hidden,
                num_heads=config.input_projection.heads,
                num_layers=config.input_projection.layers,
            )
            for encoder, inputs in config.encoder.shared.items()
        }
        only, *more = projections.values()
        self.input_projection = nn.ModuleDict(projections) if more else only
        self.output_projections = nn.ModuleDict(
            {modality.value: _output_part(output, width) for modality, output in config.outputs.items()}
        )
        self.requires_grad_(False)

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        *,
        adapter: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
        device: torch.device | str = "cpu",
        draws_rows: bool = True,
    ) -> Self:
        """Loads the base LLM onto `device` and initialises the rest from `seed`, all in `dtype` and frozen.

        Without `draws_rows` the new rows are those of a checkpoint, to be loaded: drawing them copies the base rows.

        Raises ValueError if the LLM's widths differ from the configuration, or it cannot be loaded as configured (4
        bits or FlashAttention without the package or GPU).
        """
        device = torch.device(device)
        llm = load_llm(config.llm, dtype, device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls(config, llm)
            if draws_rows:
                model._draw_new_rows()
            model.llm_fingerprint = fingerprint(llm)
            for name, part in model.named_children():
                if name != "llm":  # already placed and cast, with float32 frequencies that a cast would round
                    part.to(device, dtype)
            if adapter:
                model.add_adapter()
        if gradient_checkpointing:
            llm.activation_checkpointing_enable({"use_reentrant": False})
        return model.train()

    @torch.no_grad()
    def _draw_new_rows(self) -> None:
        base = base_of(self.llm)
        ids_V = torch.arange(self.vocabulary.base_size, device=base.device)
        for rows, base_rows in (
            # Not the matrix itself, since some families (Gemma) scale the rows they look up.
            (self.new_input_rows.weight, base.get_input_embeddings()(ids_V)),
            (self.new_output_rows.weight, base.get_output_embeddings().weight),
        ):
            base_rows = base_rows.float()
            mean, deviation = base_rows.mean(0).to(rows.device), base_rows.std().to(rows.device)
            rows.copy_(mean + _NOISE * deviation * torch.randn_like(rows))

    @property
    def input_projections(self) -> list[Any]:
        """The input projections, in the order of `EncoderConfig.shared`."""
        several = isinstance(self.input_projection, nn.ModuleDict)
        return list(self.input_projection.children()) if several else [self.input_projection]

    def add_adapter(self) -> None:
        """Adds a fresh LoRA adapter to the LLM; it has no effect until trained."""
        assert not has_adapter(self.llm)
        self.llm = add_adapter(self.llm, self.config.lora, self.config.llm.name)
        self.llm.requires_grad_(False)
        for name, module in self.llm.named_modules():
            if is_adapter_tensor(name):  # PEFT creates them in float32 on 4-bit layers
                module.to(self.new_input_rows.weight)

    def measure_scales(self, scales: Mapping[Modality, float]) -> None:
        """Gives connectors the root mean square of their decoder's caption embeddings, where they have none yet."""
        for modality, scale in scales.items():
            part = self.output_projections[modality.value]
            if isinstance(part, OutputConnector):
                part.measure(scale)

    @property
    def has_adapter(self) -> bool:
        """Whether the LLM carries a LoRA adapter."""
        return has_adapter(self.llm)

    def trainable_manifest(self, stage: int) -> list[str]:
        """The names of all tensors that a stage trains; an adapter is trained in stage 3 and frozen in 1 and 2.

        Raises ValueError for an unknown stage, and for stage 3 without an adapter.
        """
        if stage not in STAGES:
            raise ValueError(f"stage is {stage}; use 1, 2 or 3")
        if stage == 3 and not self.has_adapter:
            raise ValueError("stage 3 trains a LoRA adapter and this model has none; build it with adapter=True")
        trained = self._is_trained_in(stage)
        return [name for name, _ in self.named_parameters() if trained(name)]

    @staticmethod
    def _is_trained_in(stage: int) -> Callable[[str], bool]:
        return lambda name: name.startswith(_TRAINED[stage]) or (stage == 3 and is_adapter_tensor(name))

    def set_stage(self, stage: int) -> list[str]:
        """Makes exactly the tensors of `trainable_manifest` trainable, and returns their names."""
        manifest = self.trainable_manifest(stage)
        chosen = set(manifest)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)
        self.train(self.training)
        return manifest

    def train(self, mode: bool = True) -> Self:
        """As usual, but a frozen adapter has no dropout."""
        super().train(mode)
        adapter_trains = any(p.requires_grad for name, p in self.llm.named_parameters() if is_adapter_tensor(name))
        if not adapter_trains:
            for name, module in self.llm.named_modules():
                if "lora_dropout" in name:
                    module.eval()
        return self

    def merge_adapter(self) -> None:
        """Merges the adapter into the LLM's weights, for faster inference.

        Logits change only by rounding. An LLM in 4 bits is left as it is: quantisation would lose the added values.
        """
        if self.has_adapter and not self.config.llm.load_in_4bit:
            self.llm.merge_adapter()

    def embed(self, ids_BT: Tensor, *, is_text: bool = False) -> Tensor:
        """Input embeddings of base and new tokens: (B, T, H); `is_text` promises that there are no new tokens."""
        if is_text:
            return base_of(self.llm).get_input_embeddings()(ids_BT)
        new_BT = ids_BT >= self.vocabulary.base_size
        base_BTH = base_of(self.llm).get_input_embeddings()(ids_BT.masked_fill(new_BT, 0))
        rows_BTH = self.new_input_rows((ids_BT - self.vocabulary.base_size).clamp(min=0))
        return torch.where(new_BT[..., None], rows_BTH, base_BTH)

    def embed_batch(self, batch: Batch) -> Tensor:
        """Input embeddings with the projected features at their positions: (B, T, H)."""
        embeds_BTH = self.embed(batch.input_ids_BT)
        if strange := batch.features.keys() - self.config.encoder.inputs.keys():
            whose = ", ".join(str(key or "all modalities by one encoder") for key in strange)
            raise ValueError(f"features of {whose}, for which preset {self.config.preset} has no encoder")
        groups = self.config.encoder.shared.items()
        for (encoder, inputs), projection in zip(groups, self.input_projections, strict=True):
            found = [batch.features[key] for key in inputs if key in batch.features]
            embeds_BTH = self._put(embeds_BTH, found, encoder, projection)
        return embeds_BTH

    def _put(
        self, embeds_BTH: Tensor, found: Sequence[InputFeatures], encoder: MediaEncoderConfig, projection: nn.Module
    ) -> Tensor:
        """Puts the projected features of items at their positions."""
        for items in found:
            if items.values_N.shape[1:] != encoder.shape:
                raise ValueError(
                    f"features are {_by(items.values_N.shape[1:])} wide, but preset {self.config.preset} takes "
                    f"{_by(encoder.shape)}; embed the data with encoder {encoder.name}"
                )
        # Every module runs in every batch, on a dummy if need be: ranks whose batches differ would otherwise reduce
        # different gradients, and deadlock under ZeRO.
        values_N = torch.cat([items.values_N for items in found]) if found else embeds_BTH.new_zeros(1, *encoder.shape)
        rows_N, positions_N = (
            torch.cat([embeds_BTH.new_zeros(0, dtype=torch.long), *(getattr(items, name) for items in found)])
            for name in ("rows_N", "positions_N")
        )
        tokens_NKH = projection(values_N.to(embeds_BTH.dtype))[: len(rows_N)].to(embeds_BTH.dtype)
        places_NK = positions_N[:, None] + torch.arange(tokens_NKH.shape[1], device=embeds_BTH.device)
        return embeds_BTH.index_put((rows_N[:, None].expand_as(places_NK), places_NK), tokens_NKH)

    def run_llm(self, embeds_BTH: Tensor, attention_mask_BT: Tensor | None = None, **options: Any) -> Any:
        """Runs the LLM without its head; `options` are passed to its inner model, such as a cache."""
        return base_of(self.llm).get_decoder()(
            inputs_embeds=embeds_BTH, attention_mask=attention_mask_BT, **({"use_cache": False} | options)
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over base tokens, from the base head, and new tokens: (..., H) to (..., V)."""
        base = base_of(self.llm)
        return capped(base, torch.cat([base.get_output_embeddings()(hidden), self.new_output_rows(hidden)], dim=-1))

    def forward(self, batch: Batch) -> Predictions:
        """Runs the LLM once; logits are computed only at positions with a label."""
        embeds_BTH = self.embed_batch(batch)
        hidden_BTH = self.run_llm(embeds_BTH, batch.attention_mask_BT).last_hidden_state
        labels_BT = batch.labels_BT[:, 1:]
        learned_BT = labels_BT != IGNORE
        conditions, nulls = self._conditions(batch, hidden_BTH, embeds_BTH)
        return Predictions(
            logits_PV=self.logits(hidden_BTH[:, :-1][learned_BT]),
            labels_P=labels_BT[learned_BT],
            conditions=conditions,
            nulls=nulls,
        )

    def null_conditions(self) -> dict[Modality, Tensor]:
        """The null condition (L, D) of each modality that learns its own: what zeros are mapped to."""
        width, found = self.new_input_rows.embedding_dim, {}
        for modality, output in self.config.outputs.items():
            if output.null == "learned":
                zeros_MGH = self.new_input_rows.weight.new_zeros(1, output.num_signal_tokens, width)
                found[modality] = self.output_projections[modality.value](zeros_MGH)[0]
        return found

    def _conditions(
        self, batch: Batch, hidden_BTH: Tensor, embeds_BTH: Tensor
    ) -> tuple[dict[Modality, Tensor], dict[Modality, Tensor]]:
        conditions, nulls = {}, {}
        for modality, output in self.config.outputs.items():
            group = batch.targets.get(modality)
            if group is None:
                # A dummy for the sake of other ranks, as above.
                count, states_MGH = 0, hidden_BTH[:1, :1].expand(-1, output.num_signal_tokens, -1)
            else:
                states_MGH = signal_states(hidden_BTH, embeds_BTH, group.rows_M, group.positions_M, group.group_length)
                count = len(states_MGH)
            if output.null == "learned":
                states_MGH = torch.cat([states_MGH, torch.zeros_like(states_MGH[:1])])
            found_MLD = self.output_projections[modality.value](states_MGH)
            conditions[modality] = found_MLD[:count]
            if output.null == "learned":
                nulls[modality] = found_MLD[-1]
        return conditions, nulls


def _output_part(output: OutputConfig, llm_dim: int) -> OutputProjection | OutputConnector:
    if output.kind == "connector":
        return OutputConnector(
            llm_dim,
            output.dim,
            num_signal_tokens=output.num_signal_tokens,
            num_queries=output.num_queries,
            width=output.width or llm_dim,
            num_layers=output.layers,
            num_heads=output.heads,
        )
    return OutputProjection(
        llm_dim,
        output.dim,
        num_queries=output.num_queries,
        hidden=output.hidden,
        ffn=output.ffn,
        num_layers=output.layers,
        num_heads=output.heads,
    )
