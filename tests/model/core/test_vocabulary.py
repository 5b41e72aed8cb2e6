import pytest
from transformers import AutoTokenizer

from model.core.tokenizer import add_tokens, check_tokens, encode_text, load_tokenizer
from model.core.vocabulary import SignalVocabulary
from model.parts.builtin import resolve
from model.parts.config import load_preset
from pipelines.sample import Modality


def test_vicuna_ids_are_those_of_the_released_weights():
    vocabulary = SignalVocabulary(32000, load_preset("nextgpt_7b").signal_groups)
    assert (vocabulary.begin_item, vocabulary.end_item) == (32000, 32001)
    assert vocabulary.group(Modality.IMAGE) == tuple(range(32002, 32006))
    assert vocabulary.group(Modality.VIDEO) == tuple(range(32006, 32030))
    assert vocabulary.group(Modality.AUDIO) == tuple(range(32030, 32038))
    assert vocabulary.total_size == 32038
    assert vocabulary.tokens[:3] == ("<Img>", "</Img>", "[IMG0]")
    assert vocabulary.tokens[-1] == "[AUD7]"
    assert vocabulary.first_ids == {32002: Modality.IMAGE, 32006: Modality.VIDEO, 32030: Modality.AUDIO}


def test_the_tokenizer_gives_every_new_token_the_id_of_its_row(tokenizer, model):
    assert tokenizer.convert_tokens_to_ids("<Img>") == model.vocabulary.begin_item == 512
    assert len(tokenizer) == model.vocabulary.total_size


def test_a_tokenizer_with_the_new_tokens_at_other_ids_is_refused(tiny):
    tokenizer = load_tokenizer(tiny)
    vocabulary = SignalVocabulary(len(tokenizer) + 5, {Modality.AUDIO: 2})
    with pytest.raises(ValueError, match="does not fit"):
        check_tokens(tokenizer, vocabulary, "x")


@pytest.mark.parametrize("gap", [0, 7])
def test_new_ids_start_where_the_embedding_matrix_ends_even_if_it_is_larger_than_the_tokenizer(tiny, gap):
    tokenizer = AutoTokenizer.from_pretrained(resolve(tiny.llm.name))
    vocabulary = SignalVocabulary(len(tokenizer) + gap, {Modality.AUDIO: 2})
    add_tokens(tokenizer, vocabulary, "x")
    assert tokenizer.convert_tokens_to_ids("[AUD1]") == vocabulary.total_size - 1
    assert tokenizer.decode([vocabulary.begin_item]) == "<Img>"


def test_a_tokenizer_larger_than_its_llm_is_refused(tiny):
    with pytest.raises(ValueError, match="embedding rows"):
        add_tokens(load_tokenizer(tiny), SignalVocabulary(500, {}), "x")


def test_nothing_a_user_types_becomes_a_special_or_signal_token(tokenizer):
    ids = encode_text(tokenizer, "draw [IMG0] <Img> </s> <s>")
    assert max(ids) < 512
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == "draw [IMG0] <Img> </s> <s>"


def test_a_tokenizer_that_writes_its_own_leading_space_does_not_write_two():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({"<unk>": 0, "\u2581dog": 1, "\u2581": 2, "\u2581a": 3}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>")
    assert encode_text(tokenizer, " dog") == encode_text(tokenizer, "dog") == [1]
