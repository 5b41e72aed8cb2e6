"""The command that reads and writes NExT-GPT's own files of weights."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jobs import convert
from jobs.common import cli
from model.checkpoints.checkpoint import from_pretrained, load_weights
from model.checkpoints.description import check_compatible
from model.checkpoints.released import legacy_delta_shapes
from model.core.nextgpt import NextGPT
from model.parts.config import load_preset


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A file of stage 3 in the shapes of the tiny preset."""
    shapes = legacy_delta_shapes(load_preset("tiny"))
    torch.save({name: torch.randn(shape).half() * 0.05 for name, shape in shapes.items()}, tmp_path / "released.pt")
    return tmp_path / "released.pt"


def read(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """How the command ends: its exit code, and what it says on standard error."""
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda _: convert.main(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code, capsys.readouterr().err.splitlines()


def test_a_file_becomes_a_checkpoint_and_a_file_again(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "new" / "out.pt"
    convert.main(["--import", str(released), "--preset", "tiny", "--out", str(checkpoint)])
    convert.main(["--export", str(checkpoint), "--out", str(out)])
    said = capsys.readouterr().out
    assert f"imported stage 3 onto builtin:tiny/llm\ncheckpoint: {checkpoint}\n" in said
    assert f"exported stage 3: {len(read(released))} tensors in float16\nfile: {out}\n" in said
    given, written = read(released), read(out)
    assert list(written) == list(given)
    assert all(torch.equal(written[name].view(torch.uint8), given[name].view(torch.uint8)) for name in given)


def test_a_checkpoint_of_a_file_is_like_any_other(released: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    convert.main(["--import", str(released), "--preset", "tiny", "--out", str(checkpoint)])
    model, tokenizer = from_pretrained(checkpoint)
    assert len(tokenizer) == model.vocabulary.total_size
    check_compatible(load_preset("tiny"), checkpoint)
    assert [stage["stage"] for stage in load_weights(NextGPT.from_config(load_preset("tiny")), checkpoint)] == [3]
    assert "released.pt" in (checkpoint / "README.md").read_text()


def test_files_of_several_stages_make_one_checkpoint(released: Path, tmp_path: Path) -> None:
    convert.main(["--import", str(released), "--preset", "tiny", "--out", str(tmp_path / "three")])
    for stage in "12":
        convert.main(["--export", str(tmp_path / "three"), "--out", str(tmp_path / f"{stage}.pt"), "--stage", stage])
    files = [str(tmp_path / f"{stage}.pt") for stage in "12"]
    convert.main(["--import", *files, "--preset", "tiny", "--out", str(tmp_path / "two")])
    model, _ = from_pretrained(tmp_path / "two")
    assert [stage["stage"] for stage in model.stages] == [1, 2]
    assert not model.has_adapter
    given = read(released)
    assert torch.equal(model.input_projection.linear.weight, given["llama_proj.weight"].float())
    projection = model.output_projections["audio"]
    assert torch.equal(projection.query_embs, given["gen_text_hidden_fcs_audio.0.query_embs"].float())


def test_all_mistakes_of_the_command_line_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(["--import", "s3://bucket/x.pt", "--out", "out"], capsys) == (
        cli.USAGE,
        [
            "error: s3://bucket/x.pt: is a URL; give a local path",
            "error: --preset: missing; name the model that the files belong to, such as nextgpt_7b",
        ],
    )
    code, lines = told(["--export", "run", "--preset", "tiny", "--out", "out.pt"], capsys)
    assert (code, lines) == (cli.USAGE, ["error: --preset: only for --import; a checkpoint has its own preset"])
    code, lines = told(["--import", "x.pt", "--preset", "huge", "--out", "out"], capsys)
    assert (code, lines[0][:33]) == (cli.USAGE, "error: --preset: no preset 'huge'")


def test_a_tokenizer_that_is_cut_short_is_told_before_weights_are_loaded(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NextGPT, "from_config", lambda *_, **__: pytest.fail("weights are loaded"))
    llm = tmp_path / "llm"
    llm.mkdir()
    config = {"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2}
    (llm / "config.json").write_text(json.dumps(config))
    (llm / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    (llm / "pytorch_model.bin").touch()
    command = ["--import", str(released), "--preset", "tiny", "--out", str(tmp_path / "out"), f"model.llm.name={llm}"]
    why = "not a SentencePiece model (43 bytes); download it again"
    assert told(command, capsys) == (cli.FAILED, [f"error: {llm / 'tokenizer.model'}: {why}"])


def test_a_file_that_does_not_fit_is_told_in_one_line(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = read(released)
    del tensors["llama_proj.bias"]
    torch.save(tensors, released)
    code, lines = told(["--import", str(released), "--preset", "tiny", "--out", str(tmp_path / "out")], capsys)
    assert code == cli.FAILED
    why = "not a stage 3 file for tiny: llama_proj.bias is missing; use the preset it was made with"
    assert lines == [f"error: {released}: {why}"]
    assert not (tmp_path / "out").exists()
    assert told(["--export", str(tmp_path / "out"), "--out", "x.pt"], capsys) == (
        cli.FAILED,
        [f"error: {tmp_path / 'out'}: no finished checkpoint there; give a checkpoint or the folder of a run"],
    )
