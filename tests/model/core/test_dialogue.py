import pytest
from dialogue_cases import CAPTION, MIXED, REQUEST, dialogue, item
from hypothesis import given, settings
from hypothesis import strategies as st

from model.core.dialogue import IGNORE, dialogue_lengths, encode_dialogue
from model.core.tokenizer import load_tokenizer, load_vocabulary
from model.parts.config import load_preset

TINY = load_preset("tiny")
TOKENIZER, VOCABULARY = load_tokenizer(TINY), load_vocabulary(TINY)


def encode(turns, max_length=512, tokens=1, **options):
    return encode_dialogue(turns, TOKENIZER, VOCABULARY, tokens, max_length, **options)


def learned(encoded):
    return TOKENIZER.decode([label for label in encoded.labels if label != IGNORE])


def test_the_layout_is_vicunas():
    turns = dialogue(("hi",), ("yes",), ("why?",), ("so",))
    expected = "<s>### Human: hi\n### Assistant: yes\n### Human: why?\n### Assistant: so\n###"
    assert TOKENIZER.decode(encode(turns).input_ids) == expected
    assert learned(encode(turns)) == " yes\n### so\n###"


def test_an_input_item_stands_between_brackets_wherever_it_is():
    encoded = encode(MIXED, tokens=3)
    text = TOKENIZER.decode(encoded.input_ids)
    pads = "<pad>" * 3
    assert text.startswith(f"<s>### Human: <Img>{pads}</Img> and<Img>{pads}</Img> differ how?\n### Assistant: They do.")
    for _, position in encoded.input_positions:
        assert encoded.input_ids[position - 1] == VOCABULARY.begin_item
        assert encoded.input_ids[position + 3] == VOCABULARY.end_item
        assert TOKENIZER.decode(encoded.input_ids[position : position + 3]) == pads


def test_there_is_one_begin_token_at_the_very_start():
    assert encode(MIXED).input_ids.count(TOKENIZER.bos_token_id) == 1


def test_an_output_item_is_its_modalitys_signal_tokens_and_they_are_learned():
    encoded = encode(REQUEST)
    assert [group[0].modality for group in encoded.output_groups] == ["image", "audio"]
    for output, start, length in encoded.output_groups:
        ids = tuple(encoded.input_ids[start : start + length])
        assert ids == VOCABULARY.group(output.modality) == tuple(encoded.labels[start : start + length])
    assert learned(encoded).startswith(" a dog[IMG0][IMG1][IMG2][IMG3] and its bark[AUD0]")


def test_an_input_item_without_a_medium_gives_its_caption():
    turns = dialogue(("look at", item("image", name="", caption="a cat"), "now"), ("ok",))
    assert "### Human: look at a cat now\n###" in TOKENIZER.decode(encode(turns).input_ids)
    assert encode(turns).input_positions == []


def test_inference_reads_the_same_tokens_as_training():
    for turns in (CAPTION, REQUEST, MIXED):
        prompt = encode(turns[:-1], for_generation=True)
        whole = encode(turns)
        assert whole.input_ids[: len(prompt.input_ids)] == prompt.input_ids
        assert whole.labels[len(prompt.input_ids)] != IGNORE
        assert prompt.labels[-1] == IGNORE


@given(
    length=st.integers(1, 90),
    parts=st.lists(st.sampled_from(["a word", "image", "video", "audio"]), min_size=1, max_size=5),
    tokens=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_cutting_leaves_a_prefix_with_whole_items_and_groups(length, parts, tokens):
    content = tuple(item(part) if part != "a word" else part for part in parts)
    whole = encode(dialogue(content, content), 10**6, tokens)
    cut = encode(dialogue(content, content), length, tokens)
    size = len(cut.input_ids)
    assert size <= length
    assert cut.input_ids == whole.input_ids[:size]
    assert cut.labels == whole.labels[:size]
    assert cut.input_positions == [slot for slot in whole.input_positions if slot[1] + tokens < size]
    assert cut.output_groups == [group for group in whole.output_groups if group[1] + group[2] <= size]
    signals = sum(token >= VOCABULARY.base_size + 2 for token in cut.input_ids)
    assert signals == sum(group[2] for group in cut.output_groups)
    brackets = sum(token in (VOCABULARY.begin_item, VOCABULARY.end_item) for token in cut.input_ids)
    assert brackets == 2 * len(cut.input_positions)
    lengths = dialogue_lengths(dialogue(content, content), TOKENIZER, VOCABULARY, tokens, length)
    assert lengths == (size, len(whole.input_ids))


@pytest.mark.parametrize(
    ("turns", "for_generation", "message"),
    [
        ((), False, "last turn"),
        (CAPTION[:1], False, "last turn must be the assistant's"),
        (CAPTION, True, "last turn must be the user's"),
        (CAPTION[1:], False, "turn 1 is the assistant's"),
        (CAPTION[:1] * 2, False, "turn 2 is the user's"),
    ],
)
def test_turns_that_do_not_alternate_are_refused(turns, for_generation, message):
    with pytest.raises(ValueError, match=message):
        encode(turns, for_generation=for_generation)


def test_a_prompt_is_never_cut():
    with pytest.raises(ValueError, match="shorten"):
        encode(dialogue(("word " * 50,)), 20, for_generation=True)
