"""Dialogues as their publishers lay them out: who speaks, what stands where, and the same by both readers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.sample import Item, Modality, Reject, Sample
from pipelines.sources.conversations import read_prompts
from pipelines.sources.entry import Entry

Read = Callable[..., list[Any]]
Turns = list[tuple[str, tuple[str | Item, ...]]]

IMAGE, VIDEO, AUDIO = Modality.IMAGE, Modality.VIDEO, Modality.AUDIO
NO_ORDER = "bad conversation: user and assistant must take turns, the user first"


def turns(result: Sample | Reject) -> Turns:
    assert isinstance(result, Sample), result
    return [(turn.role, turn.parts) for turn in result.turns]


def asked(*questions: str | Item, answer: str | Item = "Yes.") -> Turns:
    return [("user", questions), ("assistant", (answer,))]


def talk(*said: tuple[str, Any], **fields: Any) -> dict[str, dict[str, Any]]:
    """One dialogue in both spellings."""
    return {
        "conversations": {"conversations": [{"from": who, "value": what} for who, what in said]} | fields,
        "chats": {"messages": [{"role": who, "content": what} for who, what in said]} | fields,
    }


@pytest.fixture(params=["conversations", "chats"])
def reads(request: pytest.FixtureRequest, read: Read) -> Callable[[dict[str, dict[str, Any]]], Any]:
    """Reads a dialogue with one of the readers, in its own spelling; in the other's it must be the same."""

    def run(rows: dict[str, dict[str, Any]]) -> Any:
        [result] = read(request.param, [rows[request.param]])
        for row in rows.values():
            [other] = read(request.param, [row])
            assert getattr(other, "turns", other) == getattr(result, "turns", result)
        return result

    return run


Reads = Callable[[dict[str, dict[str, Any]]], Any]
A, B, C = (Item(modality=IMAGE, name=name) for name in ("a.jpg", "b.jpg", "c.jpg"))
FILM = Item(modality=VIDEO, name="a.mp4")


@pytest.mark.parametrize(
    ("user", "assistant"),
    [
        ("human", "gpt"),
        ("user", "assistant"),
        ("Human", "Assistant"),
        ("User", "bot"),
        ("USER", "GPT"),
        ("user", "model"),
        ("human", "chatgpt"),
        ("human", "bing"),
        ("human", "bard"),
    ],
)
def test_speakers_are_known_by_any_usual_name(reads: Reads, user: str, assistant: str) -> None:
    assert turns(reads(talk((user, "<image>\nWell?"), (assistant, "Yes."), image="a.jpg"))) == asked(A, "Well?")


@pytest.mark.parametrize("speaker", ["system", "System", "developer"])
def test_a_system_turn_is_kept_in_front_of_the_users_words_and_told_from_them(reads: Reads, speaker: str) -> None:
    sample = reads(talk((speaker, "You are kind."), ("human", "<image>\nx"), ("gpt", "y"), image="a.jpg"))
    assert turns(sample) == asked("You are kind.", A, "x", answer="y")
    assert sample.meta == {"system": ["You are kind."]}
    sample = reads(talk((speaker, "You are kind."), ("human", "x"), ("gpt", "y"), image="a.jpg"))
    assert turns(sample) == asked("You are kind.", A, "x", answer="y"), "a medium without placeholder is the user's"
    sample = reads(talk((speaker, "Be kind."), (speaker, "Be brief."), ("human", "x"), ("gpt", "y")))
    assert turns(sample) == asked("Be kind.\nBe brief.\nx", answer="y")
    assert sample.meta == {"system": ["Be kind.", "Be brief."]}


def test_a_system_turn_between_question_and_answer_is_never_learned_as_the_answer(reads: Reads) -> None:
    said = [("human", "a"), ("system", "Be kind."), ("gpt", "b"), ("system", "Be brief."), ("human", "c"), ("gpt", "d")]
    sample = reads(talk(*said))
    assert [turn.parts for turn in sample.turns] == [("a\nBe kind.",), ("b",), ("Be brief.\nc",), ("d",)]
    assert sample.meta == {"system": ["Be kind.", "Be brief."]}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([("human", "a"), ("gpt", "b"), ("system", "s")], "bad conversation: a system message is followed by no user"),
        ([("system", "s"), ("gpt", "a"), ("human", "b")], NO_ORDER),
        ([("system", "s"), ("human", "a")], NO_ORDER),
        ([("gpt", "Hi"), ("human", "a"), ("gpt", "b")], NO_ORDER),
        ([("human", "a"), ("human", "b"), ("gpt", "c")], NO_ORDER),
        ([("human", "a"), ("function", "b")], "bad conversation: unknown speaker 'function'"),
        ([("human", "How many?"), ("gpt", 3)], "bad field: content is neither text nor a list of parts"),
        ([("human", "a"), ("gpt", "")], "empty turn: the assistant says nothing"),
    ],
)
def test_what_is_no_dialogue_is_rejected_with_the_same_reason(reads: Reads, said: Any, reason: str) -> None:
    assert reads(talk(*said)).reason == reason


def test_html_is_text_in_rows_without_media(reads: Reads) -> None:
    without: list[dict[str, Any]] = [{}, {"image": None}, {"images": []}, {"image": ""}]
    for media in without:
        sample = reads(talk(("human", "Write HTML"), ("gpt", "Use <video> and <image> tags: `<video>`"), **media))
        assert turns(sample) == asked("Write HTML", answer="Use <video> and <image> tags: `<video>`")
    question = "What does the <image> tag do in XML?"
    assert turns(reads(talk(("human", question), ("gpt", "Yes.")))) == asked(question)
    page = "<video>\n  <source src='a.mp4'>\n</video>\nWhy is it black?"
    assert turns(reads(talk(("human", page), ("gpt", "Yes.")))) == asked(page)


@pytest.mark.parametrize("mark", ["<image>", "<video>", "<audio>"])
def test_a_row_that_has_lost_its_medium_is_not_text(reads: Reads, mark: str) -> None:
    for question in (f"{mark}\nWhat is it?", f"{mark} What is it?", f"What is it?\n{mark}", mark):
        reason = reads(talk(("human", question), ("gpt", "A bus."))).reason
        assert reason == f"missing medium: the row names none for a placeholder {mark}"


@pytest.mark.parametrize("field", ["image", "images", "input_image", "image_name"])
def test_several_images_of_a_row_take_their_placeholders_in_order(reads: Reads, field: str) -> None:
    said = [("human", "<image>\n<image>\nCompare"), ("gpt", "Yes."), ("human", "And <image>?"), ("gpt", "No.")]
    sample = reads(talk(*said, **{field: ["a.jpg", "b.jpg", "c.jpg"]}))
    assert [turn.parts for turn in sample.turns] == [(A, B, "Compare"), ("Yes.",), ("And", C, "?"), ("No.",)]


@pytest.mark.parametrize("mark", ["<Image>", "<IMAGE>"])
def test_a_placeholder_is_one_in_any_case(reads: Reads, mark: str) -> None:
    assert turns(reads(talk(("human", f"{mark}\nx"), ("gpt", "Yes."), image="a.jpg"))) == asked(A, "x")


def test_a_field_that_names_nothing_hides_no_other(reads: Reads) -> None:
    nothing: list[Any] = [[], "", None]
    for empty in nothing:
        sample = reads(talk(("human", "<image>\nx"), ("gpt", "Yes."), images=empty, image="a.jpg"))
        assert turns(sample) == asked(A, "x")
    lost = reads(talk(("human", "<image>\nx"), ("gpt", "Yes."), image=""))
    assert lost.reason == "missing medium: the row names none for a placeholder <image>"
    blank = reads(talk(("human", "<image>\nx"), ("gpt", "Yes."), image=["a.jpg", ""]))
    assert blank.reason == "empty image name"


def test_all_turns_may_show_one_image(reads: Reads) -> None:
    said = [("human", "Look <image> there"), ("gpt", "Yes."), ("human", "again <image> please"), ("gpt", "No.")]
    sample = reads(talk(*said, image="a.jpg"))
    assert [turn.parts for turn in sample.turns] == [("Look", A, "there"), ("Yes.",), ("again", A, "please"), ("No.",)]


@pytest.mark.parametrize("field", ["video", "videos", "video_name"])
def test_the_placeholder_of_a_video_may_be_that_of_an_image(reads: Reads, field: str) -> None:
    said = [("human", "<image>\nWhat happens?"), ("gpt", "Yes."), ("human", "<image> And then?"), ("gpt", "No.")]
    sample = reads(talk(*said, **{field: "a.mp4"}))
    assert [turn.parts for turn in sample.turns] == [(FILM, "What happens?"), ("Yes.",), (FILM, "And then?"), ("No.",)]


def test_where_a_row_has_both_an_image_placeholder_is_an_image_first(reads: Reads) -> None:
    both = {"image": "a.jpg", "video": "a.mp4"}
    assert turns(reads(talk(("human", "<image> or <video>?"), ("gpt", "Yes."), **both))) == asked(A, "or", FILM, "?")
    assert turns(reads(talk(("human", "<image> or <image>?"), ("gpt", "Yes."), **both))) == asked(A, "or", FILM, "?")
    reject = reads(talk(("human", "<image> in <video>?"), ("gpt", "Yes."), video="a.mp4"))
    assert reject.reason == "missing medium: the row names none for a placeholder <image>"


def test_content_parts_are_read_by_both(reads: Reads) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image", "image": "c.jpg"}, {"type": "image"}]
    assert turns(reads(talk(("user", parts), ("assistant", "Yes."), images=["a.jpg", "b.jpg"]))) == asked(
        A, "and", C, B
    )
    named = [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "Well?"}]
    both = reads(talk(("user", named), ("assistant", "Yes."), images=["a.jpg"]))
    assert turns(both) == asked(A, "Well?"), "the row lists what its parts name"


def test_a_prompt_needs_no_answer_for_what_it_asks_for(tmp_path: Path) -> None:
    row = {"messages": [{"role": "User", "content": "<image> Draw."}], "images": ["a.jpg"], "image_captions": ["cat"]}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    entry = Entry(name="rows", reader="chats", paths=["rows.json"])
    [sample] = read_prompts(entry, tmp_path / "rows.json")
    assert turns(sample) == [("user", (A, "Draw."))]


LAYOUTS: dict[str, tuple[str, dict[str, Any], Turns]] = {
    "LLaVA-Instruct": (
        "conversations",
        {"id": "000000033471", "image": "000000033471.jpg", "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
            {"from": "gpt", "value": "White and red."},
            {"from": "human", "value": "Is it moving?"},
            {"from": "gpt", "value": "Yes."}]},
        [*asked(Item(modality=IMAGE, name="000000033471.jpg"), "What are the colors of the bus?",
                answer="White and red."), *asked("Is it moving?")],
    ),
    "LLaVA-1.5 mix, placeholder behind the question": (
        "conversations",
        {"id": "VG_100K_2/1", "image": "vg/VG_100K_2/1.jpg", "conversations": [
            {"from": "human", "value": "Is there a cat?\n<image>"}, {"from": "gpt", "value": "Yes."}]},
        asked("Is there a cat?", Item(modality=IMAGE, name="vg/VG_100K_2/1.jpg")),
    ),
    "LLaVA-Video": (
        "conversations",
        {"id": "a", "data_source": "0_30_s_youtube_v0_1", "video": "liwei/ytb_a.mp4", "conversations": [
            {"from": "human", "value": "<image>\nWhat happens?"}, {"from": "gpt", "value": "Yes."}]},
        asked(Item(modality=VIDEO, name="liwei/ytb_a.mp4"), "What happens?"),
    ),
    "Video-LLaVA": (
        "conversations",
        {"id": 0, "video": "videochatgpt_tune/v_1.mp4", "conversations": [
            {"from": "human", "value": "What is shown?\n<video>"}, {"from": "gpt", "value": "Yes."}]},
        asked("What is shown?", Item(modality=VIDEO, name="videochatgpt_tune/v_1.mp4")),
    ),
    "VideoChat": (
        "videochat",
        {"video": "010101/1.mp4", "QA": [{"i": "Look.", "q": "What is it?", "a": "A dog."}, {"q": "So?", "a": "Yes."}]},
        [*asked(Item(modality=VIDEO, name="010101/1.mp4"), "Look.\nWhat is it?", answer="A dog."), *asked("So?")],
    ),
    "ShareGPT": (
        "conversations",
        {"id": "QWJhYvA_0", "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Center a <video> in CSS."}, {"from": "gpt", "value": "Yes."}]},
        asked("Be brief.\nCenter a <video> in CSS."),
    ),
    "Vicuna": (
        "conversations",
        {"id": "identity_0", "conversations": [{"from": "human", "value": "Who are you?"},
                                               {"from": "gpt", "value": "I am Vicuna."}]},
        asked("Who are you?", answer="I am Vicuna."),
    ),
    "ShareGPT, read as instructions": (
        "alpaca",
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "Human", "value": "<video>?"},
                           {"from": "chatgpt", "value": "Yes."}]},
        asked("Be brief.\n<video>?"),
    ),
    "MosIT": (
        "mosit",
        {"image_list": [], "video_list": [],
         "audio_list": [{"audio_name": "mosit_a_1.wav", "data_source": "web", "caption": "rain"}],
         "conversation": [{"from": "human", "value": "Hear <Audio>mosit_a_1.wav</Audio>"},
                          {"from": "gpt", "value": "<Image>a wet street</Image>"}]},
        asked("Hear", Item(modality=AUDIO, name="audios/mosit_a_1.wav", caption="rain"),
              answer=Item(modality=IMAGE, caption="a wet street")),
    ),
    "MosIT with a system turn that speaks of tags": (
        "mosit",
        {"conversation": [{"from": "system", "value": "Write <Image> before a caption."},
                          {"from": "human", "value": "See <Image>a cat</Image>"}, {"from": "gpt", "value": "Yes."}]},
        asked("Write <Image> before a caption.\nSee", Item(modality=IMAGE, caption="a cat")),
    ),
    "T-T+X": (
        "t2x",
        {"conversation": [{"from": "system", "value": "Be kind."},
                          {"from": "human", "value": "Play rain.", "input_modality": "text"},
                          {"from": "gpt", "value": "", "caption": "rain", "output_modality": "audio"}]},
        asked("Be kind.\nPlay rain.", answer=Item(modality=AUDIO, caption="rain")),
    ),
    "LLaMA-Factory's sharegpt with OpenAI's names": (
        "chats",
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "<image>Who is it?"},
                      {"role": "assistant", "content": "Yes."}], "images": ["a.jpg"]},
        asked("Be kind.", A, "Who is it?"),
    ),
    "OpenAI's fine-tuning": (
        "chats",
        {"messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Who?"},
                                         {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}]},
        asked("Be kind.\nWho?", A),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_is_read_as_its_publisher_means_it(read: Read, name: str) -> None:
    reader, row, expected = LAYOUTS[name]
    [sample] = read(reader, [row])
    assert turns(sample) == expected
