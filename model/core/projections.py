"""The trained projections: encoder to LLM, and LLM to the decoders' conditions.

Shape suffixes: N items, P patches, E encoder embedding, Q queries or tokens, G signal tokens of a group, D LLM width,
H inner width, L and O length and width of a decoder's condition.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_POSITION_STD = 0.02


class InputProjection(nn.Module):
    """Projects an item's embedding, a vector (E) or patches (P, E), to LLM input tokens.

    `kind="linear"` is NExT-GPT's (Wu et al. 2023, arXiv:2309.05519, section 3): one linear layer, a token a vector.
    `kind="query"` lets `num_input_tokens` learned queries read the embedding through two layers of cross-attention.
    `kind="resampler"` does so through `num_layers`, from normalised patches with learned position embeddings (after
    Alayrac et al. 2022, arXiv:2204.14198, section 3.1). `num_patches` is None for an embedding that is one vector.
    Raises ValueError for an unknown kind, and for another number of tokens than of vectors with the linear one.
    """

    def __init__(
        self,
        encoder_dim: int,
        llm_dim: int,
        *,
        num_patches: int | None = None,
        kind: Literal["linear", "query", "resampler"] = "linear",
        num_input_tokens: int = 1,
        hidden: int = 512,
        num_heads: int = 4,
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        if kind not in ("linear", "query", "resampler"):
            raise ValueError(f"input projection: kind is {kind!r}; use 'linear', 'query' or 'resampler'")
        num_vectors = num_patches or 1
        if num_input_tokens < 1 or (kind == "linear" and num_input_tokens != num_vectors):
            raise ValueError(
                f"input projection: num_input_tokens is {num_input_tokens}; use {num_vectors}, or another number with "
                "kind 'query' or 'resampler'"
            )
        self.kind = kind
        self.num_input_tokens = num_input_tokens
        if kind != "linear":
            self.query_embs = nn.Parameter(torch.randn(1, num_input_tokens, hidden))
            self.fc = nn.Linear(encoder_dim, hidden)
            layer = nn.TransformerDecoderLayer(
                hidden, num_heads, 4 * hidden, dropout=0.0, norm_first=True, batch_first=True
            )
            num_layers = num_layers if kind == "resampler" else 2
            self.decoder = nn.TransformerDecoder(layer, num_layers, norm=nn.LayerNorm(hidden))
            # The layers are copies of one; initialise each anew.
            for weight in self.decoder.parameters():
                if weight.ndim > 1:
                    nn.init.xavier_uniform_(weight)
        self.linear = nn.Linear(encoder_dim if kind == "linear" else hidden, llm_dim)
        if kind == "resampler":
            self.norm = nn.LayerNorm(encoder_dim)
            self.position_embs = nn.Parameter(torch.randn(1, num_vectors, hidden) * hidden**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, E) or (N, P, E) to (N, num_input_tokens, llm_dim)."""
        x_NPE = features if features.ndim == 3 else features[:, None]
        if self.kind == "linear":
            return self.linear(x_NPE)
        x_NPH = self.fc(self.norm(x_NPE)) + self.position_embs if self.kind == "resampler" else self.fc(x_NPE)
        return self.linear(self.decoder(self.query_embs.expand(len(features), -1, -1), x_NPH))


class OutputProjection(nn.Module):
    """Projects signal token states to a decoder's condition (Wu et al. 2023, arXiv:2309.05519, section 3).

    An encoder-decoder transformer without position embeddings, whose decoder takes `num_queries` learned queries. The
    tensor names are those of NExT-GPT's released weights.
    """

    def __init__(
        self,
        llm_dim: int,
        out_dim: int,
        *,
        num_queries: int,
        hidden: int = 512,
        ffn: int = 2048,
        num_layers: int = 4,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.query_embs = nn.Parameter(torch.randn(1, num_queries, hidden))
        self.fc = nn.Linear(llm_dim, hidden)
        layer = nn.TransformerEncoderLayer(hidden, num_heads, ffn, dropout=0.0, norm_first=True, batch_first=True)
        # Built here because nn.Transformer's own encoder warns about nested tensors, which pre-norm never uses.
        encoder = nn.TransformerEncoder(layer, num_layers, norm=nn.LayerNorm(hidden), enable_nested_tensor=False)
        self.tfm = nn.Transformer(
            hidden,
            num_heads,
            num_decoder_layers=num_layers,
            dim_feedforward=ffn,
            dropout=0.0,
            custom_encoder=encoder,
            norm_first=True,
            batch_first=True,
        )
        self.model = nn.Linear(hidden, out_dim)

    def forward(self, signal_states_NGD: Tensor) -> Tensor:
        """Maps the `signal_states` of N items, (N, G, D), to (N, num_queries, out_dim)."""
        queries_NQH = self.query_embs.expand(len(signal_states_NGD), -1, -1)
        return self.model(self.tfm(self.fc(signal_states_NGD), queries_NQH))


class OutputConnector(nn.Module):
    """Maps signal token states to a decoder's condition through bidirectional layers, at the text encoder's scale.

    After MetaQuery (Pan et al. 2025, arXiv:2504.06256): pre-norm transformer layers over the signal tokens, Linear -
    GELU - Linear, RMS norm. As many signal tokens as positions are mapped one by one; any other number is resampled by
    learned queries. All positions have the same root mean square, `gain`: that of the caption embeddings. It is fixed,
    since what carries meaning is the direction, and a loss that averages over what it cannot predict would shrink the
    condition to a scale that the decoder never saw. A gain of 0, before `measure`, counts as 1.

    Raises ValueError for a width that the heads cannot share.
    """

    gain: Tensor

    def __init__(
        self,
        llm_dim: int,
        out_dim: int,
        *,
        num_signal_tokens: int,
        num_queries: int,
        width: int,
        num_layers: int = 4,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"connector: width {width} cannot be shared by {num_heads} heads; use a divisor of it")
        sizes = (width, num_heads, 4 * width)
        options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "norm_first": True, "batch_first": True}
        self.fc = nn.Linear(llm_dim, width)
        self.position_embs = nn.Parameter(_POSITION_STD * torch.randn(1, num_signal_tokens, width))
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(*sizes, **options) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(width)
        self.resampler: nn.TransformerDecoderLayer | None = None
        if num_signal_tokens != num_queries:
            self.query_embs = nn.Parameter(torch.randn(1, num_queries, width))
            self.resampler = nn.TransformerDecoderLayer(*sizes, **options)
        self.model = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out_dim))
        self.register_buffer("gain", torch.zeros(1))

    def measure(self, scale: float) -> None:
        """Sets the root mean square of all conditions, unless it was set before."""
        if not self.gain.any():
            self.gain.fill_(scale)

    def forward(self, signal_states_NGD: Tensor) -> Tensor:
        """Maps the `signal_states` of N items, (N, G, D), to (N, L, O)."""
        x_NLH = self.norm(self.layers(self.fc(signal_states_NGD) + self.position_embs))
        if self.resampler is not None:
            x_NLH = self.resampler(self.query_embs.expand(len(x_NLH), -1, -1), x_NLH)
        x_NLO = self.model(x_NLH)
        return functional.rms_norm(x_NLO, x_NLO.shape[-1:]) * self.gain.where(self.gain > 0, 1.0)
