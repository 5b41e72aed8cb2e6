"""An LLM's own answers to prompts, so that training keeps its English: `jobs/recaption.py replay --out DATA`.

A chat model that is given its template up to the user's words writes a user's words (Magpie, arXiv:2406.08464).
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from jobs.common import cli
from jobs.common.cli import Option
from pipelines.sample import Turn

if TYPE_CHECKING:
    from model.parts.config import ModelConfig

# Where NExT-GPT's layout has instructions in text alone.
FILE = "IT_data/T+X-T_data/alpaca/alpaca.json"
WORLD = "builtin:world"
_CONVERSATIONS = 20  # of the world, for one new question
_MOST_TRIES = 4  # of as many prompts as rows are wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """Write an instruction set of an LLM's own answers, for stage 3 to keep what the LLM can do."""

    out: Annotated[str, Option("a new data folder, which jobs/prepare.py --data reads", "DATA")]
    preset: Annotated[str, Option("preset of the LLM, or your own .yaml file")] = "small"
    prompts: Annotated[
        str | None,
        Option(
            f"prompts, one a line, or {WORLD} for what the small world cannot answer; by default, the LLM's", "FILE"
        ),
    ] = None
    count: Annotated[int, Option("at most so many prompts with their answers", least=1)] = 1000
    prompt_tokens: Annotated[int, Option("leave out longer prompts of the LLM", least=1)] = 64
    answer_tokens: Annotated[int, Option("leave out longer answers", least=1)] = 256
    batch_size: Annotated[int, Option("how many are written at once", least=1)] = 32
    seed: Annotated[int, Option("of the prompts; answers are the likeliest ones", least=0)] = 0
    overrides: Annotated[tuple[str, ...], cli.overrides("model.llm.name=FOLDER")] = ()


def run(options: ReplayOptions) -> None:
    """Writes the rows, and prints how many prompts were left out, by reason."""
    from jobs.common.settings import load_model
    from model.inference.query import in_batches
    from pipelines.progress import track
    from pipelines.storage.files import write_json

    cli.check(options)
    config = load_model(options.preset, options.overrides, needed={"llm"})
    folder = cli.new_folder(options.out)
    asked = _given(options)
    author = _Author(config, options.seed)
    rows, left_out = list[dict[str, str]](), Counter[str]()
    total, counted = (options.count, "rows") if asked is None else (len(asked), "prompts")
    with track("replay", total, counted, announce=True) as progress:
        for prompts in (
            author.prompts(options.batch_size, options.prompt_tokens, left_out)
            if asked is None
            else in_batches(asked, options.batch_size)
        ):
            answers = author.answers(prompts, options.answer_tokens)
            whole = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]
            left_out["no whole answer"] += len(prompts) - len(whole)
            rows += ({"instruction": prompt, "input": "", "output": answer} for prompt, answer in whole)
            progress.advance(len(whole if asked is None else prompts))
            if len(rows) >= options.count or sum(left_out.values()) > _MOST_TRIES * options.count:
                break
    write_json(folder / FILE, rows[: options.count])
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(left_out.items()))
    print(f"{min(len(rows), options.count)} rows in {folder / FILE}; left out: {reasons or 'none'}")


def _given(options: ReplayOptions) -> list[str] | None:
    """The different lines of a text file, in order, or the small world's questions; None if the LLM is to ask."""
    from pipelines.world.dataset import unanswered

    if not options.prompts:
        return None
    if options.prompts == WORLD:
        return list(islice(unanswered(options.seed, _CONVERSATIONS * options.count), options.count))
    lines = cli.existing_file(options.prompts).read_text(encoding="utf-8").splitlines()
    prompts = list(dict.fromkeys(filter(None, map(str.strip, lines))))
    if not prompts:
        raise ValueError(f"{options.prompts}: holds no prompt; write one a line")
    return prompts[: options.count]


class _Author:
    """An LLM that writes both sides of short dialogues."""

    def __init__(self, config: "ModelConfig", seed: int) -> None:
        import torch

        from model.core.chat_template import chat_template
        from model.core.llm import load_llm
        from model.core.tokenizer import eos_ids, load_tokenizer, load_vocabulary
        from model.parts.devices import best_device

        device = torch.device(best_device())
        self._llm = load_llm(config.llm, torch.bfloat16 if device.type == "cuda" else torch.float32, device).eval()
        self._tokenizer, self._vocabulary = load_tokenizer(config), load_vocabulary(config)
        self._template = chat_template(config.llm.template, self._tokenizer, config.llm.system)
        self._ends = sorted(self._template.ends | eos_ids(self._tokenizer, self._llm))
        torch.manual_seed(seed)

    def prompts(self, batch_size: int, most: int, left_out: Counter[str]) -> Iterator[list[str]]:
        """Batches of different prompts without end; counts those left out."""
        known, head = set[str](), list[int]()
        for piece in self._template.head:
            head += [piece] if isinstance(piece, int) else self._template.encode([piece], None)[0]
        while True:
            batch = list[str]()
            for ids in self._written([head] * batch_size, most, do_sample=True, temperature=1.0, top_p=0.95):
                text = self._tokenizer.decode(ids or []).strip()
                if not text or text.casefold() in known:
                    left_out["without end" if ids is None else "repeated" if text else "empty"] += 1
                    continue
                known.add(text.casefold())
                batch.append(text)
            yield batch

    def answers(self, prompts: Sequence[str], most: int) -> list[str]:
        """An answer to each prompt; empty where it does not end within so many tokens."""
        asked = list(map(self._asked, prompts))
        return [self._tokenizer.decode(ids or []).strip() for ids in self._written(asked, most, do_sample=False)]

    def _asked(self, prompt: str) -> list[int]:
        """A prompt as training and replies write it."""
        from model.core.dialogue import encode_dialogue

        turns = (Turn(role="user", parts=(prompt,)),)
        dialogue = encode_dialogue(
            *(turns, self._tokenizer, self._vocabulary, 1, sys.maxsize), template=self._template, for_generation=True
        )
        return dialogue.input_ids

    def _written(self, prompts: Sequence[Sequence[int]], most: int, **sampling: Any) -> Iterator[list[int] | None]:
        """The ids that follow each prompt, up to the end of a turn; None where it does not end."""
        import torch

        if not prompts:
            return
        longest, pad = max(map(len, prompts)), self._ends[0]
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            whole = self._llm.generate(
                input_ids=ids.to(self._llm.device),
                attention_mask=mask.to(self._llm.device),
                max_new_tokens=most,
                eos_token_id=self._ends,
                pad_token_id=pad,
                **sampling,
            )
        for written in whole[:, longest:].tolist():
            end = next((place for place, token in enumerate(written) if token in self._ends), None)
            yield None if end is None else written[:end]
