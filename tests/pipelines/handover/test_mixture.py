"""The plans: every sample as often as it should be, in batches of like length, whoever asks for which step."""

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.handover.mixture import Candidates, HeldOutPlan, Mixture, Pair, Plan
from pipelines.handover.survey import hash_key
from pipelines.sample import Sample
from pipelines.sources.catalog import load_catalog
from pipelines.sources.readers import READERS
from pipelines.views import Kind, apply_view

WORLDS = (1, 2, 4)


def candidates(lengths: Sequence[int], weight: float = 1.0) -> Candidates:
    """Every other sample of a view, from the third on: numbers of samples are not places among the candidates."""
    numbers = 2 + 2 * np.arange(len(lengths))
    return Candidates(samples=numbers, lengths=np.array(lengths, np.int32), weight=weight)


views = st.lists(
    st.builds(
        candidates,
        st.lists(st.integers(1, 50), min_size=1, max_size=30),
        st.sampled_from([0.5, 1.0, 2.0, 2.5]),
    ),
    min_size=1,
    max_size=3,
)
sizes = {"batch_size": st.integers(1, 9), "micro_batch_size": st.integers(1, 5)}


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[Candidates], Mixture]:
    taken = [*draw(views), candidates([7, 7])]
    settings = {name: draw(size) for name, size in sizes.items()}
    settings |= {"window": draw(st.integers(1, 4)), "seed": draw(st.integers(0, 99)), "epochs": draw(st.integers(1, 3))}
    return taken, Mixture(taken, **settings)


@st.composite
def held_out_plans(draw: st.DrawFn) -> tuple[list[Candidates], HeldOutPlan]:
    taken = draw(views)
    settings = {name: draw(size) for name, size in sizes.items()}
    return taken, HeldOutPlan(taken, limit=draw(st.integers(1, 100)), **settings)


def plain(**changes: Any) -> Mixture:
    settings = {"batch_size": 8, "micro_batch_size": 4, "window": 2, "seed": 0, "epochs": 2}
    return Mixture([candidates(range(1, n)) for n in (15, 12, 15)], **(settings | changes))


def batch(plan: Plan, step: int) -> list[Pair]:
    return list(chain(*plan.micro_batches(step)))


def lengths_of(taken: list[Candidates], pairs: Sequence[Pair]) -> list[int]:
    return [int(taken[view].lengths[(sample - 2) // 2]) for view, sample in pairs]


@given(mixtures())
def test_an_epoch_takes_every_sample_as_often_as_its_weight_says(case: tuple[list[Candidates], Mixture]) -> None:
    taken, mixture = case
    for epoch in range(mixture.epochs):
        steps = range(epoch * mixture.epoch_steps, (epoch + 1) * mixture.epoch_steps)
        seen = Counter(pair for step in steps for pair in batch(mixture, step))
        assert sum(seen.values()) == mixture.epoch_samples
        for number, view in enumerate(taken):
            times = [seen.pop((number, int(sample)), 0) for sample in view.samples]
            assert sum(times) == round(len(view.samples) * view.weight)
            assert {int(view.weight), -int(-view.weight // 1)} >= set(times)
        assert not seen


@given(mixtures())
def test_all_batches_of_an_epoch_but_one_are_full(case: tuple[list[Candidates], Mixture]) -> None:
    _, mixture = case
    found = [len(batch(mixture, step)) for step in range(mixture.epoch_steps)]
    assert sorted(found)[1:] == [mixture.batch_size] * (mixture.epoch_steps - 1)
    assert min(found) > 0


@given(st.one_of(mixtures(), held_out_plans()))
def test_a_batch_is_cut_by_length_into_full_micro_batches_and_a_rest(case: tuple[list[Candidates], Plan]) -> None:
    taken, plan = case
    for step in range(plan.num_steps):
        lengths = lengths_of(taken, batch(plan, step))
        assert lengths == sorted(lengths)
        *full, last = map(len, plan.micro_batches(step))
        assert set(full) <= {plan.micro_batch_size}
        assert 0 < last <= plan.micro_batch_size


@given(st.one_of(mixtures(), held_out_plans()))
def test_at_any_world_size_the_ranks_share_the_same_micro_batches(case: tuple[list[Candidates], Plan]) -> None:
    _, plan = case
    for step in range(plan.num_steps):
        micro_batches = plan.micro_batches(step)
        for world_size in WORLDS:
            found: dict[int, list[Pair]] = {}
            for rank in range(world_size):
                share = plan.rank_batch(step, rank, world_size)
                assert [micro for micro, *_ in share] == sorted(micro for micro, *_ in share)
                for micro, view, sample in share:
                    assert micro % world_size == rank
                    found.setdefault(micro, []).append((view, sample))
            assert found == dict(enumerate(micro_batches))


@given(mixtures(), st.data())
def test_a_step_does_not_depend_on_the_steps_asked_for_before(
    case: tuple[list[Candidates], Mixture], data: st.DataObject
) -> None:
    _, mixture = case
    fresh = pickle.loads(pickle.dumps(mixture))
    whole = [mixture.micro_batches(step) for step in range(mixture.num_steps)]
    first = data.draw(st.integers(0, mixture.num_steps - 1))
    assert [fresh.micro_batches(step) for step in range(first, mixture.num_steps)] == whole[first:]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    mixture = plain()
    epochs = [[sorted(batch(mixture, epoch * 5 + step)) for step in range(5)] for epoch in range(2)]
    assert sorted(epochs[0]) != sorted(epochs[1])
    assert plain(seed=1).micro_batches(0) != mixture.micro_batches(0)


def test_steps_override_epochs_and_may_be_more_than_these_hold() -> None:
    mixture, longer = plain(epochs=3), plain(epochs=1, max_steps=13)
    assert (plain(max_steps=3).num_steps, longer.num_steps) == (3, 13)
    assert [longer.micro_batches(s) for s in range(13)] == [mixture.micro_batches(s) for s in range(13)]


def test_only_samples_of_one_window_are_sorted_together() -> None:
    lengths = list(range(1, 101))
    order = {"batch_size": 10, "micro_batch_size": 10, "seed": 0, "epochs": 1}
    whole = Mixture([candidates(lengths)], window=10, **order)
    spans = [lengths_of([candidates(lengths)], batch(whole, step)) for step in range(10)]
    assert [max(span) - min(span) for span in spans] == [9] * 10
    assert [min(span) for span in spans] != sorted(min(span) for span in spans), "batches come in a shuffled order"
    alone = Mixture([candidates(lengths)], window=1, **order)
    assert alone.padding() > whole.padding()


def test_a_plan_without_its_epoch_is_sent_to_whoever_reads() -> None:
    mixture = plain()
    size = len(pickle.dumps(mixture))
    mixture.micro_batches(0)
    assert len(pickle.dumps(mixture)) == size


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sample is left to train on"):
        Mixture([candidates([])], batch_size=1, micro_batch_size=1, window=1, seed=0, epochs=1)


def held(*counts: int, weights: Sequence[float] = (), limit: int = 20) -> HeldOutPlan:
    taken = [candidates([5] * n, weight) for n, weight in zip(counts, weights or [1.0] * len(counts), strict=True)]
    return HeldOutPlan(taken, limit=limit, batch_size=8, micro_batch_size=4)


def shares(plan: HeldOutPlan) -> Counter[int]:
    return Counter(view for step in range(plan.num_steps) for view, _ in batch(plan, step))


@given(held_out_plans(), st.integers(1, 100))
def test_validation_takes_no_sample_twice_and_no_more_than_asked_for(
    case: tuple[list[Candidates], HeldOutPlan], limit: int
) -> None:
    taken, _ = case
    plan = HeldOutPlan(taken, limit=limit, batch_size=8, micro_batch_size=4)
    seen = [pair for step in range(plan.num_steps) for pair in batch(plan, step)]
    assert len(set(seen)) == len(seen) == min(limit, sum(len(view.samples) for view in taken))
    assert {pair[1] for pair in seen} <= {int(sample) for view in taken for sample in view.samples}


def test_validation_shares_its_samples_out_as_training_does_and_leaves_no_view_out() -> None:
    assert shares(held(300, 100)) == {0: 15, 1: 5}
    assert shares(held(100, 100, weights=[3.0, 1.0])) == {0: 15, 1: 5}
    assert shares(held(1000, 1, 0)) == {0: 19, 1: 1}
    assert shares(held(2, 100, weights=[9.0, 0.001])) == {0: 2, 1: 18}


def test_the_samples_of_a_view_are_spread_over_it() -> None:
    plan = held(100, limit=4)
    assert sorted(sample for _, sample in batch(plan, 0)) == [2, 52, 102, 152]


def test_where_nothing_is_held_out_there_is_no_step() -> None:
    assert held(0, 0).num_steps == held().num_steps == 0
    assert held().padding() == 0.0


def without_grouping(plan: Mixture, taken: list[Candidates]) -> float:
    """The padding of micro-batches in a shuffled order."""
    rng = np.random.default_rng(0)
    lengths = np.array(lengths_of(taken, [pair for s in range(plan.epoch_steps) for pair in batch(plan, s)]))
    shuffled: npt.NDArray[np.int64] = rng.permutation(lengths)[: len(lengths) // 8 * 8].reshape(-1, 8)
    return float(1 - shuffled.sum() / (8 * shuffled.max(axis=1)).sum())


def real_samples(shared: Path) -> Iterator[tuple[Kind, list[Sample], float]]:
    """The captions of NExT-GPT's own sample as both views show them, and MosIT's demonstrations, each many times."""
    catalog = load_catalog()
    for name, path in catalog.find(shared / "data" / "nextgpt-sample").items():
        entry = catalog.datasets[name]
        samples = [sample for sample in READERS[entry.reader](entry, path) if isinstance(sample, Sample)]
        yield from ((view.kind, samples, 30.0) for view in entry.views.values())
    entry = catalog.datasets["mosit_instruction"]
    files = sorted((shared / "data" / "mosit-demonstrations").glob("*.txt"))
    yield "dialogue", [s for file in files for s in READERS[entry.reader](entry, file) if isinstance(s, Sample)], 20.0


def grouped(taken: list[Candidates]) -> Mixture:
    return Mixture(taken, batch_size=64, micro_batch_size=8, window=16, seed=0, epochs=1)


def test_lengths_with_a_long_tail_are_padded_by_no_more_than_a_twentieth() -> None:
    rng = np.random.default_rng(0)
    captions = np.clip(rng.lognormal(3.0, 0.5, 8000), 8, 512).astype(np.int32)
    dialogues = np.clip(rng.lognormal(5.0, 0.9, 4000), 30, 512).astype(np.int32)
    taken = [candidates(captions.tolist()), candidates(dialogues.tolist(), 1.5)]
    mixture = grouped(taken)
    assert mixture.padding() <= 0.05
    assert without_grouping(mixture, taken) > 0.4


def test_real_captions_and_dialogues_are_padded_by_no_more_than_a_twentieth(shared: Path) -> None:
    from model.core.dialogue import encode_dialogue
    from model.core.tokenizer import load_tokenizer, load_vocabulary
    from model.parts.config import load_preset

    tiny = load_preset("tiny")
    tokenizer, vocabulary = load_tokenizer(tiny), load_vocabulary(tiny)

    def length(sample: Sample) -> int:
        count = tiny.input_projection.num_input_tokens
        return len(encode_dialogue(sample.turns, tokenizer, vocabulary, count, 512).input_ids)

    taken = []
    for kind, samples, weight in real_samples(shared):
        lengths = [length(apply_view(kind, sample)) for sample in samples]
        taken.append(candidates(lengths, weight))
    mixture = grouped(taken)
    assert mixture.epoch_samples > 1000
    assert mixture.padding() <= 0.05
    assert without_grouping(mixture, taken) > 0.4


# --- Several captions of a medium ------------------------------------------------------------------------------------

MOST = 5


def worded(keys: Sequence[int], counts: Sequence[int], weight: float = 1.0) -> Candidates:
    """A medium with so many captions for each key; caption c of sample s is s * 5 + c."""
    numbers = [key * MOST + caption for key, count in zip(keys, counts, strict=True) for caption in range(count)]
    hashes = np.array([hash_key(f"key {number // MOST}") for number in numbers], np.uint64)
    lengths = np.array([1 + number % 7 for number in numbers], np.int32)
    return Candidates(samples=np.array(numbers, np.int64), lengths=lengths, weight=weight, key_hashes=hashes)


def one_caption(taken: Sequence[Candidates], epochs: int, seed: int = 0) -> Mixture:
    return Mixture(taken, batch_size=4, micro_batch_size=2, window=2, seed=seed, epochs=epochs)


def epoch_of(mixture: Mixture, epoch: int) -> list[Pair]:
    steps = range(epoch * mixture.epoch_steps, (epoch + 1) * mixture.epoch_steps)
    return [pair for step in steps for pair in batch(mixture, step)]


@given(st.lists(st.integers(1, MOST), min_size=1, max_size=20), st.integers(0, 2**40))
def test_an_epoch_takes_one_caption_of_each_medium_and_the_next_another(counts: list[int], seed: int) -> None:
    keys = range(len(counts))
    mixture = one_caption([worded(keys, counts)], 2 * MOST, seed)
    epochs = [{sample // MOST: sample % MOST for _, sample in epoch_of(mixture, e)} for e in range(2 * MOST)]
    for epoch in epochs:
        assert sorted(epoch) == list(keys)
    for key, count in enumerate(counts):
        said = [epoch[key] for epoch in epochs]
        assert all(sorted(said[start : start + count]) == list(range(count)) for start in range(len(said) - count))


def test_media_begin_with_captions_of_their_own_by_seed_and_key_whatever_else_there_is() -> None:
    def first(keys: Sequence[int], seed: int) -> dict[int, int]:
        mixture = one_caption([worded(keys, [MOST] * len(keys))], 1, seed)
        return {sample // MOST: sample % MOST for _, sample in epoch_of(mixture, 0)}

    whole = first(range(500), 0)
    assert min(Counter(whole.values()).values()) > 60
    assert first(range(0, 500, 3), 0) == {key: whole[key] for key in range(0, 500, 3)}
    other = first(range(500), 1)
    assert 60 < sum(whole[key] == other[key] for key in whole) < 140


def test_a_weight_takes_other_captions_of_a_medium_in_the_same_epoch() -> None:
    mixture = one_caption([worded(range(8), [4] * 8, weight=2.5)], 1)
    said: dict[int, set[int]] = {}
    for _, sample in epoch_of(mixture, 0):
        said.setdefault(sample // MOST, set()).add(sample % MOST)
    assert sorted(map(len, said.values())) == [2] * 4 + [3] * 4


@given(st.lists(st.integers(1, MOST), min_size=1, max_size=9), st.integers(0, 9), st.data())
def test_a_run_that_goes_on_takes_the_captions_it_would_have_taken(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    taken = [candidates([3, 4, 5]), worded(range(len(counts)), counts, weight=1.5)]
    mixture, fresh = one_caption(taken, 3, seed), one_caption(taken, 3, seed)
    first = data.draw(st.integers(0, mixture.num_steps - 1))
    whole = [mixture.micro_batches(step) for step in range(mixture.num_steps)]
    assert [fresh.micro_batches(step) for step in range(first, mixture.num_steps)] == whole[first:]


def test_a_view_with_single_captions_has_the_same_plan_whether_one_or_all_are_taken() -> None:
    one = worded(range(20), [1] * 20, weight=1.5)
    every = replace(one, key_hashes=None)
    plans = [one_caption([taken], 3) for taken in (one, every)]
    steps = range(plans[0].num_steps)
    assert [plans[0].micro_batches(s) for s in steps] == [plans[1].micro_batches(s) for s in steps]


weights_of_samples = st.lists(st.sampled_from([0.1, 0.25, 1 / 3, 1.0, 2.0, 2.5]), min_size=1, max_size=30)


def weighed(weights: Sequence[float], weight: float = 1.0) -> Candidates:
    return replace(candidates([1 + n % 5 for n in range(len(weights))], weight), weights=np.array(weights))


@given(weights_of_samples, st.sampled_from([1.0, 2.0]), st.integers(0, 99))
def test_each_sample_comes_as_often_as_its_own_weight_says(weights: list[float], weight: float, seed: int) -> None:
    taken = weighed(weights, weight)
    mixture = one_caption([candidates([7, 7]), taken], 3, seed)
    for epoch in range(3):
        seen = Counter(epoch_of(mixture, epoch))
        assert [seen.pop((0, sample)) for sample in (2, 4)] == [1, 1]
        times = [seen.pop((1, int(sample)), 0) for sample in taken.samples]
        assert not seen
        assert abs(sum(times) - weight * sum(weights)) <= 0.5 + 1e-4
        assert all(
            int(weight * own) <= count <= -int(-weight * own // 1) for own, count in zip(weights, times, strict=True)
        )


def test_parts_of_a_weight_are_paid_over_the_epochs() -> None:
    mixture = one_caption([weighed([0.25, 0.5, 1.75, 3.5] * 50)], 40)
    seen = Counter(pair for epoch in range(40) for pair in epoch_of(mixture, epoch))
    by_weight = [sum(seen[0, 2 + 2 * number] for number in range(place, 200, 4)) / (50 * 40) for place in range(4)]
    assert by_weight == pytest.approx([0.25, 0.5, 1.75, 3.5], abs=0.05)


@given(weights_of_samples, st.integers(0, 9), st.sampled_from(WORLDS), st.data())
def test_a_weighed_run_that_goes_on_with_other_workers_takes_what_it_would_have_taken(
    weights: list[float], seed: int, world_size: int, data: st.DataObject
) -> None:
    taken = [candidates([3, 4, 5]), weighed(weights)]
    mixture, fresh = one_caption(taken, 3, seed), pickle.loads(pickle.dumps(one_caption(taken, 3, seed)))
    first = data.draw(st.integers(0, mixture.num_steps - 1))
    for step in range(first, mixture.num_steps):
        shares = [fresh.rank_batch(step, rank, world_size) for rank in range(world_size)]
        assert sorted(pair for share in shares for _, *pair in share) == sorted(map(list, batch(mixture, step)))


def test_captions_of_a_medium_with_a_weight_of_its_own_take_turns() -> None:
    taken = replace(worded(range(3), [4] * 3), weights=np.repeat([0.0, 1.0, 2.0], 4))
    mixture = one_caption([taken], 4)
    epochs = [[sample for _, sample in epoch_of(mixture, epoch)] for epoch in range(4)]
    assert [sorted(sample // MOST for sample in epoch) for epoch in epochs] == [[1, 2, 2]] * 4
    said = [Counter(sample % MOST for epoch in epochs for sample in epoch if sample // MOST == key) for key in (1, 2)]
    assert said == [Counter({0: 1, 1: 1, 2: 1, 3: 1}), Counter({0: 2, 1: 2, 2: 2, 3: 2})]


def test_weights_of_zero_leave_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="no sample is left to train on"):
        one_caption([weighed([0.0, 0.0])], 1)


def test_a_view_of_heavy_samples_has_its_share_of_what_is_held_out() -> None:
    plan = HeldOutPlan([weighed([3.0] * 100), weighed([1.0] * 100)], limit=20, batch_size=4, micro_batch_size=2)
    assert Counter(view for step in range(plan.num_steps) for view, _ in batch(plan, step)) == {0: 15, 1: 5}


def test_batches_are_by_the_length_of_the_caption_that_is_taken() -> None:
    mixture = one_caption([worded(range(40), [MOST] * 40)], 2)
    for step in range(mixture.num_steps):
        lengths = [1 + sample % 7 for _, sample in batch(mixture, step)]
        assert lengths == sorted(lengths)


def test_of_each_medium_held_out_the_first_caption_is_taken() -> None:
    plan = HeldOutPlan([worded(range(6), [3] * 6)], limit=100, batch_size=4, micro_batch_size=2)
    assert sorted(chain(*(batch(plan, step) for step in range(plan.num_steps)))) == [(0, 5 * key) for key in range(6)]


def test_numbers_beyond_32_bits_are_kept() -> None:
    far = Candidates(samples=np.array([3, 2**33]), lengths=np.ones(2, np.int32))
    mixture = Mixture([far], batch_size=2, micro_batch_size=2, window=1, seed=0, epochs=1)
    assert sorted(batch(mixture, 0)) == [(0, 3), (0, 2**33)]
