"""The layout of a published part, fully described before anything is written: documents, weights, tokenizers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipelines.storage.files import remove_tree
from tests.benchmarks.real.vocabularies import DataFile
from tests.benchmarks.real.weights import Weights, num_bytes, write_weights

WriteVocabulary = Callable[[Path, dict[DataFile, Path]], None]

PUBLISHED = Path(__file__).parent / "published"
# Values of the small cut that replace published ones, by file.
_SMALL: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "small.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A folder in its published layout: JSON documents, weight files and vocabularies by relative path."""

    documents: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Weights] = field(default_factory=dict)
    vocabularies: Mapping[str, WriteVocabulary] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """The size of its weights on disk in bytes."""
        return sum(map(num_bytes, self.weights.values()))

    @property
    def num_weights(self) -> int:
        """The number of its weights."""
        return sum(tensor.numel() for weights in self.weights.values() for tensor in weights.values())

    def write(self, folder: Path, files: dict[DataFile, Path]) -> None:
        """Writes the folder atomically."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            for name, document in self.documents.items():
                path = Path(scratch) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            for name, write_vocabulary in self.vocabularies.items():
                write_vocabulary(Path(scratch) / name, files)
            for name, weights in self.weights.items():
                write_weights(weights, Path(scratch) / name)
            if folder.exists():
                remove_tree(folder)
            Path(scratch).rename(folder)
            Path(scratch).mkdir()  # removed at the end
        folder.chmod(0o755)


def published(part: str, *, small: bool) -> dict[str, Any]:
    """The documents of a part by relative path, as published or with the sizes of the small cut."""
    folder = PUBLISHED / part
    documents = {}
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        document = json.loads(path.read_text(encoding="utf-8"))
        documents[name] = _merged(document, _SMALL.get(f"{part}/{name}", {})) if small else document
    return documents


def _merged(document: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for name, value in over.items():
        assert name in document, f"{name}: small.yaml must only change published values"
        merged[name] = _merged(document[name], value) if isinstance(value, Mapping) else value
    return merged
