"""A file of conversations answered on Ray Data: nothing is lost, nothing is answered twice, nothing depends on luck."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from jobs import generate
from jobs.common.cli import UsageError
from jobs.replies import batch_replies
from jobs.replies.batch_replies import MEDIA, REJECTS, REPLIES
from jobs.replies.respond import ReplySettings
from model.checkpoints.checkpoint import save_pretrained
from model.checkpoints.description import SHIPPED
from model.core.nextgpt import NextGPT
from model.inference.query import Response, Sampling
from model.parts.config import load_preset
from pipelines.media.codecs import decode, load
from pipelines.prepare.staging import Chunk
from pipelines.sample import Item, Modality


def chat(*content: Any) -> str:
    return json.dumps({"messages": [{"role": "user", "content": list(content)}]})


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


GOOD = [
    chat(text("show me a dog")),
    chat({"type": "image", "image": "pictures/red.png"}, text("What is this?")),
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": [text("Here"), {"type": "image", "caption": "a dog"}]},
                {"role": "user", "content": "Another one"},
            ]
        }
    ),
]
BAD = {
    chat({"type": "image", "image": "pictures/gone.png"}, text("What is this?")): "missing file",
    chat({"type": "image", "image": "pictures/broken.png"}, text("What is this?")): "unreadable",
    chat({"type": "image", "image": "../red.png"}, text("What is this?")): "path outside the root",
    json.dumps(
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}
    ): "bad conversation: the last turn is the assistant's",
    '{"messages": [': "bad JSON",
    chat(text("long " * 1000)): "the last turn takes",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint-1"
    save_pretrained(NextGPT.from_config(load_preset("tiny")), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    (folder / "pictures").mkdir()
    PIL.Image.new("RGB", (32, 32), "red").save(folder / "pictures" / "red.png")
    (folder / "pictures" / "broken.png").write_bytes(b"\x89PNG broken")
    PIL.Image.new("RGB", (32, 32), "red").save(folder.parent / "red.png")
    (folder / "chats.jsonl").write_text("\n".join([*GOOD, *BAD]) + "\n")
    return folder


def run(checkpoint: Path, conversations: Path, out: Path, *options: str) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--conversations", str(conversations), "--out", str(out)]
    generate.main([*arguments, "--steps", "1", "--max-new-tokens", "40", "--require", "image", *options])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    files = [folder / REPLIES, folder / REJECTS, *(folder / MEDIA).iterdir()]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def answered(checkpoint: Path, folder: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answered")
    run(checkpoint, folder / "chats.jsonl", out)
    return out


def test_what_is_to_be_said_of_a_medium_stands_beside_it() -> None:
    picture = Item(modality=Modality.IMAGE)
    response = Response(parts=("Two:", picture, picture), media=(), prompt_tokens=0, tokens=0, untrained=())
    message = batch_replies._message(response, ["a.png", "b.png"], ["", "withheld"])["message"]
    assert message["content"] == [
        text("Two:"),
        {"type": "image", "image": "media/a.png"},
        {"type": "image", "image": "media/b.png", "note": "withheld"},
    ]


def test_replies_depend_on_how_the_model_is_loaded() -> None:
    chunk = Chunk(rows=1, fingerprint="rows", stamps="")
    plan = ReplySettings(
        checkpoint="x", config=load_preset("tiny"), architecture="joint", require=[], sampling=Sampling(), steps=1
    )
    settings = plan.config.decoders.model_copy(update={"precision": "bfloat16"})
    other = replace(plan, config=plan.config.model_copy(update={"decoders": settings}))
    assert batch_replies._fingerprint(chunk, plan) != batch_replies._fingerprint(chunk, other)


@pytest.mark.ray
def test_each_conversation_is_answered_or_rejected_with_its_reason(answered: Path) -> None:
    replies, rejects = lines(answered / REPLIES), lines(answered / REJECTS)
    assert [reply["source"] for reply in replies] == [f"chats.jsonl#{row}" for row in range(len(GOOD))]
    assert len(rejects) == len(BAD)
    for reason in BAD.values():
        assert sum(reason in reject["reason"] for reject in rejects) == 1, reason


@pytest.mark.ray
def test_a_reply_is_a_turn_of_a_chat_with_the_media_it_names(answered: Path) -> None:
    for reply in lines(answered / REPLIES):
        message = reply["message"]
        assert message["role"] == "assistant"
        assert " ".join(part["text"] for part in message["content"] if part["type"] == "text") == reply["text"]
        media = [part for part in message["content"] if part["type"] != "text"]
        assert [part["type"] for part in media] == ["image"]
        for part in media:
            decode(load(answered / part["image"], Modality.IMAGE))


@pytest.mark.ray
def test_neither_the_number_of_actors_nor_a_restart_changes_a_byte(
    local_ray: None,
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(batch_replies, "ROWS_AT_ONCE", 1)
    for actors in (2, 1):
        pool = batch_replies.Pool(actors=actors, num_cpus=1, num_gpus=0)
        monkeypatch.setattr(batch_replies, "plan_pool", lambda gpus, pool=pool: pool)
        run(checkpoint, folder / "chats.jsonl", tmp_path / str(actors))
        assert "9 conversations: 3 answered, 6 rejected" in capsys.readouterr().out
    one, expected = tmp_path / "1", content(tmp_path / "2")
    assert content(one) == expected
    written = (one / MEDIA / "0000000-1.png").stat().st_mtime_ns
    (one / MEDIA / "0000001-1.png").unlink()
    (one / REPLIES).unlink()
    run(checkpoint, folder / "chats.jsonl", one)
    assert "9 conversations: 3 answered, 2 of them before, 6 rejected" in capsys.readouterr().out
    assert content(one) == expected
    assert (one / MEDIA / "0000000-1.png").stat().st_mtime_ns == written


@pytest.mark.ray
def test_what_changes_is_answered_anew_and_what_is_gone_is_taken_away(
    checkpoint: Path, folder: Path, local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text("\n".join(GOOD[::2]) + "\n")
    run(checkpoint, chats, tmp_path / "out")
    chats.write_text(GOOD[0] + "\n")
    run(checkpoint, chats, tmp_path / "out", "--seed", "3")
    assert "1 conversation: 1 answered, 0 rejected" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "out" / MEDIA).iterdir()] == ["0000000-1.png"]


@pytest.mark.ray
def test_the_scheduler_answers_a_file_as_well(
    folder: Path, local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", SHIPPED, "--conversations", str(folder / "chats.jsonl"), "--out", str(tmp_path)]
    generate.main([*arguments, "--architecture", "scheduler", "--steps", "1", "--require", "image"])
    assert "9 conversations: 3 answered, 6 rejected" in capsys.readouterr().out
    assert sum("the last turn takes" in reject["reason"] for reject in lines(tmp_path / REJECTS)) == 1
    for reply in lines(tmp_path / REPLIES):
        kinds = [part["type"] for part in reply["message"]["content"]]
        assert kinds[0] == "text"
        assert "image" in kinds


def test_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        generate.main(
            [
                "--checkpoint",
                "x",
                "--out",
                "y",
                "--conversations",
                "z",
                "--image",
                "a.png",
                "--top-p",
                "0",
                "--gpus",
                "-1",
            ]
        )
    assert str(caught.value).splitlines() == [
        "--image, --video and --audio go with --prompt; conversations name their media themselves",
        "--gpus -1: must be 0 or more",
        "--top-p 0.0: must be more than 0, and 1 at most",
    ]
    with pytest.raises(UsageError, match="give --prompt TEXT, or --conversations JSONL"):
        generate.main(["--checkpoint", "x", "--out", "y"])
