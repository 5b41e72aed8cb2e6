"""Conversations of visitors: what each may see, and what is left of them."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.replies.events import Begun, Made
from jobs.serving.requests import sessions as module
from jobs.serving.requests.sessions import Session, Sessions, TooManyMedia
from jobs.serving.showing import Growing, messages
from pipelines.sample import Media, Modality, Turn

PICTURE = Media(modality=Modality.IMAGE, data=b"picture", format="png")


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path)


def files(session: Session) -> set[str]:
    return {file.name for file in session.folder.iterdir()}


def test_a_medium_that_is_kept_is_found_in_its_own_session_alone(sessions: Sessions) -> None:
    (_, one), (_, other) = sessions.start(), sessions.start()
    item = one.keep(PICTURE)
    assert one.read(item) == PICTURE
    assert one.path(item.name) is not None
    assert other.path(item.name) is None
    with pytest.raises(FileNotFoundError, match="holds no such medium"):
        other.read(item)


def test_what_is_to_be_said_of_a_picture_is_shown_below_it(sessions: Sessions) -> None:
    _, session = sessions.start()
    growing = Growing()
    growing.take(Begun(0, Modality.IMAGE), session)
    growing.take(Made(0, replace(PICTURE, note="withheld <by> the checker")), session)
    [message] = messages(session, growing)
    assert "<p>withheld &lt;by&gt; the checker</p>" in str(message["content"].value)


@pytest.mark.parametrize(
    "name", ["../x.png", "/etc/passwd", "", ".", "a.png", "0123456789abcdef.png/../../x", "%2e%2e"]
)
def test_no_name_leads_out_of_a_session(sessions: Sessions, name: str) -> None:
    _, session = sessions.start()
    (sessions.root / "x.png").write_bytes(b"secret")
    assert session.path(name) is None


def test_a_cookie_is_not_to_be_guessed_and_opens_one_session(sessions: Sessions) -> None:
    (cookie, one), (another, other) = sessions.start(), sessions.start()
    assert len({cookie, another}) == 2
    assert len(cookie) == 64
    assert sessions.find(cookie) is one
    assert sessions.find(another) is other
    assert sessions.find("") is None
    assert one.folder.name not in cookie, "a folder's name tells nothing of the cookie"


def test_turns_that_are_taken_back_take_their_media_along(sessions: Sessions) -> None:
    _, session = sessions.start()
    first, second = session.keep(PICTURE), session.keep(PICTURE)
    session.turns += [Turn(role="user", parts=(first,)), Turn(role="assistant", parts=("a", second))]
    session.truncate(1)
    assert files(session) == {first.name}
    session.truncate(0)
    assert files(session) == set()


def test_one_visitor_cannot_fill_the_disk(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 20)
    _, session = sessions.start()
    session.keep(PICTURE)
    session.keep(PICTURE)
    with pytest.raises(TooManyMedia, match="clear it"):
        session.keep(PICTURE)
    assert len(files(session)) == 2


def test_who_is_not_seen_for_long_is_forgotten_with_all_files(tmp_path: Path) -> None:
    (root := tmp_path / "sessions").mkdir()
    sessions = Sessions(root, idle_seconds=-1)
    cookie, session = sessions.start()
    session.keep(PICTURE)
    upload = tmp_path / "upload.png"
    upload.write_bytes(b"x")
    session.uploads.add(str(upload))
    sessions.sweep()
    assert sessions.find(cookie) is None
    assert not session.folder.exists()
    assert not upload.exists()


def test_of_too_many_visitors_those_seen_longest_ago_go(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SESSIONS", 2)
    cookies = [sessions.start()[0] for _ in range(2)]
    sessions.find(cookies[0])
    last, _ = sessions.start()
    assert [sessions.find(cookie) is not None for cookie in (*cookies, last)] == [True, False, True]


def test_what_a_killed_server_left_is_removed_by_the_next_one() -> None:
    code = "import Sessions; import os; print(Sessions().root, flush=True); os._exit(9)"
    left = f"from jobs.serving.requests.sessions {code}"
    done = subprocess.run([sys.executable, "-c", left], capture_output=True, text=True, check=False)
    folder = Path(done.stdout.strip())
    assert folder.is_dir()
    assert folder.is_relative_to(tempfile.gettempdir())
    Sessions().close()
    assert not folder.exists()
