"""A chat server as a user starts it, with the model that is shipped; one for the session."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.benchmarks.chat_server import ChatServer, chat_server


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    folder = tmp_path_factory.mktemp("chat")
    with chat_server(folder=folder) as server:
        yield server
        left: list[Path] = list(folder.glob("nextgpt-chat-*"))
        assert len(left) == 1, "one process keeps visitors' files"
    assert not list(folder.glob("nextgpt-chat-*")), "they go with the server"


@pytest.fixture(scope="session")
def client(chat: ChatServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{chat.url}/v1", api_key="none", max_retries=0, timeout=120)
