"""The command that has a model write new captions: with an account of every sample, and again where it stopped."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from dataset_cases import pair, talk, write_dataset

from jobs import embed, recaption, train_stage
from pipelines.curate.columns import find_columns
from pipelines.sample import Media, Modality
from tests.conftest import Here

BROKEN = "ZZZZ"


class Handler(BaseHTTPRequestHandler):
    """Tells how long a picture's URL is; refuses one that begins with BROKEN."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        status = 400 if f"base64,{BROKEN}" in url else 200
        text = json.dumps({"choices": [{"message": {"content": f"a picture of {len(url)}"}}]})
        self.send_response(status)
        self.end_headers()
        self.wfile.write((text if status == 200 else "no picture").encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/v1"
    found.shutdown()
    found.server_close()


@pytest.mark.ray
def test_every_sample_is_captioned_rejected_or_no_pair_and_a_rerun_does_what_is_missing(
    here: Here, tmp_path: Path, server: str
) -> None:
    broken = Media(modality=Modality.IMAGE, data=b"\x65\x96\x59\x65\x96\x59", format="png")
    pictures = [pair(f"k{n}", shade=40 * n) for n in range(3)]
    write_dataset(tmp_path / "pictures", [*pictures, replace(pair("k3"), media={"png": broken})], 2)
    write_dataset(tmp_path / "talks", [talk("a", ["x"])], 2, {"talks": "dialogue"})
    command = ("--shards", str(tmp_path), "--api", server, "--model", "tiny")
    first = here(recaption.main, *command)
    assert first.returncode == 1, "a sample was refused"
    assert (
        "pictures: 4 in = 3 captioned + 1 rejected + 0 that are no pairs (2 of 2 shards captioned now)" in first.stdout
    )
    assert "all: 5 in = 3 captioned + 1 rejected + 1 that are no pairs; by tiny, asked 'Describe this" in first.stdout
    assert "(pictures/k3: refused by the server, which answers 400: no picture)" in first.stderr
    assert "Traceback" not in first.stderr
    manifest = find_columns(tmp_path / "pictures")["recaption"]
    assert manifest.about == {"model": "tiny", "prompt": "Describe this in one sentence."}
    folder = tmp_path / "pictures" / "columns" / manifest.id
    rows = pq.read_table(folder / "00000.parquet").to_pylist()
    assert [(row["key"], row["new_caption"][:12], row["reason"]) for row in rows] == [
        ("k0", "a picture of", None),
        ("k1", "a picture of", None),
    ]
    before = (folder / "00001.parquet").read_bytes()
    (folder / "00001.parquet").unlink()
    again = here(recaption.main, *command)
    assert "(1 of 2 shards captioned now)" in again.stdout
    assert (folder / "00001.parquet").read_bytes() == before
    gone = here(recaption.main, "--shards", str(tmp_path), "--api", "http://127.0.0.1:9/v1", "--model", "other")
    assert gone.returncode == 1
    assert "http://127.0.0.1:9/v1: cannot be reached: " in gone.stderr
    assert "Traceback" not in gone.stderr


@pytest.mark.ray
def test_new_captions_are_embedded_and_trained_on(here: Here, tmp_path: Path, server: str) -> None:
    shards, run = str(tmp_path / "shards"), str(tmp_path / "run")
    pictures = [pair(f"k{n}", shade=40 * n) for n in range(4)]
    folder = tmp_path / "shards" / "pictures"
    replace(write_dataset(folder, pictures, 2, {"pictures": "generate"}), stages={"pictures": 2}).write(folder)
    assert here(recaption.main, "--shards", shards, "--api", server, "--model", "tiny").returncode == 0
    assert here(embed.main, "--shards", shards, "--preset", "tiny", "--which-captions", "new").returncode == 0
    command = ("--stage", "2", "--shards", shards, "--out", run, "--preset", "tiny", "captions=new")
    trained = here(train_stage.main, *command, "max_steps=1", "batch_size=2", "micro_batch_size=2", "workers=1")
    assert trained.returncode == 0, trained.stderr
    assert "checkpoint-000001" in trained.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "give --checkpoint RUN, or --api URL with --model NAME"),
        (["--checkpoint", "a", "--api", "http://127.0.0.1:1/v1", "--model", "m"], "give --checkpoint RUN, or --api"),
        (["--api", "http://127.0.0.1:1/v1"], "--api and --model belong together"),
        (["--api", "nowhere", "--model", "m"], "--api: not a URL such as http://127.0.0.1:8000/v1"),
        (["--checkpoint", "a", "--prompt", " "], "--prompt: is empty"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "pictures", [pair("k0")], 2)
    with pytest.raises(SystemExit) as end:
        recaption.cli.run(lambda _: recaption.main(["--shards", str(tmp_path), *options]))
    assert end.value.code == 2
    assert f"error: {told}" in capsys.readouterr().err
