"""Converts NExT-GPT's own weight files to checkpoints and back: `jobs/convert.py --import FILE --out CHECKPOINT`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from jobs.common import cli
from jobs.common.cli import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Convert NExT-GPT's own pytorch_model.pt to a checkpoint, or a checkpoint to such a file."""

    imported: Annotated[
        tuple[str, ...] | None,
        Option("files of any stages, in training order", "FILE", flag="--import", exclusive=True),
    ] = None
    export: Annotated[str | None, Option("a checkpoint, a run or a model's hub id", "CHECKPOINT", exclusive=True)] = (
        None
    )
    out: Annotated[str, Option("the checkpoint's folder, or the file to write", "PATH")]
    preset: Annotated[str | None, Option("preset of the model that the files belong to, or a .yaml file", "NAME")] = (
        None
    )
    stage: Annotated[Literal[1, 2, 3], Option("the stage whose weights --export writes")] = 3
    overrides: Annotated[tuple[str, ...], cli.overrides("model.llm.name=PATH")] = ()


def run(options: ConvertOptions) -> None:
    """Converts files to a checkpoint, or a checkpoint to a file."""
    cli.check(options, _mistakes(options))
    cli.quiet()
    print(_import(options) if options.imported else _export(options))


def _mistakes(options: ConvertOptions) -> Iterator[str]:
    paths = (*(options.imported or ()), options.out)
    yield from (f"{path}: is a URL; give a local path" for path in paths if "://" in path)
    if options.imported and not options.preset:
        yield "--preset: missing; name the model that the files belong to, such as nextgpt_7b"
    if options.export and options.preset:
        yield "--preset: only for --import; a checkpoint has its own preset"


def _import(options: ConvertOptions) -> str:
    from jobs.common.settings import load_model
    from model.checkpoints.checkpoint import save_pretrained
    from model.checkpoints.released import load_legacy
    from model.core.nextgpt import NextGPT
    from model.core.tokenizer import load_tokenizer
    from model.parts.sources import LLM

    config = load_model(options.preset or "", options.overrides, [LLM])
    files = [cli.existing_file(name) for name in options.imported or ()]
    out = cli.new_folder(options.out)
    # Before the weights are loaded, so that its errors are reported at once.
    tokenizer = load_tokenizer(config)
    model = NextGPT.from_config(config, dtype=_exact_dtype(config.llm.name, files))
    for file in files:
        load_legacy(model, file)
    save_pretrained(model, out, tokenizer)
    stages = ", ".join(str(stage["stage"]) for stage in model.stages)
    return f"imported stage {stages} onto {config.llm.name}\ncheckpoint: {out}"


def _exact_dtype(llm: str, files: list[Path]) -> Any:
    """The dtype that holds the files and the LLM without loss: float16 if all of them are, else float32."""
    from functools import reduce

    import torch
    from transformers import AutoConfig

    from model.checkpoints.released import legacy_dtype
    from model.parts.builtin import resolve

    stored = AutoConfig.from_pretrained(resolve(llm)).get_text_config().dtype or torch.float32
    return reduce(torch.promote_types, map(legacy_dtype, files), stored)


def _export(options: ConvertOptions) -> str:
    from jobs.common.settings import checkpoint_model
    from model.checkpoints.checkpoint import from_pretrained
    from model.checkpoints.released import export_legacy
    from model.parts.sources import LLM

    out, checkpoint = Path(options.out), options.export or ""
    if out.is_dir():
        raise IsADirectoryError(f"{out}: is a folder; give the file to write")
    config = checkpoint_model(checkpoint, options.overrides, [LLM])
    model, _ = from_pretrained(checkpoint, config=config)
    shapes = export_legacy(model, out, stage=options.stage)
    return f"exported stage {options.stage}: {len(shapes)} tensors in float16\nfile: {out}"


main = cli.command(ConvertOptions, run)

if __name__ == "__main__":
    cli.run(main)
