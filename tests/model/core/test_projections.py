import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.core.projections import InputProjection, OutputConnector, OutputProjection


def formula_weight(name: str, shape: torch.Size) -> Tensor:
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
    is_norm = name.endswith("weight") and ("norm" in name)
    return torch.from_numpy(draw * np.float32(0.05) + np.float32(is_norm))


def rnd(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    return json.loads((shared / "facts" / "output_projection_golden.json").read_text())


def test_the_output_projection_has_the_released_tensors(golden: dict) -> None:
    projection = OutputProjection(64, 32, num_queries=7)
    assert {name: list(tensor.shape) for name, tensor in projection.state_dict().items()} == dict(golden["names"])


def test_the_released_output_projections_fit(shared: Path) -> None:
    released: dict[str, tuple[int, ...]] = {}
    for line in (shared / "facts" / "delta_7b_tiva_v0.tsv").read_text().splitlines()[1:]:
        name, shape = line.split("\t")
        released[name] = tuple(int(size) for size in shape.split("x"))
    sizes = {
        "gen_text_hidden_fcs": (768, 77),
        "gen_text_hidden_fcs_video": (1024, 77),
        "gen_text_hidden_fcs_audio": (512, 1),
    }
    for prefix, (out_dim, num_queries) in sizes.items():
        with torch.device("meta"):
            ours = OutputProjection(4096, out_dim, num_queries=num_queries).state_dict()
        theirs = {k.removeprefix(f"{prefix}.0."): v for k, v in released.items() if k.startswith(f"{prefix}.0.")}
        assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == theirs


def test_the_output_projection_meets_the_golden_figures(golden: dict) -> None:
    projection = OutputProjection(64, 32, num_queries=7).eval()
    projection.load_state_dict({k: formula_weight(k, v.shape) for k, v in projection.state_dict().items()})
    with torch.no_grad():
        output = projection(rnd(21, 2, 4, 64) + rnd(22, 2, 4, 64))
    assert output.shape == (2, 7, 32)
    torch.testing.assert_close(output[:, 0], torch.tensor(golden["output_first_token"]), atol=1e-4, rtol=0)
    assert output.mean().item() == pytest.approx(golden["output_mean"], abs=1e-4)
    assert output.std().item() == pytest.approx(golden["output_std"], abs=1e-4)


def test_the_output_projection_takes_any_sizes_and_group_length_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        projection = OutputProjection(24, 6, num_queries=3, hidden=16, ffn=32, num_layers=2, num_heads=2)
        for group in (1, 4, 24):
            assert projection(rnd(0, 2, group, 24)).shape == (2, 3, 6)
    assert projection(rnd(0, 0, 4, 24)).shape == (0, 3, 6)


def test_a_linear_input_projection_is_one_linear_layer() -> None:
    projection = InputProjection(8, 12)
    assert {k: tuple(v.shape) for k, v in projection.state_dict().items()} == {
        "linear.weight": (12, 8),
        "linear.bias": (12,),
    }
    features = rnd(1, 3, 8)
    torch.testing.assert_close(projection(features), projection.linear(features)[:, None])


def test_a_query_input_projection_gives_tokens_that_differ_and_learn() -> None:
    torch.manual_seed(0)
    projection = InputProjection(8, 12, kind="query", num_input_tokens=5, hidden=16, num_heads=2)
    tokens = projection(rnd(1, 3, 8))
    assert tokens.shape == (3, 5, 12)
    assert len(torch.unique(tokens.flatten(0, 1).detach().round(decimals=4), dim=0)) == 15
    grads = torch.autograd.grad((tokens * rnd(2, 3, 5, 12)).sum(), list(projection.parameters()), allow_unused=True)
    assert all(grad is not None for grad in grads)
    torch.testing.assert_close(projection(rnd(1, 3, 8)[1:2]), tokens[1:2])
    assert projection(rnd(0, 0, 8)).shape == (0, 5, 12)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="num_input_tokens is 4; use 1"):
        InputProjection(8, 12, num_input_tokens=4)
    with pytest.raises(ValueError, match="kind is 'magic'"):
        InputProjection(8, 12, kind="magic")  # type: ignore[arg-type]


def connector(tokens: int, queries: int, scale: float = 0.0) -> OutputConnector:
    torch.manual_seed(0)
    made = OutputConnector(24, 6, num_signal_tokens=tokens, num_queries=queries, width=16, num_layers=2, num_heads=2)
    made.measure(scale)
    return made


@pytest.mark.parametrize(("tokens", "queries"), [(4, 4), (4, 7), (9, 3), (5, 1)])
def test_a_connector_takes_any_number_of_signal_tokens_and_all_of_it_learns(tokens: int, queries: int) -> None:
    made = connector(tokens, queries)
    conditions = made(rnd(0, 3, tokens, 24))
    assert conditions.shape == (3, queries, 6)
    assert made(rnd(0, 0, tokens, 24)).shape == (0, queries, 6)
    # As many tokens as positions need no queries that resample them.
    assert any(name.startswith("resampler.") for name in made.state_dict()) == (tokens != queries)
    grads = torch.autograd.grad((conditions * rnd(1, 3, queries, 6)).sum(), list(made.parameters()))
    assert all(grad.any() for grad in grads)
    torch.testing.assert_close(made(rnd(0, 3, tokens, 24)[1:2]), conditions[1:2])


@pytest.mark.parametrize("queries", [4, 7])
def test_a_connector_sees_all_signal_tokens_from_every_position_and_their_order(queries: int) -> None:
    made, states = connector(4, queries), rnd(0, 1, 4, 24)
    for place in range(4):
        changed = states.clone()
        changed[:, place] += 1
        assert (made(changed) - made(states)).abs().amax(-1).gt(1e-5).all()
    assert not torch.allclose(made(states.flip(1)), made(states))
    if queries == 4:
        assert not torch.allclose(made(states.flip(1)), made(states).flip(1), atol=1e-3)


@pytest.mark.parametrize("scale", [0.04, 1.0, 28.0])
def test_every_condition_of_a_connector_has_the_scale_of_the_text_encoder(scale: float) -> None:
    made = connector(4, 7, scale)
    for states in (rnd(0, 2, 4, 24), 100 * rnd(1, 2, 4, 24), torch.zeros(2, 4, 24)):
        rms = made(states).pow(2).mean(-1).sqrt()
        torch.testing.assert_close(rms, torch.full((2, 7), scale), rtol=1e-4, atol=0)
    made.measure(3 * scale)
    assert made.gain.item() == pytest.approx(scale), "what was measured first stays, as what was learned since fits it"


def test_a_connector_that_nothing_was_measured_for_has_a_scale_of_1() -> None:
    made = connector(4, 7)
    assert made(rnd(0, 2, 4, 24)).pow(2).mean().sqrt().item() == pytest.approx(1.0, rel=1e-4)


def test_a_connector_of_a_width_that_its_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="width 18 cannot be shared by 4 heads"):
        OutputConnector(24, 6, num_signal_tokens=4, num_queries=7, width=18)


def test_the_resampler_reads_patches_where_they_stand() -> None:
    torch.manual_seed(0)
    sizes = {"num_input_tokens": 4, "hidden": 16, "num_heads": 2, "num_layers": 3}
    projection = InputProjection(8, 12, num_patches=6, kind="resampler", **sizes)
    assert len(projection.decoder.layers) == 3
    patches = rnd(3, 2, 6, 8)
    tokens = projection(patches)
    assert tokens.shape == (2, 4, 12)
    torch.testing.assert_close(projection(patches[1:]), tokens[1:])
    assert not torch.allclose(projection(patches.flip(1)), tokens, atol=1e-3), "places matter"
    torch.testing.assert_close(projection(3 * patches + 1), tokens, atol=1e-4, rtol=1e-4)  # scales of encoders do not
    tokens.square().sum().backward()
    assert all(parameter.grad is not None for parameter in projection.parameters())
    assert InputProjection(8, 12, kind="resampler", **sizes)(rnd(3, 2, 8)).shape == (2, 4, 12)


def test_a_linear_projection_maps_each_patch_to_its_token() -> None:
    projection = InputProjection(8, 12, num_patches=6, num_input_tokens=6)
    patches = rnd(3, 2, 6, 8)
    torch.testing.assert_close(projection(patches)[1, 4], projection.linear(patches[1, 4]))
    with pytest.raises(ValueError, match="num_input_tokens is 1; use 6"):
        InputProjection(8, 12, num_patches=6)


def test_the_legacy_projections_draw_the_weights_that_they_always_drew() -> None:
    torch.manual_seed(7)
    query = InputProjection(8, 12, kind="query", num_input_tokens=5, hidden=16, num_heads=2)
    torch.manual_seed(7)
    assert torch.equal(query.query_embs, torch.randn(1, 5, 16))
    fc = torch.nn.Linear(8, 16)
    assert torch.equal(query.fc.weight, fc.weight)
    names = {name.partition(".")[0] for name in query.state_dict()}
    assert names == {"query_embs", "fc", "decoder", "linear"}
    assert set(InputProjection(8, 12).state_dict()) == {"linear.weight", "linear.bias"}
