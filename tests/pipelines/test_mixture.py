"""The plan: every sample, once, in an order that depends on nothing but its inputs."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipelines.mixture import Mixture

mixtures = st.builds(
    Mixture,
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=2),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 2.5]), min_size=2, max_size=2),
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 99),
)


def plain(**changes: object) -> Mixture:
    settings = {"counts": [14, 11, 14], "weights": [1.0, 1.0, 1.0], "batch_size": 8, "epochs": 2, "seed": 0}
    return Mixture(**(settings | changes))  # type: ignore[arg-type]


@given(mixtures)
def test_an_epoch_takes_every_sample_as_often_as_its_weight_says(mixture: Mixture) -> None:
    for epoch in range(mixture.epochs):
        steps = range(epoch * mixture.epoch_steps, (epoch + 1) * mixture.epoch_steps)
        seen = Counter(pair for step in steps for pair in mixture.batch(step))
        assert sum(seen.values()) == mixture.epoch_samples
        for dataset, (count, weight) in enumerate(zip(mixture.counts, mixture.weights, strict=True)):
            times = [seen[dataset, sample] for sample in range(count)]
            assert sum(times) == round(count * weight)
            assert max(times) - min(times) <= 1


@given(mixtures, st.integers(1, 4))
def test_the_ranks_of_any_world_share_each_batch_without_loss_or_repeat(mixture: Mixture, world_size: int) -> None:
    for step in range(mixture.num_steps):
        shares = [mixture.rank_batch(step, rank, world_size) for rank in range(world_size)]
        interleaved = [shares[place % world_size][place // world_size] for place in range(len(mixture.batch(step)))]
        assert interleaved == mixture.batch(step)
        assert sum(map(len, shares)) == len(mixture.batch(step))


def test_a_step_does_not_depend_on_the_steps_asked_for_before() -> None:
    late, early = plain(), plain()
    for step in range(early.num_steps):
        early.batch(step)
    assert early.batch(7) == late.batch(7)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    mixture = plain()
    assert [mixture.batch(s) for s in range(5)] != [mixture.batch(s) for s in range(5, 10)]
    assert plain(seed=1).batch(0) != mixture.batch(0)


def test_the_last_batch_of_an_epoch_is_what_is_left() -> None:
    mixture = plain()
    assert [len(mixture.batch(step)) for step in range(5)] == [8, 8, 8, 8, 7]
