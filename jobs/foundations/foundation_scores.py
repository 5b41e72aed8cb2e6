"""How well each foundation does on its own, on held-out combinations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.foundations.recipes import SEED_HELD_OUT, aspect, captioned, dialogues
from model.architectures.imagebind_text import ImageBindTextEncoder
from model.bootstrap.language import token_accuracy
from model.decoders.decoder import Decoder
from model.decoders.text_encoders import CaptionEncoder
from model.encoders.imagebind_encoder import ImageBindEncoder
from pipelines.media.codecs import decode, encode
from pipelines.sample import Decoded, Modality
from pipelines.world.captions import caption
from pipelines.world.oracles import grade, read
from pipelines.world.render import FPS, render
from pipelines.world.scenes import ATTRIBUTES, Subject, attributes, draw, modality_of

COUNT = 200  # subjects per modality
_BATCH = 50
Scores = dict[str, Any]


def score(part: str, folder: Path) -> Scores:
    """The scores of a part by name: shares of subjects, or of answer tokens for the LLM."""
    if part == "llm":
        return _score_llm(folder)
    if part == "imagebind":
        return {modality.value: _score_encoder(folder, modality) for modality in Modality}
    return _score_decoder(folder, Modality(part.removesuffix("_decoder")))


def _subjects(modality: Modality) -> list[Subject]:
    return [draw(SEED_HELD_OUT, index, held_out=True, hard=False)[modality] for index in range(COUNT)]


def _shares(wanted: Sequence[Subject], grades: Sequence[Mapping[str, bool]]) -> Scores:
    names = ATTRIBUTES[modality_of(wanted[0])]
    shares = {name: sum(found[name] for found in grades) / len(grades) for name in names}
    return {"n": len(grades), **shares, "all": sum(all(found.values()) for found in grades) / len(grades)}


def _score_decoder(folder: Path, modality: Modality) -> Scores:
    """What the oracles read in media generated from captions, with the decoder's default number of steps."""
    decoder, encoder = Decoder(modality, str(folder)), CaptionEncoder(modality, str(folder))
    wanted, made = _subjects(modality), list[Decoded]()
    for start in range(0, COUNT, _BATCH):
        texts = [caption(subject, 31 * (start + i)) for i, subject in enumerate(wanted[start : start + _BATCH])]
        seeds = range(start, start + len(texts))
        made += decoder.generate_batch(encoder(texts).embeddings, seeds)
        print(f"{folder.name}: {len(made)} of {COUNT} media made", flush=True)
    return _shares(wanted, [grade(subject, read(medium)) for subject, medium in zip(wanted, made, strict=True)])


def _score_encoder(folder: Path, modality: Modality) -> Scores:
    """Zero-shot classification: the attribute value whose text embedding is nearest to a medium's embedding."""
    from transformers import CLIPTokenizer

    encode_text = ImageBindTextEncoder(folder, CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    wanted = _subjects(modality)
    media = [decode(encode(render(subject, index)), fps=FPS) for index, subject in enumerate(wanted)]
    items_NE = torch.from_numpy(ImageBindEncoder(str(folder))(media))
    grades: list[dict[str, bool]] = [{} for _ in wanted]
    for name, values in ATTRIBUTES[modality].items():
        nearest = (items_NE @ encode_text([aspect(name, value) for value in values]).T).argmax(dim=1).tolist()
        for subject, number, grade_of in zip(wanted, nearest, grades, strict=True):
            grade_of[name] = attributes(subject)[name] == values[number]
    return _shares(wanted, grades)


def _score_llm(folder: Path) -> Scores:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    unseen = [*dialogues(COUNT, held_out=True), *captioned(COUNT, held_out=True)]
    accuracy = token_accuracy(llm, AutoTokenizer.from_pretrained(folder), unseen)
    return {"n": len(unseen), "answer_token_accuracy": accuracy}
