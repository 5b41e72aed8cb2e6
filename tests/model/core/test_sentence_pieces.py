"""Vicuna's tokenizer as it is published, beside SentencePiece's own encoding of the same texts."""

import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from model.checkpoints import checkpoint
from model.core.dialogue import encode_dialogue
from model.core.nextgpt import NextGPT
from model.core.tokenizer import encode_text, load_tokenizer, load_vocabulary
from model.inference.answers import Detokenizer
from model.parts.config import ModelConfig, load_preset
from pipelines.sample import Item, Modality, Turn
from tests.model.vicuna_folder import VOCAB_SIZE, small_vocabulary, write_vicuna

CORPUS = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
# "\u2581" is how SentencePiece writes a space: in a text, nobody can tell it from one.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=8)
MARKS = [
    "###",
    " Human:",
    "\n### Assistant:",
    "  ",
    " ",
    "\n",
    "\t",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "[IMG0]",
    "🙂",
    "é",
]
TEXTS = st.lists(st.sampled_from([*MARKS, *CORPUS.split()[:300]]) | ANY_TEXT, max_size=12).map("".join)


@dataclass(frozen=True)
class Published:
    """A folder as published, what is made of it here, and SentencePiece itself."""

    config: ModelConfig
    tokenizer: Any
    sentencepiece: Any


@pytest.fixture(scope="module")
def small() -> bytes:
    return small_vocabulary(CORPUS)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A vocabulary in Llama's layout that was trained on real text by others; it lies in a wheel."""
    folder, uv = tmp_path_factory.mktemp("wheel"), shutil.which("uv")
    command = [str(uv), "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "mistral-common==1.13.1"]
    if uv is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mistral-common cannot be installed here")
    return (folder / "mistral_common" / "data" / "tokenizer.model.v1").read_bytes()


@pytest.fixture(scope="module", params=["small", pytest.param("real", marks=pytest.mark.slow)])
def vocabulary(request: pytest.FixtureRequest) -> bytes:
    return bytes(request.getfixturevalue(request.param))


@pytest.fixture(scope="module", params=[False, True], ids=["new", "legacy"])
def published(vocabulary: bytes, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = write_vicuna(tmp_path_factory.mktemp("vicuna"), vocabulary, legacy=request.param)
    config = on_llm(load_preset("nextgpt_7b"), folder)
    return Published(config, load_tokenizer(config), sentencepiece.SentencePieceProcessor(model_proto=vocabulary))


def on_llm(config: ModelConfig, folder: Path) -> ModelConfig:
    return config.model_copy(update={"llm": config.llm.model_copy(update={"name": str(folder)})})


def test_the_new_tokens_have_the_ids_of_the_released_weights(published: Published) -> None:
    tokens = load_vocabulary(published.config).tokens
    assert published.tokenizer.convert_tokens_to_ids(list(tokens)) == list(range(VOCAB_SIZE, VOCAB_SIZE + 38))
    assert len(published.tokenizer) == VOCAB_SIZE + 38


@given(text=TEXTS)
def test_a_text_is_encoded_as_sentencepiece_encodes_it(published: Published, text: str) -> None:
    # It puts a space before every text; where a text continues a sequence, that is its own first one.
    wanted = "\u2581" if text == " " else published.sentencepiece.encode(text.removeprefix(" "), out_type=str)
    assert published.tokenizer.convert_ids_to_tokens(encode_text(published.tokenizer, text)) == list(wanted)


@given(text=TEXTS)
def test_a_text_comes_back_as_it_was_but_for_the_space_before_it(published: Published, text: str) -> None:
    assert published.tokenizer.decode(encode_text(published.tokenizer, text)) == text.removeprefix(" ")


def test_a_dialogue_has_one_space_where_it_has_one(published: Published) -> None:
    turns = [
        Turn(role="user", parts=("  What do you hear? ", Item(name="a.wav", modality=Modality.AUDIO, caption=""))),
        Turn(role="assistant", parts=("A dog, 吠える.", Item(modality=Modality.IMAGE, caption="a dog"), "Here it is.")),
        Turn(role="user", parts=("Thanks",)),
        Turn(role="assistant", parts=("Gladly.",)),
    ]
    vocabulary = load_vocabulary(published.config)
    ids = encode_dialogue(turns, published.tokenizer, vocabulary, 1, 512).input_ids
    images = "".join(f"[IMG{i}]" for i in range(4))
    # Where a sequence begins and after an item's tokens SentencePiece puts its own, as in NExT-GPT's training.
    assert published.tokenizer.decode(ids) == (
        "<s> ### Human: What do you hear?<Img><unk></Img> \n### Assistant: A dog, 吠える."
        f"{images} Here it is.\n### Human: Thanks\n### Assistant: Gladly.\n###"
    )


@pytest.mark.parametrize("text", ["###", "\n###", "a.\n###", "🙂\n###", "a ###"])
def test_an_answer_ends_at_its_mark_and_what_was_before_it_stays(published: Published, text: str) -> None:
    ids, detokenizer = encode_text(published.tokenizer, text), Detokenizer(published.tokenizer)
    assert [detokenizer.stops(ids[: end + 1]) for end in range(len(ids))] == [False] * (len(ids) - 1) + [True]
    before = text.removesuffix("###").rstrip()
    assert detokenizer.text(ids) == published.tokenizer.decode(detokenizer.before_stop(ids)) == before


@given(text=TEXTS)
def test_a_text_grows_token_by_token_to_what_it_is_as_a_whole(published: Published, text: str) -> None:
    ids, detokenizer = encode_text(published.tokenizer, text), Detokenizer(published.tokenizer)
    grown, places = "", (0, 0)
    for done in range(1, len(ids) + 1):
        longer = detokenizer.grown(grown, ids[:done], *places)
        if not longer.endswith("\ufffd"):  # a character whose last bytes are to come
            grown, places = longer, (places[1], done)
    assert longer == text.removeprefix(" ") if ids else not text


def test_a_checkpoint_holds_a_tokenizer_that_encodes_alike(
    vocabulary: bytes, published: Published, tmp_path: Path
) -> None:
    published.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == published.tokenizer.get_vocab()
    for text in (CORPUS, "a  b", "  a", "\n###", "### Human: 🙂", "[IMG0] <s>"):
        ids = encode_text(published.tokenizer, text)
        assert encode_text(again, text) == ids
        assert again.decode(ids) == published.tokenizer.decode(ids)


def test_a_model_on_it_is_written_and_read_without_a_word(
    small: bytes, tiny: ModelConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_vicuna(tmp_path / "vicuna", small, legacy=False)
    llm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # as published; nobody reads it any more
    torch.save(llm.state_dict() | inverse, folder / "pytorch_model.bin")
    config = on_llm(tiny, folder)
    config = config.model_copy(
        update={"llm": config.llm.model_copy(update={"hidden_size": 32, "vocab_size": VOCAB_SIZE, "num_layers": 2})}
    )
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        made = NextGPT.from_config(config, adapter=True, gradient_checkpointing=True)
        checkpoint.save_pretrained(made, tmp_path / "checkpoint", load_tokenizer(config))
        model, tokenizer = checkpoint.from_pretrained(tmp_path / "checkpoint")
    assert capfd.readouterr() == ("", "")
    assert model.vocabulary.begin_item == tokenizer.convert_tokens_to_ids("<Img>") == VOCAB_SIZE
    assert encode_text(tokenizer, "a  b") == encode_text(load_tokenizer(config), "a  b")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\nsize 499723\n", "tokenizer.model: not a SentencePiece model"),
        (b"", "tokenizer.model: not a SentencePiece model"),
        (None, "no tokenizer for its 32000 embedding rows"),
    ],
    ids=["pointer", "empty", "absent"],
)
def test_a_folder_without_its_tokenizer_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    folder = write_vicuna(tmp_path, content or b"", legacy=False)
    if content is None:
        (folder / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=said):
        load_tokenizer(on_llm(load_preset("nextgpt_7b"), folder))
