"""The floors of the house: imports run downward only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RAY_STEPS = {"preprocess", "embed", "captions", "handover", "metrics", "survey"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", files("pipelines"), ids=str)
def test_pipelines_import_neither_model_nor_jobs(path: Path) -> None:
    assert not tops(path) & {"model", "jobs"}


@pytest.mark.parametrize("path", files("pipelines"), ids=str)
def test_pipelines_need_no_torch(path: Path) -> None:
    assert not tops(path) & {"torch", "transformers", "diffusers", "deepspeed"}


@pytest.mark.parametrize("path", files("model"), ids=str)
def test_model_takes_nothing_of_pipelines_but_the_sample_and_needs_no_ray(path: Path) -> None:
    assert not tops(path) & {"ray", "jobs"}
    assert {name for name in imports(path) if name.startswith("pipelines.")} <= {
        "pipelines.sample",
        *(f"pipelines.sample.{name}" for name in _names_of_sample()),
    }


@pytest.mark.parametrize("path", files("pipelines"), ids=str)
def test_only_the_steps_on_ray_import_ray(path: Path) -> None:
    if path.stem not in RAY_STEPS:
        assert "ray" not in tops(path)


def test_the_sample_is_on_the_ground_floor() -> None:
    standard = {"json", "collections", "dataclasses", "enum", "typing"}
    assert tops(ROOT / "pipelines" / "sample.py") <= standard | {"numpy"}


def _names_of_sample() -> list[str]:
    from pipelines import sample

    return dir(sample)


def test_the_top_level_is_the_design_cards() -> None:
    allowed = {"pipelines", "model", "jobs", "cluster", "tests", "README.md", "pyproject.toml"}
    made = {"uv.lock", "out", "dist", "build"}  # ignored by git
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert names - made - {name for name in names if name.endswith(".egg-info")} == allowed
