"""Fixtures every test may use."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real samples and golden numbers beside the checkout; tests that need it skip where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("../shared is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def sample_root(shared: Path) -> Path:
    """NExT-GPT's own sample: 14 images, 14 sounds, 11 videos with captions."""
    return shared / "data" / "nextgpt-sample"
