"""A stage's plan: embeddings that do not fit the model are refused before anything starts."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from jobs.common.cli import UsageError
from jobs.common.settings import load_settings
from jobs.training.stage import StagePlan, plan_stage
from pipelines.storage.shards import Manifest
from pipelines.storage.sidecars import SidecarManifest, sidecar_folder


def plan(folder: Path, shape: list[int], view: str = "cc3m_dec", kind: str = "image") -> StagePlan:
    """Plans stage 2 of the published model on a dataset whose caption embeddings have this shape."""
    directory = folder / view.partition("_")[0]
    Manifest(
        dataset=directory.name,
        rows=4,
        samples=4,
        samples_per_shard=4,
        rejected={},
        shards=[],
        views={view: "generate"},
        output_items={kind: 4},
        input_items=0,
        licence="",
        stages={view: 2},
    ).write(directory)
    SidecarManifest(
        kind=kind,
        encoder_id=f"{kind}-imported-0",
        encoder_name="imported",
        untrained=False,
        shape=shape,
        dtype="float16",
        items=4,
        shards=[],
        of_shards=[],
    ).write(sidecar_folder(directory, f"{kind}-imported-0"))
    overrides = [f"datasets={{{view}: 1}}", f"model.llm.name={stand_in_for_vicuna(folder / 'vicuna')}"]
    return plan_stage(load_settings(2, "nextgpt_7b", overrides), folder, folder / "run", None)


def stand_in_for_vicuna(folder: Path) -> Path:
    """What is looked at before anything is loaded: an LLM's configuration, and that there are files."""
    folder.mkdir(exist_ok=True)
    LlamaConfig(hidden_size=4096, vocab_size=32_000, num_hidden_layers=32).save_pretrained(folder)
    for name in ("tokenizer.model", "model.safetensors"):
        (folder / name).touch()
    return folder


def test_embeddings_of_the_decoders_size_are_taken(tmp_path: Path) -> None:
    assert [view.name for view in plan(tmp_path, [77, 768]).views] == ["cc3m_dec"]


@pytest.mark.parametrize(
    ("view", "kind", "shape", "told"),
    [
        ("cc3m_dec", "image", [77, 1024], "are 77x1024, preset nextgpt_7b takes 77x768; "),
        ("webvid_dec", "video", [77, 768], "are 77x768, preset nextgpt_7b takes 77x1024; "),
        ("audiocap_dec", "audio", [512, 512], "are 512x512, preset nextgpt_7b takes 1x512; "),
    ],
)
def test_embeddings_of_another_size_are_refused_in_one_sentence(
    tmp_path: Path, view: str, kind: str, shape: list[int], told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(tmp_path, shape, view, kind)
    message = str(caught.value)
    assert message.startswith(f"{view}: {kind} embeddings by imported {told}")
    assert f"jobs/embed.py --preset nextgpt_7b --modality {kind}" in message
    assert "\n" not in message
