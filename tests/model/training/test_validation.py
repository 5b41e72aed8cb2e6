"""Validation in the midst of a real DeepSpeed training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dialogue_cases import CAPTION, MIXED, REQUEST, make_example

from jobs.common.settings import deepspeed_settings, load_settings
from model.core.batch import Batch, Example, collate
from model.core.losses import Criterion, LossWeights, total
from model.core.nextgpt import NextGPT
from model.parts.config import ModelConfig
from model.training.engine import Rank, build_engine
from model.training.held_out import validate
from model.training.validation_replies import Sampler, undisturbed
from pipelines.sample import Modality, turns_to_json

WEIGHTS = LossWeights(tokens=0.5, alignment={Modality.IMAGE: 2.0})
STEPS = 3


pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture
def examples(model: NextGPT, tokenizer: Any) -> list[Example]:
    return [make_example(turns, tokenizer, model, seed=n) for n, turns in enumerate((CAPTION, REQUEST, MIXED, REQUEST))]


def criterion_of(model: NextGPT) -> Criterion:
    return Criterion(vocabulary=model.vocabulary, alignment_variance=dict.fromkeys(Modality, 1.0))


def alone(values: list[float]) -> list[float]:
    return values


def rows() -> list[dict[str, Any]]:
    """What the hand-over has of the same dialogues."""
    features = torch.zeros(3, 32).numpy()
    return [{"key": "k", "turns": turns_to_json(turns), "encoder": features} for turns in (REQUEST, MIXED)]


def test_figures_are_those_of_the_whole_split_however_it_is_spread_over_ranks(
    model: NextGPT, examples: list[Example]
) -> None:
    criterion = criterion_of(model)
    model.eval()
    with torch.no_grad():
        batch = collate(examples)
        losses = criterion(model(batch), batch)
    expected = {"loss": float(total(losses, losses.counts_F, WEIGHTS)), **losses.means()}

    def on_rank(parts: list[list[Example]], reduce: Callable[[list[float]], list[float]]) -> dict[str, float]:
        return validate(model, criterion, map(collate, parts), WEIGHTS, reduce)

    summed: list[float] = []
    on_rank([examples[:1], []], lambda values: summed.extend(values) or values)
    found = on_rank([examples[1:3], examples[3:]], lambda v: [a + b for a, b in zip(summed, v, strict=True)])
    assert found.keys() == expected.keys() >= {"loss", "token_accuracy", "image_well_formed", "audio_alignment"}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_a_training_with_validation_and_samples_is_bit_equal_to_one_without(
    zero: int, tiny: ModelConfig, tokenizer: Any, examples: list[Example]
) -> None:
    def train(watched: bool) -> tuple[list[float], list[torch.Tensor], list[dict[str, float]]]:
        model = NextGPT.from_config(tiny, adapter=True)
        model.set_stage(3)
        settings = load_settings(3, "tiny", [f"zero={zero}", "batch_size=4", "micro_batch_size=4"])
        rank = Rank(rank=0, world_size=1, device="cpu")
        engine = build_engine(model, settings, deepspeed_settings(settings), STEPS, rank)
        criterion, sampler = criterion_of(model), Sampler(engine, tokenizer, renders=False, max_new_tokens=32)
        batch, losses, scores = collate(examples), [], []
        torch.manual_seed(0)  # for the dropout of the adapter
        for step in range(STEPS):
            found = criterion(engine(batch), batch)
            engine.backward(total(found, found.counts_F, WEIGHTS))
            engine.step()
            losses += found.to_list()
            if watched:
                held_out: list[Batch] = [collate(examples[:2]), collate([])]
                scores += [validate(engine, criterion, held_out, WEIGHTS, alone)]
                assert model.training
                assert step or len(sampler(rows())) == 3
        return losses, gathered(model), scores

    plain, plain_weights, _ = train(watched=False)
    watched, watched_weights, scores = train(watched=True)
    assert watched == plain
    for one, two in zip(watched_weights, plain_weights, strict=True):
        assert torch.equal(one, two)
    assert scores[-1]["loss"] < scores[0]["loss"]


def gathered(model: NextGPT) -> list[torch.Tensor]:
    import deepspeed

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with deepspeed.zero.GatheredParameters([p for p in trained if hasattr(p, "ds_id")]):
        return [parameter.detach().clone() for parameter in trained]


def test_dropout_is_off_while_a_model_is_scored(tiny: ModelConfig, examples: list[Example]) -> None:
    model = NextGPT.from_config(tiny, adapter=True)
    model.set_stage(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # at 0, as it starts, an adapter does nothing
            torch.nn.init.normal_(parameter)
    one, two = (validate(model, criterion_of(model), [collate(examples)], WEIGHTS, alone) for _ in range(2))
    assert one == two
    with torch.no_grad():
        batch = collate(examples)
        assert criterion_of(model)(model(batch), batch).means()["token_loss"] != one["token_loss"]


def test_a_model_is_left_as_it_was_where_scoring_fails(model: NextGPT) -> None:
    state = torch.get_rng_state()

    def fail() -> None:
        with undisturbed(model):
            assert not model.training
            torch.rand(1)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_held_out_has_no_figures_but_a_loss_of_0(model: NextGPT) -> None:
    assert validate(model, criterion_of(model), [collate([])], WEIGHTS, alone) == {"loss": 0.0}
