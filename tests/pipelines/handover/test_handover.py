"""The hand-over: however many workers read and whatever their number, each is given what is planned, in its order."""

import sys
import time
from itertools import chain
from typing import Any

import dataset_cases
import numpy as np
import pytest
import ray
import ray.cloudpickle
from dataset_cases import DIALOGUE_VIEWS, pair, talk, task, write_dataset, write_sidecar

from pipelines.handover import handover
from pipelines.handover.handover import PlannedDataConfig, step_dataset
from pipelines.handover.mixture import Candidates, HeldOutPlan, Mixture, Plan
from pipelines.handover.stage_samples import PlannedView, SampleReader, plan_view
from pipelines.storage.sidecars import ENCODER

ray.cloudpickle.register_pickle_by_value(dataset_cases)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

Rows = dict[int, list[dict[str, Any]]]


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


def candidates_of(views: list[PlannedView]) -> list[Candidates]:
    """All samples of the views, with lengths of any kind."""
    counts = [view.manifest.samples for view in views]
    return [
        Candidates(samples=np.arange(count), lengths=1 + np.arange(count) * 7 % 5, weight=view.weight)
        for count, view in zip(counts, views, strict=True)
    ]


def mixture_of(views: list[PlannedView]) -> Mixture:
    return Mixture(candidates_of(views), batch_size=6, micro_batch_size=2, window=2, seed=3, epochs=2)


def held_out_of(views: list[PlannedView]) -> HeldOutPlan:
    return HeldOutPlan(candidates_of(views), limit=7, batch_size=4, micro_batch_size=2)


def by_step(shard: Any) -> Rows:
    """What a rank is given of a dataset, by step, in the order it comes."""
    rows: Rows = {}
    for row in shard.iter_rows():
        assert not rows or row["step"] >= max(rows), "steps come in order"
        rows.setdefault(row.pop("step"), []).append(row)
    return rows


def handed_over(views: list[PlannedView], world_size: int, first: int = 0) -> list[Rows]:
    """What each rank is given to train on."""
    mixture = mixture_of(views)
    config = PlannedDataConfig({"train": mixture}, views)
    steps = step_dataset(first, mixture.num_steps)
    return [by_step(shard["train"]) for shard in config.configure({"train": steps}, world_size)]


def planned(plan: Plan, views: list[PlannedView]) -> Rows:
    """What a plan says, read without Ray."""
    reader = SampleReader(views=views)
    return {
        step: [
            {"micro": micro, **reader.read(*pair)}
            for micro, pairs in enumerate(plan.micro_batches(step))
            for pair in pairs
        ]
        for step in range(plan.num_steps)
    }


@pytest.fixture(scope="module")
def alone(local_ray: None, views: list[PlannedView]) -> Rows:
    """What a single rank is given."""
    (rows,) = handed_over(views, 1)
    return rows


@pytest.mark.ray
def test_a_single_rank_is_given_the_plan_in_its_order(alone: Rows, views: list[PlannedView]) -> None:
    assert alone == planned(mixture_of(views), views)


@pytest.mark.ray
def test_the_loop_behind_the_rows_rests_each_time_round(
    local_ray: None, views: list[PlannedView], monkeypatch: pytest.MonkeyPatch
) -> None:
    rest, rests = handover.Breather.on_execution_step, list[float]()

    def timed(self: handover.Breather, executor: Any) -> None:
        started = time.monotonic()
        rest(self, executor)
        rests.append(time.monotonic() - started)

    monkeypatch.setattr(handover.Breather, "on_execution_step", timed)
    handed_over(views, 1)
    assert rests
    assert min(rests) >= 0.9 * handover.BREATH, "a sleep may end late, never early"


@pytest.mark.ray
def test_an_epoch_drops_nothing_and_repeats_nothing_but_by_weight(alone: Rows, views: list[PlannedView]) -> None:
    mixture = mixture_of(views)
    expected = [f"pictures_enc/k{n}" for n in range(7)] + [f"pictures_dec/k{n}" for n in range(7)]
    expected += [f"talks/t{n}" for n in range(4)] * 2
    for epoch in range(mixture.epochs):
        steps = range(epoch * mixture.epoch_steps, (epoch + 1) * mixture.epoch_steps)
        assert sorted(str(row["key"]) for step in steps for row in alone[step]) == sorted(expected)


@pytest.mark.ray
@pytest.mark.parametrize(("world_size", "steps_per_block"), [(1, 1), (2, 3), (4, 1000)])
def test_any_number_of_ranks_and_blocks_makes_the_same_micro_batches(
    alone: Rows, views: list[PlannedView], world_size: int, steps_per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "STEPS_PER_BLOCK", steps_per_block)
    ranks = handed_over(views, world_size)
    # A global batch has three micro-batches at the most: of four ranks, one is given nothing.
    assert [bool(rank) for rank in ranks] == [True, True, True, False][:world_size]
    for step, rows in alone.items():
        shares = [rank.get(step, []) for rank in ranks]
        for rank, share in enumerate(shares):
            assert share == [row for row in rows if row["micro"] % world_size == rank]
        assert sorted(chain(*shares), key=lambda row: row["micro"]) == rows


@pytest.mark.ray
@pytest.mark.parametrize("first", [5, 7, 8])
def test_a_run_that_begins_later_is_given_the_steps_that_are_left(
    alone: Rows, views: list[PlannedView], first: int
) -> None:
    (rest,) = handed_over(views, 1, first)
    assert rest == {step: rows for step, rows in alone.items() if step >= first}


@pytest.mark.ray
def test_workers_that_hold_the_cores_validate_while_they_train(alone: Rows, views: list[PlannedView]) -> None:
    plans = {"train": mixture_of(views), "validation": held_out_of(views)}
    config = PlannedDataConfig(plans, views)
    # As Ray Train does, a dataset at a time.
    parts = [config.configure({name: step_dataset(0, plan.num_steps)}, 2) for name, plan in plans.items()]
    shards = [train | validation for train, validation in zip(*parts, strict=True)]

    @ray.remote(num_cpus=0.9)
    def work(shard: Any) -> tuple[list[dict[str, Any]], list[Rows]]:
        rows = iter(shard["train"].iter_rows())
        first = next(rows)
        validations = [by_step(shard["validation"]) for _ in range(2)]
        return [first, *rows], validations

    found = ray.get([work.remote(shard) for shard in shards], timeout=120)
    trained = sorted(chain(*(rows for rows, _ in found)), key=lambda row: (row["step"], row["micro"]))
    assert trained == [{"step": step, **row} for step, rows in alone.items() for row in rows]
    expected = planned(plans["validation"], views)
    for number in range(2):
        ranks = [validations[number] for _, validations in found]
        merged = {step: [row for rank in ranks for row in rank.get(step, [])] for step in expected}
        assert merged == {step: sorted(rows, key=lambda row: row["micro"] % 2) for step, rows in expected.items()}
