"""Ownership: each distinct item is encoded by one shard, the first that has it, and every item knows by which."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.storage.ownership import IDENTITY_BYTES, ShardItems, ShardPlan, assign

# Few values, zeros among them: hashes may begin, or end, with zero bytes.
HASHES = st.sampled_from([bytes(IDENTITY_BYTES), b"a" + bytes(15), bytes(15) + b"a", b"ab" * 8, b"ba" * 8])
SHARDS = st.lists(st.lists(HASHES, max_size=6), max_size=6)


def items(hashes: list[bytes]) -> ShardItems:
    identities = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, IDENTITY_BYTES)
    return ShardItems(counts=np.ones(len(hashes), np.int32), identities=identities)


def plans_of(shards: list[list[bytes]]) -> list[ShardPlan]:
    return assign([items(hashes) for hashes in shards])


@given(SHARDS)
def test_each_distinct_item_is_encoded_once_by_the_first_shard_that_has_it(shards: list[list[bytes]]) -> None:
    encoded = [shards[plan.shard][place] for plan in plans_of(shards) for place in plan.owned]
    assert encoded == list(dict.fromkeys(one for hashes in shards for one in hashes))


@given(SHARDS)
def test_every_item_is_led_to_what_equals_it(shards: list[list[bytes]]) -> None:
    plans = plans_of(shards)
    for plan, hashes in zip(plans, shards, strict=True):
        for one, slot in zip(hashes, plan.slots, strict=True):
            owner, place, rank = plan.owners[slot], plan.places[slot], plan.ranks[slot]
            assert shards[owner][place] == one
            assert plans[owner].owned[rank] == place


@given(SHARDS, SHARDS)
def test_later_shards_change_nothing_for_earlier_ones(shards: list[list[bytes]], later: list[list[bytes]]) -> None:
    for one, other in zip(plans_of(shards), plans_of(shards + later), strict=False):
        for name in ("slots", "owners", "places", "ranks"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.borrows == other.borrows == any(owner < one.shard for owner in one.owners)


@given(SHARDS)
def test_a_plan_survives_the_way_through_a_row(shards: list[list[bytes]]) -> None:
    for plan in plans_of(shards):
        read = ShardPlan.from_row(plan.to_row())
        assert read.to_row() == plan.to_row()
        np.testing.assert_array_equal(read.items.identities, plan.items.identities)
        np.testing.assert_array_equal(read.owned, plan.owned)
