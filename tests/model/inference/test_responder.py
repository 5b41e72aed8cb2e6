"""Whole replies of the tiny model: media in, text and media out."""

from typing import Any

import numpy as np
import pytest
import torch
from decoder_cases import array_of
from dialogue_cases import dialogue, item

from model.core.nextgpt import NextGPT
from model.decoders import rendering
from model.inference.query import Query, Response, Sampling
from model.inference.responder import Responder
from model.parts.config import ModelConfig
from pipelines.sample import Audio, Decoded, Image, Item, Modality, Video

IMAGE, VIDEO, AUDIO = Modality.IMAGE, Modality.VIDEO, Modality.AUDIO
KINDS = {IMAGE: Image, VIDEO: Video, AUDIO: Audio}
ASK = dialogue(("show me a dog",))


def query(turns: Any = ASK, media: Any = None, require: Any = (), steps: int = 2, **sampling: Any) -> Query:
    return Query(
        turns=turns,
        media=media or {},
        require=require,
        sampling=Sampling(**{"max_new_tokens": 60, **sampling}),
        settings={modality: {"steps": steps} for modality in Modality},
    )


def noise(modality: Modality, seed: int = 0) -> Decoded:
    rng = np.random.default_rng(seed)
    if modality is AUDIO:
        return Audio(waveform=rng.uniform(-1, 1, (1, 8000)).astype(np.float32), sample_rate=16000)
    frames = rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    return Image(pixels=frames[0]) if modality is IMAGE else Video(frames=frames, fps=8.0)


def bytes_of(response: Response) -> list[bytes]:
    return [array_of(medium).tobytes() for medium in response.media]


@pytest.fixture(scope="module")
def responder(tiny: ModelConfig, tokenizer: Any) -> Responder:
    model = NextGPT.from_config(tiny)
    with torch.no_grad():  # so that replies hold items of the model's own
        for place in (2, 6):
            model.new_output_rows.weight[place] = 0.15 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    return Responder(model, tokenizer)


def test_a_reply_has_a_medium_for_each_of_its_items_in_order(responder: Responder) -> None:
    response = responder.respond(query(require=[AUDIO, IMAGE, VIDEO, IMAGE], max_new_tokens=90))
    items = [part.modality for part in response.parts if isinstance(part, Item)]
    assert len(items) >= 4
    assert [type(medium) for medium in response.media] == [KINDS[modality] for modality in items]
    assert response.text == " ".join(part for part in response.parts if isinstance(part, str))


def test_the_same_seed_makes_the_same_media_and_another_seed_others(responder: Responder) -> None:
    def respond(seed: int) -> Response:
        torch.rand(1)  # the global random state plays no part
        return responder.respond(query(require=[AUDIO, IMAGE, VIDEO], seed=seed, temperature=1.0))

    one, same, other = respond(3), respond(3), respond(4)
    assert one.parts == same.parts
    assert bytes_of(one) == bytes_of(same)
    assert bytes_of(one) != bytes_of(other)


def test_items_of_one_reply_have_seeds_of_their_own(responder: Responder) -> None:
    """Item k is rendered from seed + k."""
    response = responder.respond(query(require=[IMAGE, IMAGE], max_items=2, seed=5))
    [reply] = responder.reply_batch([query(require=[IMAGE, IMAGE], max_items=2, seed=5)])
    decoder = responder._decoders.decoder(IMAGE)
    for number, (medium, (_, condition_LD)) in enumerate(zip(response.media, reply.conditions, strict=True)):
        expected = array_of(decoder.generate(condition_LD, seed=5 + number, steps=2))
        np.testing.assert_allclose(array_of(medium).astype(int), expected.astype(int), atol=1)


def test_a_batch_gets_the_replies_of_each_alone(responder: Responder) -> None:
    media = {"a": noise(IMAGE), "b": noise(VIDEO), "c": noise(AUDIO)}
    queries = [
        query(require=[IMAGE], seed=7),
        query(dialogue((item("image", "a"), "and", item("audio", "c"), "?")), media, [AUDIO, IMAGE], seed=8, steps=3),
        query(dialogue(("hello",), ("here", item("video", "")), (item("video", "b"), "this?")), media, temperature=1.0),
    ]
    together = responder.respond_batch(queries)
    for asked, response in zip(queries, together, strict=True):
        alone = responder.respond(asked)
        assert response.parts == alone.parts
        assert response.untrained == alone.untrained
        for found, expected in zip(response.media, alone.media, strict=True):
            found, expected = array_of(found), array_of(expected)
            np.testing.assert_allclose(
                found.astype(float), expected.astype(float), atol=2 if found.dtype == np.uint8 else 1e-2
            )
    assert responder.respond_batch([]) == []


def test_many_items_are_rendered_in_batches_that_fit(responder: Responder, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [query(require=[IMAGE]), query(require=[IMAGE, IMAGE])]
    whole = responder.respond_batch(queries)
    monkeypatch.setattr(rendering, "_LATENTS_AT_ONCE", 4 * 8 * 8 * 2)  # two pictures of the tiny decoder
    for found, expected in zip(responder.respond_batch(queries), whole, strict=True):
        for one, other in zip(found.media, expected.media, strict=True):
            np.testing.assert_allclose(array_of(one).astype(float), array_of(other).astype(float), atol=2)


def test_what_the_user_gives_is_seen_and_history_may_hold_items_of_both(responder: Responder) -> None:
    turns = dialogue((item("image", "mine"), "what?"), ("This:", item("image", ""), item("audio", "")), ("Again!",))
    conditions = [
        array_of(responder.respond(query(turns, {"mine": noise(IMAGE, seed)}, [IMAGE])).media[-1]) for seed in (1, 2)
    ]
    assert not np.array_equal(*conditions)


def test_an_item_without_its_medium_is_refused(responder: Responder) -> None:
    with pytest.raises(ValueError, match=r"^dog: a turn refers to this item, but it is missing from media; add it$"):
        responder.respond(query(dialogue((item("image", "dog"), "what?")), {"cat": noise(IMAGE)}))


def test_untrained_parts_are_named_where_they_were_used(responder: Responder) -> None:
    text = responder.respond(query(max_items=0))
    assert text.untrained == ("builtin:tiny/llm",)
    assert text.media == ()
    whole = responder.respond(query(dialogue((item("audio", "x"), "?")), {"x": noise(AUDIO)}, [VIDEO], max_items=1))
    assert whole.untrained == ("builtin:tiny/llm", "builtin:tiny/imagebind", "builtin:tiny/video_decoder")


def test_parts_are_loaded_when_first_needed_and_kept(tiny: ModelConfig, tokenizer: Any) -> None:
    responder = Responder(NextGPT.from_config(tiny), tokenizer)
    responder.respond(query(max_items=0))
    assert "encoder" not in vars(responder)
    assert not responder._decoders.loaded
    kept = []
    for _ in range(2):
        responder.respond(query(dialogue((item("audio", "x"),)), {"x": noise(AUDIO)}, [IMAGE], max_items=1))
        kept.append((responder.encoder, responder._decoders.decoder(IMAGE)))
    assert kept[0] == kept[1]
    assert responder._decoders.loaded == {IMAGE}


def test_a_stream_yields_the_text_in_pieces_and_at_last_the_response(responder: Responder) -> None:
    asked = query(require=[IMAGE, AUDIO], seed=2)
    *parts, response = responder.stream(asked)
    expected = responder.respond(asked)
    assert isinstance(response, Response)
    assert response.parts == expected.parts
    assert bytes_of(response) == bytes_of(expected)
    pieces = [part for part in parts if isinstance(part, str)]
    assert "".join(pieces) == response.text
    assert len(pieces) > 3
    assert [part for part in parts if isinstance(part, Item)] == [p for p in response.parts if isinstance(p, Item)]


def test_what_goes_wrong_in_a_stream_comes_out_of_it(responder: Responder) -> None:
    with pytest.raises(ValueError, match="last turn must be the user's"):
        list(responder.stream(query(dialogue(("hi",), ("hello",)))))


@pytest.mark.gpu
def test_replies_on_a_gpu_are_whole_and_repeatable(tiny: ModelConfig, tokenizer: Any) -> None:
    responder = Responder(NextGPT.from_config(tiny, device="cuda"), tokenizer)
    queries = [
        query(require=[IMAGE, VIDEO, AUDIO], temperature=1.0),
        query(dialogue((item("image", "a"), "?")), {"a": noise(IMAGE)}, [IMAGE], temperature=1.0),
    ]
    one, two = (responder.respond_batch(queries) for _ in range(2))
    assert [response.parts for response in one] == [response.parts for response in two]
    assert {type(medium) for response in one for medium in response.media} == {Image, Video, Audio}
