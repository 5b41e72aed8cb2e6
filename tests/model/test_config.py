import pytest
from pydantic import ValidationError

from model.config import InputProjectionConfig, load_preset, parse_config, preset_layers
from model.legacy import legacy_delta_shapes
from pipelines.sample import Modality

PRESET_NAMES = ["nextgpt_7b", "nextgpt_7b_query", "tiny", "tiny_query", "world"]


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_every_preset_reads_and_knows_its_name(name):
    assert load_preset(name).preset == name


def test_an_unknown_preset_is_refused_with_the_list_of_presets():
    with pytest.raises(ValueError, match=f"'huge'.*{', '.join(PRESET_NAMES)}$"):
        load_preset("huge")


def test_a_preset_changes_what_it_names_of_the_one_it_is_based_on(tiny):
    query = load_preset("tiny_query")
    assert preset_layers("tiny_query") == ["tiny", "tiny_query"]
    assert query.input_projection == InputProjectionConfig(kind="query", num_input_tokens=4, hidden=64)
    changed = {"preset": tiny.preset, "input_projection": tiny.input_projection}
    assert query.model_copy(update=changed) == tiny


def test_a_configuration_survives_json_and_cannot_be_changed(tiny):
    assert parse_config(tiny.model_dump(mode="json"), "x") == tiny
    with pytest.raises(ValidationError):
        tiny.max_length = 1


def test_all_mistakes_are_named_in_one_line(tiny):
    values = tiny.model_dump(mode="json")
    values["encoder"]["dim"] = 0
    values["lora"]["rank"] = 3
    with pytest.raises(ValueError, match=r"^my.yaml: .*encoder\.dim.*lora\.rank") as caught:
        parse_config(values, "my.yaml")
    assert "\n" not in str(caught.value)


def test_outputs_stand_in_the_order_of_the_signal_ids_whatever_the_file_says(tiny):
    values = tiny.model_dump(mode="json")
    values["outputs"] = dict(reversed(values["outputs"].items()))
    assert list(parse_config(values, "x").outputs) == list(Modality)


def test_the_7b_preset_has_exactly_the_tensors_of_the_released_weights(shared):
    lines = (shared / "facts" / "delta_7b_tiva_v0.tsv").read_text().splitlines()[1:]
    released = {name: tuple(map(int, shape.split("x"))) for name, shape in (line.split("\t") for line in lines)}
    assert legacy_delta_shapes(load_preset("nextgpt_7b")) == released
