import pytest
from pydantic import ValidationError

from model.checkpoints.released import legacy_delta_shapes
from model.parts.config import InputProjectionConfig, load_preset, parse_config, preset_layers
from pipelines.sample import Modality

PRESET_NAMES = [
    "nextgpt_7b",
    "nextgpt_7b_24gb",
    "nextgpt_7b_query",
    "nextgpt_modern",
    "nextgpt_modern_24gb",
    "small",
    "tiny",
    "tiny_query",
    "world",
]


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_every_preset_reads_and_knows_its_name(name):
    assert load_preset(name).preset == name


def test_an_unknown_preset_is_refused_with_the_list_of_presets():
    with pytest.raises(ValueError, match=f"'huge'.*{', '.join(PRESET_NAMES)}, or the path of a .yaml file$"):
        load_preset("huge")


def test_a_preset_changes_what_it_names_of_the_one_it_is_based_on(tiny):
    query = load_preset("tiny_query")
    assert preset_layers("tiny_query") == ["tiny", "tiny_query"]
    assert query.input_projection == InputProjectionConfig(kind="query", num_input_tokens=4, hidden=64)
    changed = {"preset": tiny.preset, "input_projection": tiny.input_projection}
    assert query.model_copy(update=changed) == tiny


def test_a_file_of_ones_own_is_a_preset_and_changes_what_it_names(tiny, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("base: tiny\nllm: {name: models/llm}\noutputs: {image: {decoder: sd}}\n")
    (tmp_path / "further.yaml").write_text("base: mine.yaml\nmax_length: 99\n")
    monkeypatch.chdir("/")
    mine = load_preset(str(tmp_path / "mine.yaml"))
    assert (mine.preset, mine.llm.name, mine.outputs[Modality.IMAGE].decoder) == ("mine", "models/llm", "sd")
    assert mine.llm.hidden_size == tiny.llm.hidden_size
    assert mine.outputs[Modality.VIDEO] == tiny.outputs[Modality.VIDEO]
    # A base that is a file lies beside the one that names it, wherever the command is run.
    further = load_preset(str(tmp_path / "further.yaml"))
    assert (further.llm.name, further.max_length) == ("models/llm", 99)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"mine.yaml: no such file; looked for /"),
        ("base: huge", r"no preset 'huge'; choose one of"),
        ("base: mine.yaml", r"mine.yaml: is its own base"),
        ("[1, 2]", r"mine.yaml: must map llm, encoder, outputs"),
        ("a: [", r"mine.yaml: "),
        ("base: tiny\nllm: {nam: x}", r"^mine.yaml: llm\.nam: "),
        ("llm: {name: x}", r"^mine.yaml: encoder: Field required"),
    ],
)
def test_a_file_that_is_no_preset_is_refused_in_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_preset(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize(("name", "precision"), [("nextgpt_7b", "float16"), ("nextgpt_modern", "bfloat16")])
def test_the_preset_of_a_small_card_differs_only_in_how_frozen_parts_are_loaded(name, precision):
    whole, small = load_preset(name), load_preset(f"{name}_24gb")
    assert small.llm.load_in_4bit
    assert (small.decoders.precision, small.decoders.on_device) == (precision, "one")
    loading = {"preset": whole.preset, "llm": whole.llm, "decoders": whole.decoders}
    assert small.model_copy(update=loading) == whole
