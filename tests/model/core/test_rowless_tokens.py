"""Tokenizers with more entries than their LLM has embedding rows, as Gemma 3 1B and CodeLlama are published."""

import json

import pytest
from chat_families import tokenizer_of
from dialogue_cases import dialogue
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model.core.chat_template import chat_template
from model.core.dialogue import encode_dialogue
from model.core.tokenizer import add_tokens, drop_rowless, encode_text, special_ids
from model.core.vocabulary import SignalVocabulary
from pipelines.sample import Modality


def prepared(tokenizer, rows):
    """The tokenizer of an LLM with so many rows, with the new tokens."""
    drop_rowless(tokenizer, rows)
    vocabulary = SignalVocabulary(rows, {Modality.IMAGE: 4})
    add_tokens(tokenizer, vocabulary, "x")
    return tokenizer, vocabulary


def with_image_tokens():
    plain = tokenizer_of("gemma3")
    rows = len(plain)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image_soft_token>"},
    )
    tokenizer.chat_template = plain.chat_template
    tokenizer.add_special_tokens({"extra_special_tokens": ["<more>"]}, replace_extra_special_tokens=False)
    assert len(tokenizer) == rows + 2
    return tokenizer, rows


def test_an_added_token_without_a_row_is_text_like_any_other(tmp_path):
    tokenizer, rows = with_image_tokens()
    assert tokenizer.encode("<image_soft_token>", add_special_tokens=False) == [rows]
    tokenizer, vocabulary = prepared(tokenizer, rows)
    assert tokenizer.convert_tokens_to_ids("<Img>") == rows
    assert len(tokenizer) == vocabulary.total_size
    text = "a <image_soft_token> b <more>"
    assert max(tokenizer.encode(text, add_special_tokens=False)) < rows
    assert tokenizer.decode(encode_text(tokenizer, text)) == text
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert max(special_ids(again)) < vocabulary.total_size


def test_such_a_tokenizer_writes_its_own_template():
    tokenizer, rows = with_image_tokens()
    bare = tokenizer_of("gemma3")
    tokenizer, vocabulary = prepared(tokenizer, rows)
    turns = dialogue(("<image_soft_token> hi",))
    ids = encode_dialogue(
        turns, tokenizer, vocabulary, 1, 99, template=chat_template("auto", tokenizer), for_generation=True
    ).input_ids
    said = [{"role": "user", "content": "<image_soft_token> hi"}]
    assert ids == bare.apply_chat_template(said, add_generation_prompt=True, return_dict=False)


def test_pieces_without_a_row_are_written_in_the_pieces_they_are_made_of():
    tokenizer = tokenizer_of("llama2")
    rows = len(tokenizer) - 6
    vocab = {number: piece for piece, number in tokenizer.get_vocab().items()}
    # The tokenizer itself writes the first space of a text.
    lost = [vocab[number].removeprefix("\u2581").replace("\u2581", " ") for number in range(rows, rows + 6)]
    assert any(max(tokenizer.encode(text, add_special_tokens=False)) >= rows for text in lost)
    tokenizer, vocabulary = prepared(tokenizer, rows)
    for text in lost:
        ids = encode_text(tokenizer, text)
        assert max(ids) < rows
        assert tokenizer.decode(ids).strip() == text.strip()
    assert tokenizer.convert_tokens_to_ids(list(vocabulary.tokens)) == list(range(rows, vocabulary.total_size))


def test_an_unigram_model_loses_its_last_pieces():
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -0.1)], unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert encode_text(tokenizer, "ab") == [3]
    tokenizer, _ = prepared(tokenizer, 3)
    assert encode_text(tokenizer, "ab") == [1, 2]


def test_a_token_that_ends_or_pads_is_none_without_a_row():
    tokenizer = tokenizer_of("qwen3")
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer, _ = prepared(tokenizer, rows)
    assert tokenizer.pad_token_id is None
    assert json.loads(tokenizer.backend_tokenizer.to_str())["added_tokens"][-1]["content"] == "[IMG3]"


def test_a_tokenizer_of_another_llm_is_refused():
    tokenizer = tokenizer_of("qwen3")
    with pytest.raises(ValueError, match=r"^x: the tokenizer has \d+ tokens but the LLM 300 embedding rows; use the"):
        prepared(tokenizer, 300)
