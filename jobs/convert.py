"""Converts NExT-GPT's own weight files to checkpoints and back: `jobs/convert.py --import FILE --out CHECKPOINT`."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.common import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Converts files to a checkpoint, or a checkpoint to a file."""
    parser = cli.parser("Convert NExT-GPT's own pytorch_model.pt to a checkpoint, or a checkpoint to such a file.")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--import", dest="files", nargs="+", metavar="FILE", help="files of any stages, in training order")
    way.add_argument(
        "--export", dest="checkpoint", metavar="CHECKPOINT", help="a checkpoint, a run or a model's hub id"
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="the checkpoint's folder, or the file to write")
    parser.add_argument(
        "--preset", metavar="NAME", help="preset of the model that the files belong to, or a .yaml file"
    )
    parser.add_argument(
        "--stage", type=int, choices=(1, 2, 3), default=3, help="the stage whose weights --export writes"
    )
    cli.add_overrides(parser, "model.llm.name=PATH")
    arguments = parser.parse_args(argv)

    paths = [*(arguments.files or ()), arguments.out]
    mistakes = [f"{path}: is a URL; give a local path" for path in paths if "://" in path]
    if arguments.files and not arguments.preset:
        mistakes.append("--preset: missing; name the model that the files belong to, such as nextgpt_7b")
    if arguments.checkpoint and arguments.preset:
        mistakes.append("--preset: only for --import; a checkpoint has its own preset")
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))
    cli.quiet()
    print(_import(arguments) if arguments.files else _export(arguments))


def _import(arguments: Namespace) -> str:
    from jobs.common.settings import load_model
    from model.checkpoints.checkpoint import save_pretrained
    from model.checkpoints.released import load_legacy
    from model.core.nextgpt import NextGPT
    from model.core.tokenizer import load_tokenizer
    from model.parts.sources import LLM

    config = load_model(arguments.preset, arguments.overrides, [LLM])
    files = [cli.existing_file(name) for name in arguments.files]
    out = cli.new_folder(arguments.out)
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


def _export(arguments: Namespace) -> str:
    from jobs.common.settings import checkpoint_model
    from model.checkpoints.checkpoint import from_pretrained
    from model.checkpoints.released import export_legacy
    from model.parts.sources import LLM

    out = Path(arguments.out)
    if out.is_dir():
        raise IsADirectoryError(f"{out}: is a folder; give the file to write")
    config = checkpoint_model(arguments.checkpoint, arguments.overrides, [LLM])
    model, _ = from_pretrained(arguments.checkpoint, config=config)
    shapes = export_legacy(model, out, stage=arguments.stage)
    return f"exported stage {arguments.stage}: {len(shapes)} tensors in float16\nfile: {out}"


if __name__ == "__main__":
    cli.run(main)
