"""Has a model write new captions, a column beside the shards: `jobs/recaption.py --shards SHARDS --checkpoint RUN`.

`jobs/recaption.py replay --out DATA` has an LLM answer prompts, as data that keep its English.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from jobs.common import cli
from jobs.common.cli import Option

if TYPE_CHECKING:
    from jobs.recaptioning.recaptions import CaptionSource
    from pipelines.curate.curating import Curated

# What a checkpoint of this project was trained on, and what any other model understands.
TRAINED_PROMPT, PLAIN_PROMPT = "generate a caption", "Describe this in one sentence."


@dataclass(frozen=True, slots=True, kw_only=True)
class RecaptionOptions:
    """Have a checkpoint, or a server that speaks OpenAI's format, caption the media of pairs anew. Nothing is
    rewritten; `captions: original | new | both` of a stage chooses, and --which-captions of jobs/embed.py embeds these.

    `recaption.py replay --out DATA` writes an LLM's own answers to prompts.
    """

    shards: Annotated[str, Option("the --out of jobs/prepare.py", "SHARDS")]
    datasets: Annotated[tuple[str, ...] | None, Option("prepared datasets (all if omitted)", "NAME")] = None
    checkpoint: Annotated[str | None, Option("a checkpoint or run of this project, or an id of the hub", "RUN")] = None
    api: Annotated[str | None, Option("instead, a server's base URL: http://127.0.0.1:8000/v1", "URL")] = None
    model: Annotated[str | None, Option("with --api: the model's name there", "NAME")] = None
    token_variable: Annotated[
        str, Option("with --api: the environment variable that holds the server's token, if it asks for one", "NAME")
    ] = "NEXTGPT_API_TOKEN"
    prompt: Annotated[
        str | None, Option(f"what is asked ({TRAINED_PROMPT!r} of a checkpoint, {PLAIN_PROMPT!r} of a server)", "TEXT")
    ] = None
    max_tokens: Annotated[int, Option("the longest caption, in tokens", "N", least=1)] = 64
    gpus: Annotated[int | None, Option("GPUs to use (those available if omitted)", "N", least=0)] = None
    overrides: Annotated[tuple[str, ...], cli.overrides("model.llm.name=PATH where a frozen part has moved")] = ()


def run(options: RecaptionOptions) -> None:
    """Captions all prepared datasets or those named, and prints what became of their samples."""
    from jobs.recaptioning.recaptions import recaption_scorer
    from pipelines.curate.curating import curate
    from pipelines.embed.embedding import plan_pool

    cli.check(options, _mistakes(options))
    directories = cli.prepared_datasets(options.shards, options.datasets)
    source = _source(options)
    cli.start_ray()
    _report(curate(directories, [recaption_scorer(source)], plan_pool(options.gpus)), source)


def _mistakes(options: RecaptionOptions) -> Iterator[str]:
    if (options.checkpoint is None) == (options.api is None):
        yield "give --checkpoint RUN, or --api URL with --model NAME"
    if (options.api is None) != (options.model is None):
        yield "--api and --model belong together"
    if options.prompt is not None and not options.prompt.strip():
        yield "--prompt: is empty"


def _source(options: RecaptionOptions) -> "CaptionSource":
    """Who captions.

    Raises:
        UsageError: the URL cannot be used, or the checkpoint's parts are not found; one line each.
    """
    if options.api is not None:
        from jobs.recaptioning.by_api import Api, api_source

        api = Api(url=options.api, model=options.model or "", token=os.environ.get(options.token_variable, ""))
        try:
            api.check()
        except ValueError as error:
            raise cli.UsageError(f"--api: {error}") from None
        return api_source(api, options.prompt or PLAIN_PROMPT, options.max_tokens)
    from jobs.common.settings import checkpoint_model
    from jobs.recaptioning.by_checkpoint import checkpoint_source
    from model.checkpoints.hub import find_checkpoint

    checkpoint = find_checkpoint(options.checkpoint or "")
    config = checkpoint_model(checkpoint, options.overrides)
    return checkpoint_source(checkpoint, config, options.prompt or TRAINED_PROMPT, options.max_tokens)


def _report(results: "Sequence[Curated]", source: "CaptionSource") -> None:
    from pipelines.storage.new_captions import COLUMN

    rows = written = failed = 0
    for result in results:
        manifest = result.manifest
        rows, written, failed = rows + manifest.rows, written + manifest.values[COLUMN], failed + manifest.failed
        state = f"{result.made} of {len(manifest.of_shards)} shards captioned now"
        print(f"{result.dataset}: {_account(manifest.rows, manifest.values[COLUMN], manifest.failed)} ({state})")
    print(f"all: {_account(rows, written, failed)}; by {source.model}, asked {source.prompt!r}")
    if lines := [result.failure for result in results if result.manifest.failed]:
        raise cli.Failures("\n".join(lines))


def _account(rows: int, written: int, failed: int) -> str:
    return f"{rows} in = {written} captioned + {failed} rejected + {rows - written - failed} that are no pairs"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes captions, or with `replay` an LLM's own answers."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["replay"]:
        from jobs.recaptioning import replays

        replays.run(cli.parse(replays.ReplayOptions, argv[1:]))
    else:
        run(cli.parse(RecaptionOptions, argv))


if __name__ == "__main__":
    cli.run(main)
