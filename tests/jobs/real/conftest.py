"""The small cut of the published parts, written once a session."""

from pathlib import Path

import pytest

from tests.benchmarks.real.hub import Hub


@pytest.fixture(scope="session")
def small_hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """All parts of the small cut; tests that need them skip where their vocabularies cannot be fetched."""
    hub = Hub(root=tmp_path_factory.mktemp("hub"), layers=2, small=True)
    try:
        hub.write()
    except OSError as error:
        pytest.skip(str(error))
    return hub


@pytest.fixture(scope="session")
def parts(small_hub: Hub) -> dict[str, Path]:
    """The folders of the parts: vicuna, imagebind, image, video, audio, delta."""
    preset = small_hub.preset(small_hub.root)
    outputs = {name: small_hub.root / output["decoder"] for name, output in preset["outputs"].items()}
    llm, encoder = (small_hub.root / preset[name]["name"] for name in ("llm", "encoder"))
    return {"vicuna": llm, "imagebind": encoder.parent, **outputs, "delta": small_hub.delta.parent}
