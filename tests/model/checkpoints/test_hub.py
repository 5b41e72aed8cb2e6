"""The Hugging Face hub, as its own client talks to it over HTTP; what answers is a stand-in on loopback."""

import logging
from collections.abc import Iterator

import pytest
import torch
from hub_server import TOKEN, Hub, serving
from huggingface_hub import constants

from model.checkpoints.checkpoint import from_pretrained, push_to_hub, save_pretrained, trained_state
from model.core.nextgpt import NextGPT

REPO = "someone/tiny-nextgpt"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A hub that the client of this process uses, with a cache of its own."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    hub = Hub()
    with serving(hub) as url:
        # What HF_ENDPOINT and the like would set, had they been there when the client was imported.
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def same(one: NextGPT, two: NextGPT) -> bool:
    tensors = trained_state(two)
    return all(torch.equal(tensor, tensors[name]) for name, tensor in trained_state(one).items())


def test_a_model_goes_to_the_hub_and_comes_back(tiny, hub):
    model = NextGPT.from_config(tiny, adapter=True)
    model.stages, model.card = [{"stage": 3, "steps": 2}], {"untrained": ["LLM"]}
    url = push_to_hub(model, REPO, token=TOKEN)
    assert url.split("/commit/")[0].endswith(REPO)
    loaded, _ = from_pretrained(REPO)
    assert same(loaded, model)
    assert (loaded.stages, loaded.card) == (model.stages, model.card)
    assert f'from_pretrained("{REPO}")' in hub.commits[REPO][-1]["README.md"].decode()


def test_an_older_revision_can_be_loaded(tiny, hub):
    first, second = (NextGPT.from_config(tiny, seed=seed) for seed in (1, 2))
    revision = push_to_hub(first, REPO, token=TOKEN).rpartition("/")[2]
    push_to_hub(second, REPO, token=TOKEN)
    assert same(from_pretrained(REPO)[0], second)
    assert same(from_pretrained(REPO, revision=revision)[0], first)


def test_a_private_model_needs_the_token(model, hub):
    push_to_hub(model, REPO, private=True, token=TOKEN)
    assert hub.private == {REPO}
    assert same(from_pretrained(REPO, token=TOKEN)[0], model)


@pytest.mark.parametrize("private", [True, False])
def test_what_the_hub_does_not_give_is_told_in_one_line(model, hub, private):
    if private:
        push_to_hub(model, REPO, private=True, token=TOKEN)
    with pytest.raises(FileNotFoundError, match=f"^{REPO}: no such folder, and the hub download failed") as caught:
        from_pretrained(REPO)
    assert "\n" not in str(caught.value)


def test_a_folder_comes_before_a_repository_of_that_name(model, tokenizer, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(model, tmp_path / REPO, tokenizer)
    assert same(from_pretrained(REPO)[0], model)
    assert hub.commits == {}
