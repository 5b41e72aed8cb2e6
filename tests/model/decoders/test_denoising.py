import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_cases import each_modality, name_of
from dialogue_cases import CAPTION, MIXED, REQUEST, make_example
from safetensors.torch import load_file

from model.core.batch import collate
from model.core.losses import TERMS, Criterion, LossWeights, total
from model.core.nextgpt import NextGPT
from model.decoders.denoising import Denoiser
from model.parts.builtin import resolve
from pipelines.sample import Modality


@pytest.fixture(scope="module")
def denoisers():
    return {modality: Denoiser(modality, name_of(modality)) for modality in Modality}


@pytest.fixture
def of_type(modality, tmp_path):
    """Makes a denoiser whose decoder was trained to predict something else."""

    def make(prediction_type):
        folder = Path(shutil.copytree(resolve(name_of(modality)), tmp_path / prediction_type))
        file = folder / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": prediction_type}))
        return Denoiser(modality, str(folder))

    return make


def inputs(denoiser, count=3, seed=0):
    """Conditions of which a gradient is wanted, and latents."""
    generator = torch.Generator().manual_seed(seed)
    conditions_KLD = torch.randn(count, *denoiser.condition_shape, generator=generator, requires_grad=True)
    return conditions_KLD, torch.randn(count, *denoiser.latent_shape, generator=generator)


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


@each_modality
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_the_error_of_what_the_unet_was_trained_to_predict(of_type, prediction_type):
    """By hand: a mix of latents and noise by the schedule's share of the signal, and the three targets."""
    denoiser = of_type(prediction_type)
    conditions_KLD, latents = inputs(denoiser)
    share_K = denoiser.scheduler.alphas_cumprod[torch.randint(1000, (3,), generator=(generator := seeded()))]
    noise = torch.randn(latents.shape, generator=generator)
    signal, spread = (share.view(3, *[1] * (latents.ndim - 1)) for share in (share_K.sqrt(), (1 - share_K).sqrt()))
    targets = {"epsilon": noise, "v_prediction": signal * noise - spread * latents, "sample": latents}
    seen = []
    denoiser.unet.register_forward_hook(lambda _, given, output: seen.append((given[0], output.sample)))
    loss = denoiser(conditions_KLD, latents, seeded())
    [(noisy, predicted)] = seen
    torch.testing.assert_close(noisy, signal * latents + spread * noise)
    torch.testing.assert_close(loss, (predicted - targets[prediction_type]).pow(2).flatten(1).mean(1).sum())


@each_modality
def test_an_unknown_prediction_type_is_refused(of_type):
    with pytest.raises(ValueError, match="prediction_type flow, and a loss needs epsilon, v_prediction, sample"):
        of_type("flow")


@each_modality
def test_the_gradient_reaches_the_conditions_and_nothing_of_the_unet(modality, denoisers):
    denoiser = denoisers[modality]
    conditions_KLD, latents = inputs(denoiser)
    denoiser(conditions_KLD, latents, seeded()).backward()
    assert conditions_KLD.grad.flatten(1).abs().amax(1).gt(0).all()
    assert not denoiser.unet.training
    assert all(not p.requires_grad and p.grad is None for p in denoiser.unet.parameters())


@each_modality
def test_the_loss_follows_conditions_and_generator_alone(modality, denoisers):
    denoiser = denoisers[modality]
    conditions_KLD, latents = inputs(denoiser)
    torch.rand(1)  # the global random state plays no part
    first = denoiser(conditions_KLD, latents, seeded())
    assert torch.equal(denoiser(conditions_KLD, latents, seeded()), first)
    assert not torch.equal(denoiser(conditions_KLD, latents, seeded(8)), first)
    assert not torch.equal(denoiser(conditions_KLD.flip(0), latents, seeded()), first)


@each_modality
def test_half_precision_and_gradient_checkpointing_give_nearly_the_same(modality, denoisers):
    conditions_KLD, latents = inputs(denoisers[modality])
    expected = denoisers[modality](conditions_KLD, latents, seeded())
    expected.backward()
    gradient, conditions_KLD.grad = conditions_KLD.grad, None
    checkpointed = Denoiser(modality, name_of(modality), gradient_checkpointing=True)
    loss = checkpointed(conditions_KLD, latents, seeded())
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(conditions_KLD.grad, gradient)
    half = Denoiser(modality, name_of(modality), dtype=torch.bfloat16)(conditions_KLD, latents, seeded())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.02, atol=0)


@each_modality
def test_conditions_and_latents_of_another_decoder_are_refused(modality, denoisers):
    conditions_KLD, latents = inputs(denoisers[modality])
    with pytest.raises(ValueError, match=f"{modality} conditions are"):
        denoisers[modality](conditions_KLD[..., :-1], latents, seeded())
    with pytest.raises(ValueError, match=f"{modality} latents are"):
        denoisers[modality](conditions_KLD, latents[:, :-1], seeded())


# --- As a part of the loss -------------------------------------------------------------------------------------------


def with_latents(turns, tokenizer, model, denoisers, seed=0):
    example, rng = make_example(turns, tokenizer, model, seed=seed), np.random.default_rng(seed)
    groups = [item.modality for item, *_ in example.dialogue.output_groups]
    latents = {m: rng.standard_normal((groups.count(m), *denoisers[m].latent_shape)) for m in set(groups)}
    return replace(example, latents=latents)


@pytest.fixture
def criterion(model, denoisers):
    variance = dict.fromkeys(Modality, 1.0)
    return Criterion(vocabulary=model.vocabulary, alignment_variance=variance, denoisers=denoisers)


def test_only_the_output_projections_learn_from_it(tiny, tokenizer, denoisers, criterion):
    model = NextGPT.from_config(tiny)
    model.set_stage(2)
    batch = collate([with_latents(turns, tokenizer, model, denoisers) for turns in (CAPTION, REQUEST, MIXED)])
    frozen = {m: {k: v.clone() for k, v in d.unet.state_dict().items()} for m, d in denoisers.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = criterion(model(batch), batch, seeded())
    assert {f"{m}_denoising" for m in Modality} <= losses.means().keys()
    weights = LossWeights(tokens=0.0, alignment=dict.fromkeys(Modality, 0.0))
    total(losses, criterion.count(batch), weights).backward()
    for modality in Modality:
        projection = model.output_projections[modality.value]
        assert all(p.grad is not None and p.grad.any() for p in projection.parameters())
    optimizer.step()
    for modality, denoiser in denoisers.items():
        assert all(torch.equal(tensor, frozen[modality][k]) for k, tensor in denoiser.unet.state_dict().items())


def test_items_without_a_medium_are_aligned_but_not_denoised(model, tokenizer, denoisers, criterion):
    whole = with_latents(MIXED, tokenizer, model, denoisers)
    batch = collate([make_example(REQUEST, tokenizer, model), whole])
    image = batch.targets[Modality.IMAGE]
    assert (len(image.embeddings_MLD), image.latent_items_K.tolist()) == (2, [1])
    np.testing.assert_array_equal(image.latents_K, whole.latents[Modality.IMAGE].astype(np.float32))
    counts = dict(zip(TERMS, criterion.count(batch).tolist(), strict=True))
    assert [counts[f"{m}_denoising"] for m in Modality] == [1, 1, 0]
    assert "audio_denoising" not in criterion(model(batch), batch, seeded()).means()


def test_denoising_is_the_mean_over_the_items_of_a_global_batch(model, tokenizer, denoisers, criterion):
    """As with every term, shares of micro-batches add up to the whole; each draws from its own generator."""
    examples = [with_latents(turns, tokenizer, model, denoisers, seed=n) for n, turns in enumerate((REQUEST, MIXED))]
    batches = [collate([example]) for example in examples]
    counts = sum(map(criterion.count, batches), torch.zeros(len(TERMS)))
    parts = [criterion(model(batch), batch, seeded(n)) for n, batch in enumerate(batches)]
    only = LossWeights(tokens=0.0, alignment=dict.fromkeys(Modality, 0.0))
    sums = sum(part.sums_F for part in parts)[: len(TERMS)]
    expected = sum(s / c for name, s, c in zip(TERMS, sums, counts, strict=True) if name.endswith("denoising"))
    torch.testing.assert_close(sum(total(part, counts, only) for part in parts), expected.float())


def test_too_few_latents_are_refused_by_the_samples_key(model, tokenizer, denoisers):
    example = with_latents(REQUEST, tokenizer, model, denoisers)
    short = replace(example, key="a", latents={Modality.IMAGE: np.zeros((0, 4, 8, 8))})
    with pytest.raises(ValueError, match=r"^a: 1 image media in its answers but latents for 0; run embed --latents"):
        collate([short])


@each_modality
def test_weights_of_the_unet_alone_are_read(modality, tmp_path):
    folder = Path(shutil.copytree(resolve(name_of(modality)), tmp_path / "decoder"))
    for part in ("vae", "text_encoder"):
        next(folder.glob(f"{part}/*.safetensors")).unlink()
    tensors = load_file(next(folder.glob("unet/*.safetensors")))
    state = Denoiser(modality, str(folder)).unet.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
