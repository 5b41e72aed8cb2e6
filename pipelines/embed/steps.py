"""The steps between shards and packs, each from a row to rows: cut a shard, prepare a unit, encode it, keep it.

Rows hold plain values and arrays, which Ray's object store hands on without copying.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.embed.encoding import EmbedTask, UnitEncoder, join_inputs, split_inputs
from pipelines.embed.packs import is_whole, write_pack
from pipelines.embed.plan import EncodingPlan, ShardItems
from pipelines.embed.sidecar_shards import SidecarWork
from pipelines.embed.units import Found, Unit, cut, find_items, prepare_unit, unit_name
from pipelines.ray_steps import count
from pipelines.sample import Item, Modality
from pipelines.storage.random_access import Range

Row = dict[str, Any]
Tasks = Mapping[str, EmbedTask]
_NOTHING = np.zeros(1, np.uint8)
# What a row says of its unit at every step.
_SAYS = ("sidecar", "shard", "name", "places", "kept")


def shard_row(plan: EncodingPlan, number: int, sidecar: int, shard: int, items: ShardItems) -> Row | None:
    """What is to be encoded of a shard, the `number`-th of the plan; None where there is nothing."""
    places, is_needed = plan.firsts(number)
    if not is_needed.any():
        return None
    arrays = {"counts": items.counts, "places": places, "needed": places[is_needed]}
    return {"sidecar": sidecar, "shard": shard, **{name: array.tobytes() for name, array in arrays.items()}}


def cut_shard(row: Row, works: Sequence[SidecarWork], tasks: Tasks) -> Iterator[Row]:
    """The units of a shard that hold something that is needed, `kept` where an earlier run made their pack."""
    work, shard = works[row["sidecar"]], row["shard"]
    counts, places, needed = (np.frombuffer(row[name], np.int32) for name in ("counts", "places", "needed"))
    wanted = set(needed.tolist())
    for unit in cut(find_items(work, shard, counts, places), tasks[work.kind]):
        if any(one.place in wanted for one in unit):
            name = unit_name(work, shard, unit)
            numbers = np.array([one.place for one in unit], np.int32).tobytes()
            kept = is_whole(work.pack(name))
            told = {"name": name, "places": numbers, "kept": kept, "unit": _to_json(unit)}
            yield {"sidecar": row["sidecar"], "shard": shard, **told}


def prepare_row(row: Row, works: Sequence[SidecarWork], tasks: Tasks) -> Row:
    """Reads, decodes and preprocesses a unit."""
    said, work = {name: row[name] for name in _SAYS}, works[row["sidecar"]]
    if row["kept"]:
        return said | {"modality": "", "header": "", "data": _NOTHING, "failed": ""}
    unit = _from_json(row["unit"], work.source(row["shard"]))
    inputs, failed = prepare_unit(unit, tasks[work.kind])
    header, data = join_inputs(inputs)
    modality = unit[0].item.modality.value
    return said | {"modality": modality, "header": header, "data": data if inputs else _NOTHING} | _failures(failed)


class EncodeRow:
    """The actor: encodes what a row holds."""

    def __init__(self, works: Sequence[SidecarWork], tasks: Tasks) -> None:
        self._works, self._encode = works, UnitEncoder(list(tasks.values()))

    def __call__(self, row: Row) -> Row:
        """The embeddings of a unit, in float32."""
        said, work = {name: row[name] for name in _SAYS}, self._works[row["sidecar"]]
        nothing = {"made": False, "embeddings": _NOTHING, "lengths": b"", "failed": row["failed"]}
        inputs = [] if row["kept"] else split_inputs(row["header"], row["data"])
        if not inputs:
            return said | nothing
        failed = _failed(row)
        numbers = [number for number in range(_size(row)) if number not in failed]
        made, more = self._encode(work.kind, work.encoder_id, Modality(row["modality"]), inputs)
        failed |= {numbers[place]: reason for place, reason in more.items()}
        if made is None:
            return said | nothing | _failures(failed)
        embeddings, lengths = made
        found = {"made": True, "embeddings": embeddings, "lengths": lengths.astype(np.int32).tobytes()}
        return said | found | _failures(failed)


def write_row(row: Row, works: Sequence[SidecarWork], names: Mapping[str, str]) -> Row:
    """Keeps a unit as a pack; `names` are those of the encoders, by kind."""
    work = works[row["sidecar"]]
    if not row["kept"]:
        lengths = np.frombuffer(row["lengths"], np.int32)
        embeddings = row["embeddings"] if row["made"] else None
        path = work.pack(row["name"])
        write_pack(path, _size(row), embeddings, lengths, _failed(row), work.dtype, names[work.kind])
        count(work.directory.name, items=_size(row))
    return {name: row[name] for name in ("sidecar", "shard", "name", "places")}


def _size(row: Row) -> int:
    return len(row["places"]) // np.dtype(np.int32).itemsize


def _failures(failed: Mapping[int, str]) -> Row:
    return {"failed": json.dumps(list(failed.items())) if failed else ""}


def _failed(row: Row) -> dict[int, str]:
    return dict(json.loads(row["failed"] or "[]"))


def _to_json(unit: Unit) -> str:
    told = [
        [one.place, one.sample.offset, one.sample.length, one.item.modality.value, one.item.name, one.item.caption]
        for one in unit
    ]
    return json.dumps(told)


def _from_json(text: str, tar: Path) -> Unit:
    return [
        Found(
            place=place,
            sample=Range(tar, offset, length),
            item=Item(modality=Modality(modality), name=name, caption=caption),
        )
        for place, offset, length, modality, name, caption in json.loads(text)
    ]
