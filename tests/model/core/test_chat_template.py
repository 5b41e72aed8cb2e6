"""Dialogues in the words of the LLM's own template, beside what the tokenizer itself makes of them."""

from datetime import datetime

import pytest
from chat_families import FAMILIES, tokenizer_of
from dialogue_cases import dialogue, item
from hypothesis import given, settings
from hypothesis import strategies as st

from model.core.chat_template import chat_template
from model.core.dialogue import IGNORE, dialogue_lengths, encode_dialogue
from model.core.tokenizer import add_tokens
from model.core.vocabulary import SignalVocabulary
from pipelines.sample import Modality, Turn

GROUPS = {Modality.IMAGE: 4, Modality.AUDIO: 2}
OPTIONS = {"date_string": "26 Jul 2024", "enable_thinking": False}
TALK = dialogue(("hi there",), ("Yes, gladly.",), ("why?\n\nAnd how?",), ("So.\n\n* one\n* two",))
# What a template might do something with, and what tokens might grow over.
TEXTS = st.text(st.sampled_from("ab Z.\n\t#é🙂<|>[/]"), max_size=12).map(str.strip) | st.sampled_from(
    ["<|im_end|>", "a <|eot_id|> b", "</s>", "[INST]", "<|end|>", "<start_of_turn>", "### x", "hello there", "[IMG0]"]
)


class Noon(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return datetime(2024, 7, 26, 12, tzinfo=tz)


@pytest.fixture(autouse=True, scope="module")
def clock():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.chat_template_utils.datetime", Noon)
        yield


class Speaking:
    """A family's tokenizer with the new tokens, its template, and the tokenizer as it was."""

    def __init__(self, name: str) -> None:
        self.name, self.family = name, FAMILIES[name]
        self.bare, self.tokenizer = tokenizer_of(name), tokenizer_of(name)
        self.vocabulary = SignalVocabulary(len(self.bare) + 3, GROUPS)
        add_tokens(self.tokenizer, self.vocabulary, name)
        self.template = chat_template("auto", self.tokenizer)

    def encode(self, turns, tokens=2, length=10_000, **options):
        return encode_dialogue(
            turns, self.tokenizer, self.vocabulary, tokens, length, template=self.template, **options
        )

    def own(self, turns, system="", generation=False):
        """The tokens by the tokenizer's own `apply_chat_template`."""
        said = [{"role": "system", "content": system}] if system else []
        said += [{"role": turn.role, "content": " ".join(turn.parts)} for turn in turns]
        found = self.bare.apply_chat_template(
            said, tokenize=True, return_dict=False, add_generation_prompt=generation, **OPTIONS
        )
        return list(found)

    def learned(self, turns, **options):
        labels = self.encode(turns, **options).labels
        return self.tokenizer.decode([label for label in labels if label != IGNORE])


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def speaking(request):
    return Speaking(request.param)


def test_a_prompt_is_what_the_tokenizer_makes_of_it(speaking):
    prompt = speaking.encode(TALK[:1], for_generation=True)
    assert prompt.input_ids == speaking.own(TALK[:1], generation=True)
    assert set(prompt.labels) == {IGNORE}


def test_a_dialogue_is_what_the_tokenizer_makes_of_it(speaking):
    for turns in (TALK[:2], TALK):
        own = speaking.own(turns)
        if speaking.name == "phi3":  # ends a text, and no dialogue that goes on
            assert own.pop() == speaking.tokenizer.eos_token_id
        if speaking.name == "qwen3" and turns is TALK:
            # Of an earlier answer it drops what the prompt for it ended with: no prompt would begin as was learned.
            text = speaking.tokenizer.decode(speaking.encode(turns).input_ids)
            assert text.replace("<think>\n\n</think>\n\n", "", 1) == speaking.tokenizer.decode(own)
            continue
        assert speaking.encode(turns).input_ids == own


def test_the_system_has_a_turn_where_the_template_takes_one_else_it_stays_with_the_user(speaking):
    held = dialogue(("Be brief.\nhi there",), ("Yes.",))
    system, turns = speaking.template.without_system(held, ["Be brief."])
    if speaking.name in ("gemma2", "llama2"):
        assert (system, turns) == ("", held)
        return
    assert (system, turns) == ("Be brief.", list(dialogue(("hi there",), ("Yes.",))))
    prompt = speaking.encode(turns[:1], system=system, for_generation=True)
    assert prompt.input_ids == speaking.own(turns[:1], system, generation=True)


@pytest.mark.parametrize("words", ["Be brief.", ""])
def test_what_the_system_always_says_begins_a_dialogue_as_the_tokenizer_writes_it(speaking, words):
    if speaking.template.system is None:
        with pytest.raises(ValueError, match=r"has no turn of the system; leave llm\.system out"):
            chat_template("auto", speaking.tokenizer, words)
        return
    template = chat_template("auto", speaking.tokenizer, words)

    def prompted(system):
        prompt = encode_dialogue(
            *(TALK[:1], speaking.tokenizer, speaking.vocabulary, 2, 999),
            template=template,
            system=system,
            for_generation=True,
        )
        return prompt.input_ids

    said = [{"role": "system", "content": words}, {"role": "user", "content": "hi there"}]
    if words:  # of an empty one some templates write nothing, others a turn that says nothing
        own = speaking.bare.apply_chat_template(said, return_dict=False, add_generation_prompt=True, **OPTIONS)
        assert prompted("") == list(own)
    # A dialogue's own words of the system come instead.
    assert prompted("Be kind.") == speaking.own(TALK[:1], "Be kind.", generation=True)


def test_only_answers_and_what_ends_them_are_learned(speaking):
    assert speaking.learned(TALK[:2]).replace(" ", "") == f"Yes,gladly.{speaking.family.end}"
    encoded = speaking.encode(TALK)
    ends = [i for i, label in enumerate(encoded.labels) if label in speaking.template.ends]
    assert len(ends) == 2
    assert [speaking.tokenizer.decode([encoded.input_ids[i]]) for i in ends] == [speaking.family.end] * 2
    assert speaking.template.stop == ""


def test_items_stand_in_the_turns_and_signal_tokens_in_the_answers(speaking):
    turns = dialogue((item("image"), "and", item("audio"), "differ?"), ("Look:", item("image"), "there"), ("ok",))
    encoded = speaking.encode(turns, for_generation=True)
    for _, position in encoded.input_positions:
        assert encoded.input_ids[position - 1] == speaking.vocabulary.begin_item
        assert encoded.input_ids[position + 2] == speaking.vocabulary.end_item
    [(found, start, length)] = encoded.output_groups
    assert found.modality is Modality.IMAGE
    assert tuple(encoded.input_ids[start : start + length]) == speaking.vocabulary.group(Modality.IMAGE)
    text = speaking.tokenizer.decode(encoded.input_ids)
    assert "Look:[IMG0][IMG1][IMG2][IMG3] there" in text
    assert "</Img> and<Img>" in text
    assert "</Img> differ?" in text
    learned = speaking.encode(turns[:2])
    assert tuple(i for i in learned.labels if i >= speaking.vocabulary.base_size) == speaking.vocabulary.group(
        Modality.IMAGE
    )


@given(texts=st.lists(TEXTS, min_size=3, max_size=7), cut=st.integers(0, 120))
@settings(max_examples=25, deadline=None)
def test_a_later_prompt_begins_as_the_dialogue_was_learned_and_nothing_typed_is_a_token(speaking, texts, cut):
    turns = dialogue(*((text,) for text in texts))
    turns = turns[: len(turns) - 1 + len(turns) % 2]  # ends with the user
    prompt = speaking.encode(turns, for_generation=True).input_ids
    for end in range(2, len(turns), 2):
        whole = speaking.encode(turns[:end])
        assert prompt[: len(whole.input_ids)] == whole.input_ids
        earlier = speaking.encode(turns[: end - 1], for_generation=True).input_ids
        assert whole.input_ids[: len(earlier)] == earlier
        assert whole.labels[len(earlier)] != IGNORE
    empty = speaking.encode([Turn(role=turn.role, parts=()) for turn in turns], for_generation=True).input_ids
    special = {i for i, token in speaking.tokenizer.added_tokens_decoder.items() if token.special}
    assert [i for i in prompt if i in special] == [i for i in empty if i in special]
    short = speaking.encode(turns[:-1], length=cut)
    assert short.input_ids == speaking.encode(turns[:-1]).input_ids[:cut]
    lengths = dialogue_lengths(turns[:-1], speaking.tokenizer, speaking.vocabulary, 1, cut, template=speaking.template)
    assert lengths == (len(short.input_ids), len(speaking.encode(turns[:-1]).input_ids))


def test_a_sequence_begins_with_one_bos_or_none(speaking):
    bos, ids = speaking.tokenizer.bos_token_id, speaking.encode(TALK[:1], for_generation=True).input_ids
    own = speaking.own(TALK[:1], generation=True)
    assert ids.count(bos) == own.count(bos)
    if speaking.family.bos not in (None, "<|im_start|>"):
        assert ids[:2].count(bos) <= 1


def test_the_date_is_always_the_same(monkeypatch):
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", datetime)  # the clock goes on
    llama = Speaking("llama3")
    text = llama.tokenizer.decode(llama.encode(TALK[:1], for_generation=True).input_ids)
    assert "Today Date: 26 Jul 2024\n" in text
    smollm = Speaking("smollm3")
    text = smollm.tokenizer.decode(smollm.encode(TALK[:1], for_generation=True).input_ids)
    assert "Today Date: 26 July 2024\nReasoning Mode: /no_think" in text


def test_thoughts_are_left_out_by_the_prompt_and_stay_where_an_answer_has_them():
    qwen = Speaking("qwen3")
    turns = dialogue(("hi",), ("<think>\nhm\n</think>\n\nYes.",), ("why?",))
    text = qwen.tokenizer.decode(qwen.encode(turns, for_generation=True).input_ids)
    opening = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert text.count(opening) == 2
    assert f"{opening}<think>\nhm\n</think>\n\nYes.<|im_end|>\n" in text
    assert text.endswith(opening)


def test_a_template_that_opens_thoughts_is_followed_by_none():
    tokenizer = tokenizer_of("qwen3")
    prompt = "{{- '<|im_start|>assistant\\n' }}\n{%- if enable_thinking"
    assert prompt in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(
        prompt, "{{- '<|im_start|>assistant\\n<think>\\n' }}\n{%- if false and enable_thinking"
    )
    template = chat_template("auto", tokenizer)
    think, no_more = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert [piece for piece in template.opening if isinstance(piece, int)][-2:] == [think, no_more]
    assert template.opening[-1] == "\n\n"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "its tokenizer has no chat template; set llm.template: vicuna_v0"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "it ends an answer with no token of its own"),
        ("{{ messages[-1].content }}<|im_end|>", "it does not write each turn once, in order"),
        ("{% for m in messages %}{{ m.content[0]['text'] }}{% endfor %}", "cannot be used"),
        ("{% for m in", "cannot be used"),
    ],
)
def test_a_tokenizer_without_a_template_that_works_is_refused_in_one_line(template, said):
    tokenizer = tokenizer_of("qwen3")
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=said) as caught:
        chat_template("auto", tokenizer)
    assert "llm.template: vicuna_v0" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
