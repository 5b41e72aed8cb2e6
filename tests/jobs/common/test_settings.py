"""Settings: each layer overrides the one before, and all mistakes are told at once."""

from pathlib import Path

import pytest
import yaml

from jobs.common import settings as subject
from jobs.common.cli import UsageError
from jobs.common.settings import deepspeed_settings, load_settings, settings_hash
from model.parts.config import load_preset
from model.training.train_settings import TrainSettings
from pipelines.sample import Modality


def mistakes(*overrides: str, preset: str = "tiny") -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_settings(1, preset, overrides)
    return str(caught.value).splitlines()


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of layers like jobs/configs, in which every layer claims the settings of those after it too."""
    engine = {"deepspeed": "stage_1.json", "optimizer": {"learning_rate": 1.0}, "precision": "fp32"}
    values = {"epochs": 1, "batch_size": 1, "micro_batch_size": 1, "log_every": 1, "seed": 1}
    write(tmp_path / "base.yaml", engine | values)
    write(tmp_path / "tiny.yaml", {"epochs": 2, "batch_size": 2, "micro_batch_size": 2, "log_every": 2})
    write(tmp_path / "stage_1.yaml", {"epochs": 3, "batch_size": 3, "log_every": 3, "optimizer": {"weight_decay": 0.5}})
    write(tmp_path / "tiny_stage_1.yaml", {"epochs": 4, "log_every": 4})
    write(tmp_path / "tiny_stage_2.yaml", {"seed": 5})
    monkeypatch.setattr(subject, "CONFIGS", tmp_path)
    return tmp_path


def write(path: Path, values: dict[str, object]) -> None:
    path.write_text(yaml.safe_dump(values))


def test_the_command_line_overrides_a_presets_stage_that_the_stage_that_the_preset_that_the_base(layers: Path) -> None:
    settings = load_settings(1, "tiny", ["epochs=5"])
    found = (settings.epochs, settings.log_every, settings.batch_size, settings.micro_batch_size, settings.seed)
    assert found == (5, 4, 3, 2, 1)
    assert settings.model == load_preset("tiny")


def test_a_layer_adds_to_a_group_of_settings_and_does_not_replace_it(layers: Path) -> None:
    optimizer = load_settings(1, "tiny", ["optimizer.warmup_ratio=0.25"]).optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.warmup_ratio) == (1.0, 0.5, 0.25)


def test_of_two_overrides_of_one_setting_the_last_wins(layers: Path) -> None:
    assert load_settings(1, "tiny", ["epochs=4", "epochs=5"]).epochs == 5


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("preset", ["tiny", "world", "nextgpt_7b"])
def test_every_stage_of_every_preset_is_complete(stage: int, preset: str) -> None:
    settings = load_settings(stage, preset)
    assert (settings.stage, settings.model.preset) == (stage, preset)
    assert deepspeed_settings(settings)


def test_overrides_reach_into_the_model_and_take_any_yaml(tmp_path: Path) -> None:
    (tmp_path / "a=b.json").write_text("{}")
    overrides = ["model.lora.r=3", "model.lora.targets=[q_proj]", "optimizer.betas=[0.5, 0.75]", "workers=null"]
    settings = load_settings(3, "tiny", [*overrides, "gradient_checkpointing=true", f"deepspeed={tmp_path}/a=b.json"])
    assert (settings.model.lora.r, settings.model.lora.targets) == (3, ("q_proj",))
    assert settings.optimizer.betas == (0.5, 0.75)
    assert load_settings(3, "tiny").workers == 2
    assert settings.workers is None
    assert settings.gradient_checkpointing is True
    assert settings.deepspeed == f"{tmp_path}/a=b.json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[cc3m_enc]", {"cc3m_enc": 1.0}),
        ("{cc3m_enc: 2.5, webvid_enc: 1}", {"cc3m_enc": 2.5, "webvid_enc": 1.0}),
        ("cc3m_enc, webvid_enc", {"cc3m_enc": 1.0, "webvid_enc": 1.0}),
        ("auto", "auto"),
    ],
)
def test_datasets_are_names_or_weights(text: str, expected: object) -> None:
    assert load_settings(1, "tiny", [f"datasets={text}"]).datasets == expected


def test_naming_datasets_drops_those_named_before() -> None:
    settings = load_settings(1, "tiny", ["datasets={cc3m_enc: 2}", "datasets={webvid_enc: 3}"])
    assert settings.datasets == {"webvid_enc": 3.0}


def test_datasets_may_be_named_one_by_one() -> None:
    settings = load_settings(1, "tiny", ["datasets.cc3m_enc=2", "datasets.webvid_enc=3"])
    assert settings.datasets == {"cc3m_enc": 2.0, "webvid_enc": 3.0}


def test_all_mistakes_are_told_at_once_one_line_each() -> None:
    overrides = ["nonsense=1", "optimizer.nonsense=2", "epochs=0", "precision=fp8", "model.lora.r=x", "broken", "=5"]
    told = mistakes(*overrides)
    assert len(told) == len(overrides)
    for start in (
        "nonsense: no such setting",
        "optimizer.nonsense: no such setting",
        "epochs: Input should be greater than 0 (got 0)",
        "precision: Input should be 'fp32' or 'bf16' (got 'fp8')",
        "model.lora.r: ",
        "broken: not of the form key=value",
        "=5: not of the form key=value",
    ):
        assert [line for line in told if line.startswith(start)], start


def test_a_setting_that_no_layer_gives_must_be_set(layers: Path) -> None:
    write(layers / "base.yaml", {"deepspeed": "stage_1.json", "precision": "fp32"})
    assert mistakes("seed=2") == ["optimizer.learning_rate: must be set"]


def test_names_that_lead_nowhere_are_told_with_those_that_do() -> None:
    told = mistakes("deepspeed=absent.json", "datasets={cc3m_enc: 1, cc3n_enc: 2}", "seed=-1")
    assert len(told) == 3
    assert told[0].startswith("datasets: cc3n_enc not in the catalog; it has cc3m_enc, ")
    assert told[1].startswith("deepspeed: absent.json: no such file; use one of stage_1.json, ")


def test_a_deepspeed_file_of_ones_own_is_taken(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"zero_optimization": {"stage": 0}}')
    named = f"deepspeed={tmp_path / 'own.json'}"
    settings = load_settings(1, "tiny", [named, "zero=0"])
    assert deepspeed_settings(settings) == {"zero_optimization": {"stage": 0}}
    with pytest.raises(UsageError, match=r"own\.json: ZeRO stage 0, but zero is 1; set zero=0"):
        deepspeed_settings(load_settings(1, "tiny", [named]))


def test_an_override_that_is_no_yaml_is_a_mistake_like_any_other() -> None:
    told = mistakes("datasets=[a", "epochs=0")
    assert len(told) == 2
    assert any(line.startswith("datasets=[a: ") for line in told)


def test_an_unknown_preset_is_a_mistake_like_any_other() -> None:
    modern = "nextgpt_modern, nextgpt_modern_24gb"
    known = f"nextgpt_7b, nextgpt_7b_24gb, nextgpt_7b_query, {modern}, small, tiny, tiny_query, world"
    assert mistakes(preset="absent") == [
        f"--preset: no preset 'absent'; choose one of {known}, or the path of a .yaml file"
    ]


def test_one_weight_of_the_alignment_leaves_the_others() -> None:
    weights = load_settings(2, "tiny", ["loss.alignment_weights.image=3"]).loss.alignment_weights
    assert weights == {Modality.IMAGE: 3.0, Modality.VIDEO: 1.0, Modality.AUDIO: 1.0}


def test_the_stage_is_no_setting_to_override() -> None:
    assert mistakes("stage=3")


def test_the_hash_names_the_values_and_not_their_order() -> None:
    assert settings_hash({"a": 1, "b": {"c": 2, "d": 3}}) == settings_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert settings_hash({"a": 1}) == "015abd7f5cc5"
    hashes = [hash_of(load_settings(1, "tiny", overrides)) for overrides in ([], ["seed=1"], ["model.lora.r=3"], [])]
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 3


def hash_of(settings: TrainSettings) -> str:
    return settings_hash(settings.model_dump(mode="json"))
