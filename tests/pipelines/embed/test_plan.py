"""Plans: each distinct item is made once, and every item of an unfinished shard is led to what equals it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.embed.plan import EncodingPlan, ShardItems
from pipelines.storage.sidecars import IDENTITY_BYTES

# Few values, zeros among them: hashes may begin, or end, with zero bytes.
HASHES = st.sampled_from([bytes(IDENTITY_BYTES), b"a" + bytes(15), bytes(15) + b"a", b"ab" * 8, b"ba" * 8])
SHARDS = st.lists(st.tuples(st.lists(HASHES, max_size=6), st.booleans()), max_size=6)
Shards = list[tuple[list[bytes], bool]]


def items(hashes: list[bytes]) -> ShardItems:
    identities = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, IDENTITY_BYTES)
    return ShardItems(counts=np.ones(len(hashes), np.int32), identities=identities)


def plan_of(shards: Shards) -> EncodingPlan:
    return EncodingPlan([items(hashes) for hashes, _ in shards], [finished for _, finished in shards])


@given(SHARDS)
def test_what_no_finished_shard_holds_is_made_once_where_it_first_stands(shards: Shards) -> None:
    plan = plan_of(shards)
    made = []
    for number, (hashes, _) in enumerate(shards):
        places, is_needed = plan.firsts(number)
        made += [hashes[place] for place in places[is_needed]]
    held = {one for hashes, finished in shards if finished for one in hashes}
    assert made == list(dict.fromkeys(one for hashes, _ in shards for one in hashes if one not in held))
    assert plan.total == len(made)


@given(SHARDS, st.lists(st.booleans(), min_size=6, max_size=6))
def test_what_goes_together_does_not_depend_on_what_is_finished(shards: Shards, finished: list[bool]) -> None:
    others = [(hashes, is_done) for (hashes, _), is_done in zip(shards, finished, strict=False)]
    for number in range(len(shards)):
        np.testing.assert_array_equal(plan_of(shards).firsts(number)[0], plan_of(others).firsts(number)[0])


@given(SHARDS)
def test_every_item_of_an_unfinished_shard_is_led_to_what_equals_it(shards: Shards) -> None:
    plan, packs = plan_of(shards), list[list[bytes]]()
    for number, (hashes, _) in enumerate(shards):
        places, is_needed = plan.firsts(number)
        if is_needed.any():
            reordered = places[::-1]
            assert plan.keep(number, reordered, len(packs)) == is_needed.sum()
            assert plan.keep(number, reordered, len(packs)) == 0, "what is kept again is not new"
            packs.append([hashes[place] for place in reordered])
    for number, (hashes, finished) in enumerate(shards):
        if finished:
            continue
        sources = plan.sources(number)
        for one, slot in zip(hashes, sources.slots, strict=True):
            file, position = sources.files[slot], sources.positions[slot]
            assert (packs[file] if file >= 0 else shards[-1 - file][0])[position] == one
            assert file >= 0 or shards[-1 - file][1]
