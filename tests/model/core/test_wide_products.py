"""Linear layers of 16 bits on a CPU without instructions for them."""

import pytest
import torch
from torch import nn

from model.core import llm
from model.core.dialogue import encode_dialogue
from model.core.nextgpt import NextGPT
from model.core.tokenizer import load_tokenizer
from model.parts.config import ModelConfig
from pipelines.sample import Turn

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that has none, whatever this one has; and several pieces of small weights."""
    monkeypatch.setattr(llm, "_PIECE", 7 * 24)
    for kind in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", lambda: False)


def layers(dtype: torch.dtype, *, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """A frozen layer as it is, in double precision, and one of the same weights that was widened."""
    torch.manual_seed(0)
    widened = nn.Linear(24, 40, bias=bias).to(dtype).requires_grad_(False)
    exact = nn.Linear(24, 40, bias=bias).double().requires_grad_(False)
    exact.load_state_dict({name: value.double() for name, value in widened.state_dict().items()})
    llm.widen_products(nn.Sequential(widened))
    return exact, widened


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (3, 5), (2, 50), (200,)])
def test_values_and_gradients_are_those_of_exact_sums_rounded_once(
    dtype: torch.dtype, bias: bool, rows: tuple[int, ...]
) -> None:
    exact, widened = layers(dtype, bias=bias)
    given = torch.randn(*rows, 24, dtype=dtype)
    ones = [given.double().requires_grad_(), given.clone().requires_grad_()]
    outputs = [layer(one) for layer, one in zip((exact, widened), ones, strict=True)]
    grad = torch.randn(*rows, 40, dtype=dtype)
    for output in outputs:
        output.backward(grad.to(output.dtype))
    (wanted, found), (wanted_grad, found_grad) = outputs, (one.grad for one in ones)
    assert found.dtype == found_grad.dtype == dtype
    assert found.shape == wanted.shape
    bound = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), wanted, rtol=bound, atol=bound)
    torch.testing.assert_close(found_grad.double(), wanted_grad, rtol=bound, atol=bound)


def test_what_is_trained_still_learns() -> None:
    _, layer = layers(torch.bfloat16)
    layer.requires_grad_(True)
    layer(torch.randn(60, 24, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


def test_weights_of_32_bits_stay_as_they_are() -> None:
    layer = nn.Linear(3, 4)
    llm.widen_products(nn.Sequential(layer))
    assert "forward" not in vars(layer)


def test_a_model_with_an_adapter_has_the_gradients_of_one_that_is_not_widened(
    tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [Turn(role="user", parts=("What is this? " * 20,)), Turn(role="assistant", parts=("A red circle.",))]

    def gradients() -> dict[str, torch.Tensor]:
        model = NextGPT.from_config(tiny, adapter=True, dtype=torch.bfloat16)
        model.set_stage(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        ids = encode_dialogue(turns, load_tokenizer(tiny), model.vocabulary, 1, 512).input_ids
        hidden = model.eval().run_llm(model.embed(torch.tensor([ids]))).last_hidden_state
        hidden.float().square().mean().backward()
        return {name: value.grad for name, value in model.named_parameters() if "lora_" in name}

    widened = gradients()
    monkeypatch.setattr(llm, "_is_slow", lambda weight: False)
    plain = gradients()
    assert plain
    for name, value in plain.items():
        assert (widened[name] - value).norm() < 0.05 * value.norm(), name
