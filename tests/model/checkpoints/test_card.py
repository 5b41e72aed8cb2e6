import re

import pytest
import yaml

from model.checkpoints.card import model_card
from model.checkpoints.checkpoint import save_pretrained
from model.parts.config import load_preset

STAGES = [
    {
        "stage": 1,
        "configuration": "stage_1_tiny",
        "steps": 40,
        "data": {"cc3m_enc": {"samples": 14, "manifest": "ab12"}, "webvid_enc": {"samples": 11, "manifest": "cd34"}},
        "metrics": {"loss": 2.34567},
        "validation": {"token_loss": 2.5, "token_accuracy": 0.25},
        "hardware": "2 x CPU",
        "seconds": 125.4,
    },
    {"stage": 3, "configuration": "stage_3_tiny", "steps": 9, "seconds": 7322.0, "notes": "a | b\nc"},
]


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_every_stage_tells_its_data_scores_hardware_and_time(tiny):
    card = model_card(tiny, STAGES, {"untrained": ["LLM", "decoders"]})
    for line in (
        "| stage | configuration | steps | hardware | time | notes |",
        "| 1 | stage_1_tiny | 40 | 2 x CPU | 2 min 5 s |  |",
        "| 3 | stage_3_tiny | 9 |  | 2 h 2 min | a \\| b c |",
        "## Stage 1: Data, with the sha256 of its manifest",
        "| name | samples | manifest |",
        "| webvid_enc | 11 | cd34 |",
        "## Stage 1: Validation metrics",
        "| token_accuracy | 0.25 |",
        "| loss | 2.346 |",
        "## Parts with random weights",
        "* decoders",
    ):
        assert line in card.splitlines(), line


def test_sections_of_the_whole_checkpoint_are_shown_too(tiny):
    card = model_card(tiny, [], {"hardware": "1 x GPU", "seconds": 59.9, "data": {"cc3m_enc": "14 samples"}})
    for text in ("## Hardware\n\n1 x GPU\n", "## Time\n\n1 min 0 s\n", "| cc3m_enc | 14 samples |"):
        assert text in card


def test_the_front_matter_is_what_the_hub_takes(tiny):
    values = front_matter(model_card(load_preset("nextgpt_7b"), [], {}))
    assert values["pipeline_tag"] == "any-to-any"
    assert values["base_model"] == "lmsys/vicuna-7b-v1.5"
    assert "base_model" not in front_matter(model_card(tiny, [], {}))


def test_the_snippet_loads_the_model(model, tokenizer, tmp_path, monkeypatch):
    save_pretrained(model, tmp_path, tokenizer)
    (snippet,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet, names)
    assert names["model"].config == model.config
    assert len(names["tokenizer"]) == len(tokenizer)


@pytest.mark.parametrize("name", ["someone/model"])
def test_the_snippet_names_the_models_place_on_the_hub(tiny, name):
    assert f'from_pretrained("{name}")' in model_card(tiny, [], {}, name=name)
