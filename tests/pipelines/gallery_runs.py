"""Runs as a training and an examination leave them, made up: what the gallery is tested with, and looked at with.

`python -m tests.pipelines.gallery_runs FOLDER` writes three runs, the page and the picture into a folder.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from pipelines.media.codecs import encode
from pipelines.sample import Audio, Decoded, Image, Item, Modality, Video
from pipelines.storage.files import write_json
from pipelines.world.conversations import KINDS, Conversation, converse
from pipelines.world.exam import ROWS
from pipelines.world.render import render
from pipelines.world.scenes import ATTRIBUTES, Subject, attributes, modality_of

STAGES = (1, 2, 3)
HOSTILE = "<script>alert('x')</script> & \"quotes\""


def write_runs(folder: Path, *, each: int = 4) -> list[Path]:
    """Writes the runs of three stages, of which the first and the last are scored."""
    runs = [folder / f"stage-{stage}" for stage in STAGES]
    for stage, run in zip(STAGES, runs, strict=True):
        run.mkdir(parents=True)
        _write_training(run, stage)
    understanding = [name for name in ROWS if name.startswith("understand")]
    _write_scores(runs[0], understanding, controls=False)
    _write_scores(runs[2], list(ROWS), controls=True)
    write_examples(runs[2], each)
    return runs


def write_examples(run: Path, each: int) -> None:
    """Conversations of the world, rendered and blurred as a small decoder would, every third one wrong."""
    rows = []
    for kind in (kind for kind in KINDS if kind not in ("question", "chat", "beyond", "decline")):
        for index in range(each):
            talk = converse(kind, 5, index, held_out=True)
            rows.append(_example(run / "examples", talk, f"{kind}-{index}", wrong=index % 3 == 2))
    for row in rows:  # whichever the page shows
        row["turns"][0]["parts"].append({"text": HOSTILE})
    write_json(run / "examples" / "examples.json", rows)


def _example(folder: Path, talk: Conversation, stem: str, *, wrong: bool) -> dict[str, Any]:
    made = iter([subject for answer in talk.answers for subject in answer.made])
    wanted = [item.caption for turn in talk.turns for item in turn.parts if isinstance(item, Item) and not item.name]
    named, grades = dict(talk.answers[-1].named), {name: True for answer in talk.answers for name in answer.named}
    turns, number = [], 0
    for turn in talk.turns:
        parts: list[dict[str, str]] = []
        for part in turn.parts:
            if isinstance(part, str):
                parts.append({"text": part})
                continue
            subject = talk.media[part.name] if part.name else next(made)
            if wrong and not part.name:
                subject, wrong = _spoilt(subject, grades), False
            decoded = render(subject, variant=number)
            medium = encode(decoded if part.name else _blurred(decoded))
            name, number = f"{stem}-{number}.{medium.format}", number + 1
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(medium.data)
            parts.append({"modality": part.modality.value, "file": name, "caption": part.caption})
        turns.append({"role": turn.role, "parts": parts})
    if wrong:  # nothing was made, so what is said is wrong
        attribute, value = next(iter(named.items()))
        other = next(v for values in ATTRIBUTES.values() for v in values.get(attribute, ()) if v != value)
        turns[-1]["parts"][-1]["text"] = turns[-1]["parts"][-1]["text"].replace(value, other)
        grades[attribute] = False
    row = next(row.name for row in ROWS.values() if talk.kind in row.kinds)
    words = "; ".join(wanted) or ", ".join(f"{name}: {value}" for name, value in named.items())
    return {"row": row, "right": all(grades.values()), "grades": grades, "wanted": words, "turns": turns}


def _spoilt(subject: Subject, grades: dict[str, bool]) -> Subject:
    attribute, value = next(iter(attributes(subject).items()))
    grades[attribute] = False
    values = ATTRIBUTES[modality_of(subject)][attribute]
    return cast(Subject, replace(cast(Any, subject), **{attribute: values[values.index(value) - 1]}))


def _blurred(decoded: Decoded) -> Decoded:
    rng = np.random.default_rng(0)

    def soft(pixels: Any) -> Any:
        padded = np.pad(pixels.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        mean = (padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]) / 4
        return (0.5 * mean + 0.5 * pixels + rng.normal(0, 5, pixels.shape)).clip(0, 255).astype(np.uint8)

    match decoded:
        case Image(pixels=pixels):
            return Image(pixels=soft(pixels[None])[0])
        case Video(frames=frames, fps=fps):
            return Video(frames=soft(frames), fps=fps)
        case Audio(waveform=waveform, sample_rate=rate):
            noise = rng.normal(0, 0.004, waveform.shape).astype(np.float32)
            return Audio(waveform=waveform + noise, sample_rate=rate)


def _write_training(run: Path, stage: int, steps: int = 240) -> None:
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _log(stage, steps)) + '{"step": 9')
    settings = {
        "stage": stage,
        "model": {"preset": "world"},
        "batch_size": 32,
        "epochs": 4,
        "precision": "fp32",
        "zero": 1,
        "seed": 0,
        "shuffle_items": False,
        "optimizer": {"learning_rate": 4e-4, "learning_rate_scale": 5.0},
    }
    write_json(run / "settings.json", {"hash": f"{stage}9ab328048ca"[:12], "settings": settings, "init": None})


def _log(stage: int, steps: int) -> Iterator[Mapping[str, Any]]:
    """Lines as model/runs/run_log.py writes them."""
    rng = np.random.default_rng(stage)
    for step in range(1, steps + 1):
        gone = step / steps
        figures = {
            "token_loss": 0.06 + 5.5 * np.exp(-9 * gone) * rng.uniform(0.9, 1.1),
            "token_accuracy": 1 - 0.98 * np.exp(-6 * gone) * rng.uniform(0.9, 1.0),
        }
        if stage > 1:
            for rate, modality in zip((7, 4, 9), Modality, strict=True):
                ratio = 0.03 + 1.4 * np.exp(-rate * gone) * rng.uniform(0.85, 1.15)
                figures |= {f"{modality}_alignment": ratio, f"{modality}_mean_ratio": ratio}
        figures["loss"] = sum(value for name, value in figures.items() if name.endswith(("loss", "alignment")))
        times = {"data_seconds": 0.01, "step_seconds": 0.25, "samples_per_second": 123.0}
        yield {"step": step, **figures, "learning_rate": 2e-3, **times}
        if step % 60 == 0:
            scale = {name: value * (0.99 if name.endswith("accuracy") else 1.15) for name, value in figures.items()}
            yield {"step": step, **{f"validation/{name}": value for name, value in scale.items()}}


def _write_scores(run: Path, names: list[str], *, controls: bool) -> None:
    rng = np.random.default_rng(len(names))
    rows = []
    for name in names:
        value = float(rng.uniform(0.93, 1.0)) if controls else float(rng.uniform(0.7, 0.9))
        value = {"make_video": 0.874, "well_formed": 1.0, "hard_image": 0.41}.get(name, value)
        modality = next((modality for modality in Modality if name == f"make_{modality}"), None)
        rows.append(
            {
                "row": name,
                "title": ROWS[name].title,
                "value": value,
                "low": max(0.0, value - 0.031),
                "high": min(1.0, value + 0.018),
                "n": 200,
                "chance": 0.125,
                "untrained": 0.131 if controls else None,
                "shuffled": 0.118 if controls else None,
                "from_text": 0.981 if controls and modality else None,
                "target": ROWS[name].target if controls or name.startswith("hard") else 0.7,
                "attributes": {"colour": min(1.0, value + 0.01), "shape": value},
            }
        )
    described = {"checkpoint": run.name, "preset": "world", "n": 200, "seed": 0, "seconds": 97.0, "rows": rows}
    write_json(run / "scores.json", described)


if __name__ == "__main__":
    from pipelines.inspect.gallery_page import write_gallery
    from pipelines.inspect.gallery_picture import write_picture

    target = Path(sys.argv[1])
    written = write_runs(target)
    write_gallery(written, target / "gallery.html")
    write_picture(written, target / "gallery.png")
