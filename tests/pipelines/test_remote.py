"""Sources and outputs in an object store: an S3 server of the tests on loopback, and the bytes of a local disk."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import dataset_cases
import pytest
import ray.cloudpickle
from dataset_cases import picture, task, tree
from moto.server import ThreadedMotoServer
from upath import UPath

from pipelines.embed.embedding import Pool, embed
from pipelines.handover.stage_samples import SampleReader, plan_view
from pipelines.inspect.verify import verify
from pipelines.prepare.preprocess import prepare
from pipelines.prepare.staging import Source
from pipelines.prepare.state import finished
from pipelines.sources.catalog import load_catalog
from pipelines.storage.files import is_local, stamp, to_path
from pipelines.storage.shards import iterate_samples, list_datasets

ray.cloudpickle.register_pickle_by_value(dataset_cases)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Path]:
    """An empty bucket; the address and the keys travel with the path, as they would in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "test", "secret": "test", "endpoint_url": f"http://{host}:{port}", "use_listings_cache": False}
    path = UPath("s3://shards-test", **options)
    path.mkdir()
    yield cast(Path, path)
    server.stop()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caption pairs of NExT-GPT's format: seven good ones and one whose picture is missing."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "T-X_pair_data" / "cc3m"
    (folder / "images").mkdir(parents=True)
    rows = [{"id": f"k{n}", "caption": f"number {n % 3}", "image_name": f"{n}.png"} for n in range(8)]
    (folder / "cc3m.json").write_text(json.dumps(rows))
    for number in range(7):
        (folder / "images" / f"{number}.png").write_bytes(picture(number * 20).data)
    return root


def source(root: Path, out: Path) -> Source:
    catalog = load_catalog()
    path = catalog.find(root)["cc3m"]
    entry = catalog.datasets["cc3m"]
    media = catalog.media_folder(entry, root, path)
    return Source(entry=entry, path=path, media=media, directory=out / "cc3m", samples_per_shard=3)


def upload(folder: Path, target: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())


def remote_tree(folder: Path, copy: Path) -> dict[str, str]:
    for path in folder.rglob("*"):
        if path.is_file():
            target = copy / str(path).removeprefix(str(folder)).strip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tree(copy)


@pytest.mark.ray
def test_shards_and_embeddings_in_s3_are_those_on_a_local_disk(
    local_ray: None, bucket: Path, local: Path, tmp_path: Path
) -> None:
    upload(local, bucket / "data")
    here, there = source(local, tmp_path / "shards"), source(bucket / "data", bucket / "shards")
    for work in (here, there):
        assert prepare(work).manifest.samples == 7
        embed([work.directory], [task("image")], Pool(actors=1, num_cpus=1, num_gpus=0))
    ours = {name: digest for name, digest in tree(tmp_path / "shards").items() if not Path(name).name.startswith(".")}
    theirs = remote_tree(bucket / "shards", tmp_path / "copy")
    assert {name: digest for name, digest in theirs.items() if not Path(name).name.startswith(".")} == ours

    assert list(list_datasets(bucket / "shards")) == ["cc3m"]
    assert list(verify(there.directory)) == []
    assert [s.key for tar in sorted(there.directory.glob("*.tar")) for s in iterate_samples(tar)] == [
        f"k{n}" for n in range(7)
    ]
    reader = SampleReader(views=[plan_view("cc3m_dec", "generate", there.directory, 1.0, {})])
    assert reader.read(0, 4)["key"] == "cc3m_dec/k4"

    assert finished(there) is not None
    before = stamp(there.directory / "00001.tar")
    (bucket / "data" / "T-X_pair_data/cc3m/images/5.png").write_bytes(picture(255).data)
    assert finished(there) is None, "a changed object is noticed"
    assert prepare(there).shards == 1
    assert stamp(there.directory / "00001.tar") != before


def test_a_path_is_local_or_a_url() -> None:
    assert is_local(to_path("some/folder"))
    assert to_path("file:///some/folder") == Path("/some/folder")
    assert not is_local(to_path("memory://some/folder"))
    with pytest.raises(ValueError, match=r"nosuch://bucket: cannot be opened: .*nosuch"):
        to_path("nosuch://bucket")
