"""Options of a reply: the same defaults and bounds for the command line, the API and the page."""

from argparse import ArgumentParser

import pytest

from jobs.replies.options import OPTIONS, add_options, decoder_settings, mistakes, sampling
from jobs.serving.requests.openai_format import ChatRequest
from model.inference.query import Sampling
from pipelines.sample import Modality


def test_what_is_left_out_or_empty_has_its_default() -> None:
    assert sampling({}) == sampling({"temperature": None, "seed": None}) == Sampling(max_items=4, max_new_tokens=256)


def test_what_is_given_counts_even_where_it_is_0() -> None:
    given = {"max_items": 0, "temperature": 0.5, "top_p": 0.9, "seed": 3.0, "max_new_tokens": 7, "steps": 2}
    found = sampling(given)
    assert found == Sampling(max_items=0, temperature=0.5, top_p=0.9, seed=3, max_new_tokens=7)
    assert isinstance(found.seed, int)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("top_p", "1.5", "must be more than 0, and 1 at most"),
        ("temperature", "inf", "must be at least 0"),
        ("temperature", "nan", "must be at least 0"),
        ("steps", "0", "must be at least 1"),
        ("max_items", "-1", "must be at least 0"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_bound(option: str, value: str, reason: str) -> None:
    parser = ArgumentParser()
    add_options(parser, *OPTIONS)
    flag = f"--{option.replace('_', '-')}"
    arguments = parser.parse_args([f"{flag}={value}"])
    assert list(mistakes(arguments)) == [f"{flag} {getattr(arguments, option)}: {reason}"]
    assert list(mistakes(parser.parse_args([]))) == []


def test_the_command_line_may_go_beyond_what_the_network_may() -> None:
    parser = ArgumentParser()
    add_options(parser, *OPTIONS)
    arguments = parser.parse_args(["--temperature", "3", "--max-new-tokens", "9000", "--steps", "500"])
    assert list(mistakes(arguments)) == []
    schema = ChatRequest.model_json_schema()["properties"]
    assert [bound["maximum"] for bound in schema["temperature"]["anyOf"][:1]] == [2.0]
    assert schema["max_items"] == {
        "default": 4,
        "description": OPTIONS["max_items"].help,
        "maximum": 8,
        "minimum": 0,
        "title": "Max Items",
        "type": "integer",
    }


def test_steps_are_those_of_every_decoder_or_each_ones_own() -> None:
    assert decoder_settings(3) == {modality: {"steps": 3} for modality in Modality}
    assert decoder_settings(None) == {}
