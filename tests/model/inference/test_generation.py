from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from dialogue_cases import CAPTION, MIXED, REQUEST, dialogue, item, make_example
from generation_cases import (
    ASK,
    AUDIO,
    IMAGE,
    VIDEO,
    assert_alike,
    fed,
    lively,
    prompts_of_many_kinds,
    saying,
)
from hypothesis import given
from hypothesis import strategies as st
from llm_families import FAMILIES, family_config
from transformers import AutoTokenizer

from model.core.batch import collate
from model.core.dialogue import encode_dialogue
from model.core.nextgpt import NextGPT
from model.core.tokenizer import encode_text, load_tokenizer
from model.inference.decoding import Draw, drawn
from model.inference.generation import generate, generate_batch
from model.inference.query import Query, Sampling, wishes
from model.parts.builtin import resolve
from pipelines.sample import Item, Modality, Turn


def answer_batch(model, tokenizer, prompts, seed=0, on_part=None, **options):
    """Row r is drawn from seed + r."""
    prompts = [replace(p, sampling=Sampling(seed=seed + row, **options)) for row, p in enumerate(prompts)]
    return generate_batch(model, tokenizer, prompts, on_part=on_part)


def one_by_one(model, tokenizer, prompts, seed=0, **options):
    return [
        generate(model, tokenizer, p.turns, p.features, require=p.require, seed=seed + row, **options)
        for row, p in enumerate(prompts)
    ]


def say(model, tokenizer, ids, then=None, turns=ASK, features=None, **options):
    with saying(model, ids, tokenizer.eos_token_id if then is None else then):
        return generate(model, tokenizer, turns, features, **{"max_new_tokens": 60, **options})


def first(model, modality):
    return model.vocabulary.group(modality)[0]


def test_a_reply_holds_text_and_items_in_order_with_a_condition_each(model, tokenizer):
    said = [
        *encode_text(tokenizer, " a dog"),
        first(model, IMAGE),
        *encode_text(tokenizer, " and its bark"),
        first(model, AUDIO),
        *encode_text(tokenizer, "\n###"),
    ]
    reply = say(model, tokenizer, said)
    assert reply.parts == ("a dog", Item(modality=IMAGE), "and its bark", Item(modality=AUDIO))
    assert reply.text == "a dog and its bark"
    assert [(modality, condition.shape) for modality, condition in reply.conditions] == [
        (IMAGE, (77, 64)),
        (AUDIO, (1, 32)),
    ]
    assert all(condition.dtype == np.float32 for _, condition in reply.conditions)


@pytest.mark.parametrize("turns", [REQUEST, MIXED])
def test_conditions_are_those_of_teacher_forcing(model, tokenizer, turns):
    example = make_example(turns, tokenizer, model)
    prompt = encode_dialogue(turns[:-1], tokenizer, model.vocabulary, 1, 512, for_generation=True)
    answer = example.dialogue.input_ids[len(prompt.input_ids) :]
    signals = {i for m in Modality for i in model.vocabulary.group(m)[1:]}
    said = [token for token in answer if token not in signals]
    reply = say(model, tokenizer, said, turns=turns[:-1], features=example.features)
    assert [part for part in reply.parts if isinstance(part, str)] == [p for p in turns[-1].parts if isinstance(p, str)]
    with torch.inference_mode():
        taught = model.eval()(collate([example])).conditions
    assert reply.conditions
    for modality, condition in reply.conditions:
        np.testing.assert_allclose(condition, taught[modality][-1], atol=1e-5)


def test_the_same_request_gets_the_same_reply(model, tokenizer):
    one, two = (
        generate(model, tokenizer, CAPTION[:1], np.ones((1, 32), np.float32), max_new_tokens=30, require=[VIDEO])
        for _ in range(2)
    )
    assert one.parts == two.parts
    np.testing.assert_array_equal(one.conditions[0][1], two.conditions[0][1])


@pytest.mark.parametrize("written", [["\n###"], ["\n", "###"], ["\n#", "##"], ["\n", "#", "#", "#"], [" ###"]])
def test_a_reply_stops_at_the_mark_however_it_is_cut(model, tokenizer, written):
    said = encode_text(tokenizer, " a dog.")
    said += [i for text in written for i in tokenizer.encode(text, add_special_tokens=False)]
    reply = say(model, tokenizer, said, then=encode_text(tokenizer, "x")[0])
    assert reply.text == "a dog."


@pytest.mark.parametrize("seed", range(6))
def test_signal_tokens_come_in_whole_groups_and_other_special_tokens_not_at_all(model, tokenizer, seed):
    vocabulary = model.vocabulary
    inner = [i for m in Modality for i in vocabulary.group(m)[1:]]
    wanted = [vocabulary.begin_item, vocabulary.end_item, tokenizer.bos_token_id, tokenizer.pad_token_id, *inner]
    with saying(model, wanted, wanted[seed]), fed(model) as seen:
        # So hot that every token which is possible comes.
        reply = generate(model, tokenizer, ASK, None, max_new_tokens=200, temperature=1e6, seed=seed)
    prompt, *pieces = seen
    if reply.conditions:
        assert pieces.pop()[: len(prompt)] == prompt
    groups = [tuple(piece) for piece in pieces if len(piece) > 1]
    assert set(groups) <= {vocabulary.group(modality) for modality in Modality}
    assert len(reply.conditions) - len(groups) in (0, 1)  # the last one may leave no room to read on
    words = {piece[0] for piece in pieces if len(piece) == 1}
    assert max(words) < vocabulary.base_size
    assert not words & {tokenizer.bos_token_id, tokenizer.pad_token_id}


@pytest.mark.parametrize("budget", [23, 24, 25, 47, 48])
def test_a_group_has_room_or_is_not_begun(model, tokenizer, budget):
    reply = say(model, tokenizer, [], then=first(model, VIDEO), max_new_tokens=budget)
    assert len(reply.conditions) == budget // 24


def test_required_items_come_at_the_end_unless_the_model_brings_them(model, tokenizer):
    text = encode_text(tokenizer, " here")
    stop = encode_text(tokenizer, "\n###")
    reply = say(model, tokenizer, [*text, first(model, AUDIO), *stop], require=[IMAGE, AUDIO])
    assert reply.parts == ("here", Item(modality=AUDIO), Item(modality=IMAGE))
    assert [modality for modality, _ in reply.conditions] == [AUDIO, IMAGE]


def test_a_required_item_is_conditioned_as_if_it_stood_before_the_stop_mark(model, tokenizer):
    example = make_example(dialogue(("show me a dog",), ("here", item("image"))), tokenizer, model)
    said = [*encode_text(tokenizer, " here"), *encode_text(tokenizer, "\n###")]
    reply = say(model, tokenizer, said, require=[IMAGE])
    with torch.inference_mode():
        taught = model.eval()(collate([example])).conditions[IMAGE][0]
    np.testing.assert_allclose(reply.conditions[0][1], taught, atol=1e-5)


def test_a_reply_that_repeats_itself_holds_no_more_items_than_it_may(model, tokenizer):
    options = {"then": first(model, AUDIO), "max_new_tokens": 60}
    assert [m for m, _ in say(model, tokenizer, [], max_items=2, **options).conditions] == [AUDIO, AUDIO]
    reply = say(model, tokenizer, [], max_items=2, require=[IMAGE], **options)
    assert [m for m, _ in reply.conditions] == [AUDIO, IMAGE]


def test_room_is_kept_for_required_items(model, tokenizer):
    endless = encode_text(tokenizer, "x")[0]
    reply = say(model, tokenizer, [], then=endless, max_new_tokens=30, require=[VIDEO])
    assert reply.parts == ("x" * 6, Item(modality=VIDEO))
    reply = say(model, tokenizer, [], then=first(model, AUDIO), max_new_tokens=30, require=[VIDEO])
    assert [modality for modality, _ in reply.conditions] == [VIDEO]
    with pytest.raises(ValueError, match="max_new_tokens is 30, but the reply needs at least 48"):
        generate(model, tokenizer, ASK, None, max_new_tokens=30, require=[VIDEO, VIDEO])


def test_the_seed_decides_what_isdrawn(model, tokenizer):
    def reply(seed):
        return generate(model, tokenizer, ASK, None, max_new_tokens=20, temperature=1.0, seed=seed).text

    assert reply(1) == reply(1)
    assert len({reply(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("request_text", ["show me a dog", "hello", "###"])
def test_cached_decoding_takes_the_likeliest_tokens_of_the_whole_sequence(model, tokenizer, request_text):
    turns = dialogue((request_text,))
    prompt = encode_dialogue(turns, tokenizer, model.vocabulary, 1, 512, for_generation=True).input_ids
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(3):  # too few for a group
            logits_V = model.logits(model.run_llm(model.embed(torch.tensor([ids]))).last_hidden_state[0, -1])
            logits_V[[0, 1, 3, *range(model.vocabulary.base_size, model.vocabulary.total_size)]] = -torch.inf
            ids.append(int(logits_V.argmax()))
    with fed(model) as seen:
        generate(model, tokenizer, turns, None, max_new_tokens=3)
    assert list(chain.from_iterable(seen))[: len(ids) - 1] == ids[:-1]


def test_the_oldest_exchanges_leave_when_the_dialogue_is_too_long(model, tokenizer):
    old = dialogue(("x " * 600, item("image")), ("yes",))
    new = Turn(role="user", parts=("and", item("image")))
    features = np.stack([np.zeros(32), np.ones(32)]).astype(np.float32)
    options = {"max_new_tokens": 40, "require": [AUDIO]}
    long = generate(model, tokenizer, (*old, new), features, **options)
    short = generate(model, tokenizer, (new,), features[1:], **options)
    assert long.parts == short.parts
    np.testing.assert_array_equal(long.conditions[0][1], short.conditions[0][1])
    with pytest.raises(ValueError, match="shorten"):
        generate(model, tokenizer, dialogue(("x " * 600,)), None, max_new_tokens=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": np.zeros((1, 32))}, "features for 1 items"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"turns": REQUEST}, "last turn must be the user's"),
    ],
)
def test_a_mistaken_request_is_refused(model, tokenizer, options, message):
    arguments = {"turns": ASK, "features": None, "max_new_tokens": 5, **options}
    with pytest.raises(ValueError, match=message):
        generate(model, tokenizer, arguments.pop("turns"), arguments.pop("features"), **arguments)


def test_a_model_in_training_stays_in_training(model, tokenizer):
    model.train()
    generate(model, tokenizer, ASK, None, max_new_tokens=2)
    assert model.training


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_a_batch_gets_the_replies_that_its_prompts_get_alone(model, tokenizer, temperature):
    lively(model, tokenizer)
    prompts = prompts_of_many_kinds()
    options = {"max_new_tokens": 60, "temperature": temperature, "seed": 5}
    replies = answer_batch(model, tokenizer, prompts, **options)
    assert_alike(replies, one_by_one(model, tokenizer, prompts, **options))
    unasked = [reply for reply, prompt in zip(replies, prompts, strict=True) if reply.conditions and not prompt.require]
    assert unasked, "some bring items forth themselves, so that groups are read while neighbours speak"
    assert len({len(reply.text) for reply in replies}) > 4
    assert len({len(reply.conditions) for reply in replies}) > 2


@given(
    weights=st.lists(st.integers(1, 1000), min_size=2, max_size=8, unique=True),
    top_p=st.floats(0.01, 1),
    seed=st.integers(0, 2**32),
)
def test_what_is_drawn_is_among_the_fewest_likeliest_that_add_up_to_top_p(weights, top_p, seed):
    weights_V = np.array(weights, np.float64)
    is_drawn, [token] = drawn(
        torch.tensor(weights_V).log()[None], [Draw(Sampling(temperature=1.0, top_p=top_p, seed=seed))]
    )
    assert is_drawn.tolist() == [True]
    likelier = weights_V[weights_V > weights_V[token]].sum() / weights_V.sum()
    assert likelier < top_p + 1e-9


def test_tokens_within_top_p_are_drawn_in_their_proportions():
    logits_BV = torch.tensor([0.5, 0.05, 0.3, 0.15]).log().expand(2, 4)
    draws = [Draw(Sampling(temperature=1.0, top_p=0.7)), Draw(Sampling(temperature=0.5, seed=1))]
    tokens = torch.stack([drawn(logits_BV, draws)[1] for _ in range(4000)])
    shares = [torch.bincount(tokens[:, row], minlength=4) / len(tokens) for row in range(2)]
    np.testing.assert_allclose(shares[0], [0.625, 0, 0.375, 0], atol=0.03)
    squares = np.square([0.5, 0.05, 0.3, 0.15])
    np.testing.assert_allclose(shares[1], squares / squares.sum(), atol=0.03)


def test_rows_of_a_batch_are_drawn_each_in_its_own_way(model, tokenizer):
    ways = [{}, {"temperature": 1.0, "seed": 4}, {"temperature": 2.0, "top_p": 0.5}, {"max_new_tokens": 7}]
    prompts = [Query(turns=ASK, sampling=Sampling(**{"max_new_tokens": 30, **way})) for way in ways]
    replies = generate_batch(model, tokenizer, prompts)
    assert_alike(replies, [generate_batch(model, tokenizer, [prompt])[0] for prompt in prompts])
    assert len({reply.text for reply in replies}) == len(ways)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_of_llms_answers_in_batches(family, tiny, tmp_path):
    config = family_config(tmp_path, family, tiny, AutoTokenizer.from_pretrained(resolve(tiny.llm.name)))
    model, tokenizer = NextGPT.from_config(config), load_tokenizer(config)
    prompts, options = prompts_of_many_kinds(), {"max_new_tokens": 48}
    replies = answer_batch(model, tokenizer, prompts, **options)
    assert_alike(replies, one_by_one(model, tokenizer, prompts, **options))


def test_a_group_is_read_whole_or_token_by_token_beside_others_alike(model, tokenizer):
    """Alone it is read at once; beside a row that speaks, one token at a time."""
    vocabulary, words = model.vocabulary, encode_text(tokenizer, " a dog")
    script = {0: [first(model, VIDEO), *words], 1: words * 9}
    original = model.logits

    def logits(hidden_BH):
        """The row that reads its group does not come here, so who speaks is told by how far they are."""
        values = original(hidden_BH).clone()
        rows = [0, 1] if len(values) == 2 else [0 if not script[1] else 1]
        for place, row in enumerate(rows[: len(values)]):
            values[place, script[row].pop(0) if script[row] else tokenizer.eos_token_id] += 1e4
        return values

    model.logits = logits
    with fed(model) as seen:
        one, two = answer_batch(
            model,
            tokenizer,
            [Query(turns=ASK), Query(turns=CAPTION[:1], features=np.ones((1, 32)))],
            max_new_tokens=60,
        )
    assert one.parts == (Item(modality=VIDEO), "a dog")
    assert two.text == " ".join(["a dog"] * 9)
    assert len(one.conditions) == 1
    read = [piece for piece in seen if len(piece) == 2]
    assert [piece[0] for piece in read[:24]] == list(vocabulary.group(VIDEO))


def test_no_prompts_get_no_replies(model, tokenizer):
    assert answer_batch(model, tokenizer, [], max_new_tokens=5) == []


def test_a_mistaken_prompt_of_a_batch_is_named(model, tokenizer):
    prompts = [Query(turns=ASK), Query(turns=REQUEST)]
    with pytest.raises(ValueError, match=r"^prompt 2: the last turn must be the user's$"):
        answer_batch(model, tokenizer, prompts, max_new_tokens=5)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e6])
def test_parts_are_told_in_place_and_their_texts_joined_are_the_replys(model, tokenizer, temperature):
    lively(model, tokenizer)
    prompts, told = prompts_of_many_kinds(), []
    options = {"max_new_tokens": 60, "temperature": temperature}
    replies = answer_batch(model, tokenizer, prompts, on_part=lambda *part: told.append(part), **options)
    assert_alike(replies, answer_batch(model, tokenizer, prompts, **options))
    for row, reply in enumerate(replies):
        parts = [part for number, part in told if number == row]
        assert "".join(part for part in parts if isinstance(part, str)) == reply.text
        assert merged(parts) == list(reply.parts)
    rows = [row for row, _ in told]
    assert rows != sorted(rows), "neighbours are told as they come"


def merged(parts):
    """Pieces of text that stand together as one."""
    texts = [""]
    for part in parts:
        texts[-1:] = [texts[-1] + part] if isinstance(part, str) else [texts[-1], part, ""]
    return [
        part.strip() if isinstance(part, str) else part for part in texts if not isinstance(part, str) or part.strip()
    ]


@pytest.mark.parametrize("text", ["a dog", "Größe: 5 € ☂🐕!", "a # b ## c", "  two  spaces\n\nand lines  ", "#"])
@pytest.mark.parametrize("end", ["\n###", "", "\n #"])
def test_a_piece_of_text_is_never_taken_back(model, tokenizer, text, end):
    told = []
    said = [i for char in text + end for byte in char.encode() for i in bytes_to_ids(tokenizer, byte)]
    with saying(model, said, tokenizer.eos_token_id):
        [reply] = answer_batch(
            model, tokenizer, [Query(turns=ASK)], max_new_tokens=90, on_part=lambda row, part: told.append(part)
        )
    assert reply.text == (text + end).strip().removesuffix("###").strip()
    assert "".join(told) == reply.text
    assert len(told) >= sum(char.isalnum() for char in text), "as it comes"
    assert not any("\ufffd" in piece for piece in told)


def bytes_to_ids(tokenizer, byte):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [tokenizer.convert_tokens_to_ids(bytes_to_unicode()[byte])]


def test_a_reply_brings_the_null_conditions_that_its_model_learned(tiny, tokenizer):
    values = tiny.model_dump(mode="json")
    values["outputs"]["image"]["null"] = "learned"
    model = NextGPT.from_config(type(tiny).model_validate(values))
    query = Query(turns=ASK, require=[VIDEO, IMAGE])
    [reply] = generate_batch(model, tokenizer, [query])
    expected = model.null_conditions()[IMAGE].detach().numpy()
    np.testing.assert_allclose(reply.negatives[IMAGE], expected, atol=1e-5)
    video, image = wishes(query, reply)
    assert video.negative is None, "the decoder's own embedding of an empty text"
    assert image.negative is reply.negatives[IMAGE]
    assert (video.seed, image.seed) == (0, 1)
