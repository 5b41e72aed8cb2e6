"""The hand-over: whatever the number of workers, each step trains on what the mixture planned, in its order."""

import sys

import dataset_cases
import pytest
import ray.cloudpickle
from dataset_cases import DIALOGUE_VIEWS, pair, talk, task, write_dataset, write_sidecar

from pipelines.handover import PlannedDataConfig, step_dataset
from pipelines.mixture import Mixture
from pipelines.planned import PlannedView, SampleReader, plan_view
from pipelines.sidecars import ENCODER

ray.cloudpickle.register_pickle_by_value(dataset_cases)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

Rows = dict[int, list[dict[str, object]]]


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> list[PlannedView]:
    """Seven pairs as both views see them, and four dialogues."""
    root = tmp_path_factory.mktemp("shards")
    write_dataset(root / "pictures", [pair(f"k{number}", shade=number) for number in range(7)], 3)
    write_dataset(root / "talks", [talk(f"t{number}", ["x"] * number) for number in range(4)], 3, DIALOGUE_VIEWS)
    for name, kind in (("pictures", "image"), ("pictures", ENCODER), ("talks", "image")):
        write_sidecar(root / name, task(kind, encoder_id=f"{kind}-0"))
    return [
        plan_view("pictures_enc", "caption", root / "pictures", 1.0, {}),
        plan_view("pictures_dec", "generate", root / "pictures", 1.0, {}),
        plan_view("talks", "dialogue", root / "talks", 2.0, {}),
    ]


def mixture_of(views: list[PlannedView]) -> Mixture:
    return Mixture(
        counts=[view.manifest.samples for view in views],
        weights=[view.weight for view in views],
        batch_size=4,
        epochs=2,
        seed=3,
    )


def handed_over(views: list[PlannedView], world_size: int, first: int = 0) -> list[Rows]:
    """What each rank is given, by step, in the order it comes."""
    mixture = mixture_of(views)
    config = PlannedDataConfig(mixture, views)
    shards = config.configure({"train": step_dataset(first, mixture.num_steps)}, world_size)
    ranks = []
    for shard in shards:
        rows: Rows = {}
        for row in shard["train"].iter_rows():
            assert not rows or row["step"] >= max(rows), "steps come in order"
            rows.setdefault(row.pop("step"), []).append(row)
        ranks.append(rows)
    return ranks


@pytest.fixture(scope="module")
def alone(local_ray: None, views: list[PlannedView]) -> Rows:
    """What a single rank is given."""
    (rows,) = handed_over(views, 1)
    return rows


@pytest.mark.ray
def test_a_single_rank_is_given_the_plan_in_its_order(alone: Rows, views: list[PlannedView]) -> None:
    mixture, reader = mixture_of(views), SampleReader(views=views)
    assert list(alone) == list(range(mixture.num_steps))
    for step, rows in alone.items():
        assert rows == [reader.read(view, sample) for view, sample in mixture.batch(step)]


@pytest.mark.ray
def test_an_epoch_drops_nothing_and_repeats_nothing_but_by_weight(alone: Rows, views: list[PlannedView]) -> None:
    mixture = mixture_of(views)
    expected = [f"pictures_enc/k{n}" for n in range(7)] + [f"pictures_dec/k{n}" for n in range(7)]
    expected += [f"talks/t{n}" for n in range(4)] * 2
    for epoch in range(mixture.epochs):
        steps = range(epoch * mixture.epoch_steps, (epoch + 1) * mixture.epoch_steps)
        assert sorted(str(row["key"]) for step in steps for row in alone[step]) == sorted(expected)


@pytest.mark.ray
def test_two_ranks_are_given_by_step_what_one_is(alone: Rows, views: list[PlannedView]) -> None:
    ranks = handed_over(views, 2)
    for step, rows in alone.items():
        shares = [rank.get(step, []) for rank in ranks]
        assert shares == [rows[0::2], rows[1::2]]


@pytest.mark.ray
def test_a_run_that_begins_later_is_given_the_same_steps(alone: Rows, views: list[PlannedView]) -> None:
    (rest,) = handed_over(views, 1, first=5)
    assert rest == {step: rows for step, rows in alone.items() if step >= 5}


@pytest.mark.ray
def test_a_rank_without_a_sample_at_a_step_is_given_none(local_ray: None, views: list[PlannedView]) -> None:
    last = views[2:]
    mixture = mixture_of(last)
    ranks = handed_over(last, 5)
    for step in range(mixture.num_steps):
        assert [len(rank.get(step, [])) for rank in ranks] == [1, 1, 1, 1, 0]
