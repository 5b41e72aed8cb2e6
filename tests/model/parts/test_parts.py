import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from model.architectures import tiny
from model.architectures.imagebind import load_imagebind
from model.parts.builtin import PARTS, PREFIX, is_untrained, resolve


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("built")
    for part in PARTS:
        tiny.build(part, root / part)
    return {part: root / part for part in PARTS}


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_other_names_are_returned_unchanged() -> None:
    for name in ("runwayml/stable-diffusion-v1-5", str(Path.cwd()), "relative/dir", "tiny/llm"):
        assert resolve(name) == name


def test_an_absolute_path_that_is_not_here_is_not_taken_for_a_repository() -> None:
    with pytest.raises(FileNotFoundError, match=r"^/some/where: not on this machine \(.+\); put it on shared storage"):
        resolve("/some/where")


@pytest.mark.parametrize("name", ["builtin:tiny/vocoder", "builtin:huge/llm", "builtin:"])
def test_an_unknown_builtin_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .*builtin:tiny/audio_decoder") as error:
        resolve(name)
    assert "\n" not in str(error.value)


def test_another_process_builds_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    code = "from model.parts.builtin import PARTS, PREFIX, resolve\nfor part in PARTS: print(resolve(PREFIX + part))"
    environment = {**os.environ, "NEXTGPT_CACHE": str(tmp_path), "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    root = Path(tiny.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, check=True, capture_output=True, text=True
    )
    directories = [Path(line) for line in done.stdout.splitlines() if line.startswith(str(tmp_path))]
    assert [directory.name for directory in directories] == list(PARTS)
    assert not list(directories[0].parent.glob(".*")), "scratch directories stay behind"
    for directory in directories:
        assert contents(directory) == contents(built[directory.name])


def test_a_part_that_exists_is_not_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path))
    first = Path(resolve(PREFIX + "imagebind"))
    before = (first / "config.json").stat()
    assert Path(resolve(PREFIX + "imagebind")) == first
    assert (first / "config.json").stat() == before


def test_the_slower_of_two_builders_leaves_the_faster_ones_files(
    built: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path))

    def overtaken(part: str, directory: Path) -> None:
        shutil.copytree(built[part], directory)
        shutil.copytree(built[part], directory.parents[1] / part)

    monkeypatch.setattr(tiny, "build", overtaken)
    directory = Path(resolve(PREFIX + "llm"))
    assert contents(directory) == contents(built["llm"])
    assert [path.name for path in directory.parent.iterdir()] == ["llm"]


def test_a_build_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path))

    def broken(part: str, directory: Path) -> None:
        directory.mkdir()
        raise RuntimeError("disk full")

    monkeypatch.setattr(tiny, "build", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        resolve(PREFIX + "llm")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("llm")]


def test_building_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    def draw() -> tuple[float, ...]:
        return float(torch.rand(())), random.random(), np.random.random()

    def seed() -> None:
        torch.manual_seed(5), random.seed(5), np.random.seed(5)

    seed()
    expected = draw()
    seed()
    for part in PARTS:
        tiny.build(part, tmp_path / part)
    assert draw() == expected


def test_every_tiny_part_says_that_it_is_untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path))
    assert all(is_untrained(PREFIX + part) for part in PARTS)


def test_parts_without_the_marker_count_as_trained(built: dict[str, Path], tmp_path: Path) -> None:
    assert is_untrained(str(built["llm"]))
    assert not is_untrained(str(tmp_path))
    assert not is_untrained("runwayml/stable-diffusion-v1-5")


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_small(built: dict[str, Path], part: str) -> None:
    weights = 0
    for file in built[part].rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            weights += sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118
    assert 100_000 < weights < 700_000


def test_the_llm_loads_with_its_tokenizer(built: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built["llm"])
    model = AutoModelForCausalLM.from_pretrained(built["llm"])
    assert isinstance(model, LlamaForCausalLM)
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().num_embeddings
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<unk>", "<s>", "</s>", "<pad>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 3)
    logits_1TV = model(**tokenizer("A red circle", return_tensors="pt")).logits
    assert logits_1TV.isfinite().all()


@pytest.mark.parametrize(
    "text", ["### Human: draw a fox\n### Assistant: ", "naïve café 🦊 東京", "  two  spaces\n", ""]
)
def test_the_llm_tokenizer_gives_every_text_back_behind_one_begin_token(built: dict[str, Path], text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built["llm"])
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert not set(ids[1:]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer(text, add_special_tokens=False).input_ids == ids[1:]


def test_the_imagebind_part_loads(built: dict[str, Path]) -> None:
    model = load_imagebind(str(built["imagebind"]))
    assert model.config.embed_dim == 32
