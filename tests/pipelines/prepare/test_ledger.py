"""The account of rejected rows: each reason with one row of it, and with what can be done."""

from dataclasses import asdict
from pathlib import Path

import pytest

from pipelines.media.policy import Limits, Refused
from pipelines.prepare.ledger import Account, accounts, advice
from pipelines.sample import Reject
from pipelines.storage.files import write_rows
from pipelines.storage.shards import REJECT_SCHEMA, REJECTS


def reject(number: int, reason: str) -> Reject:
    return Reject(source=f"rows.csv#{number}", key=str(number), stage="media", reason=reason)


def test_each_reason_is_counted_and_shown_by_a_row_about_which_something_can_be_done(tmp_path: Path) -> None:
    link = "path outside the root: a.png is a link to /b.png; --follow-links follows it"
    rows = [
        reject(0, "too short: it has no sample left at 16000 Hz"),
        reject(1, "empty caption"),
        reject(2, "too short: 0.01 s, the limit is 0.1 s"),
        reject(3, link),
        reject(4, "empty caption"),
        reject(5, "empty caption"),
    ]
    write_rows(tmp_path / REJECTS, [asdict(row) for row in rows], REJECT_SCHEMA)
    assert list(accounts(tmp_path).items()) == [
        ("empty caption", Account(count=3, example=rows[1])),
        ("too short", Account(count=2, example=rows[2])),
        ("path outside the root", Account(count=1, example=rows[3])),
    ]
    assert advice(link) == "give --follow-links, or the folder they lead to as a further --data"
    assert advice("empty caption") == ""


@pytest.mark.parametrize("name", ["bytes", "pixels", "seconds", "decoded"])
def test_the_advice_about_a_limit_names_the_setting_that_is_the_limit(name: str) -> None:
    limits = Limits(max_bytes=1, max_pixels=1, max_seconds=1.0, max_decoded_bytes=1)
    sizes = (2, 2) if name == "pixels" else (3,)
    with pytest.raises(Refused) as refused:
        getattr(limits, f"check_{name}")(*sizes)
    _, _, setting = advice(str(refused.value)).partition("--media limits.")
    assert setting.partition("=")[0] == ("max_decoded_bytes" if name == "decoded" else f"max_{name}")
    assert setting.partition("=")[0] in Limits.model_fields


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("missing field: caption", "`fields:`"),
        ("missing member: no caption (.txt, or a .json with one); the sample has 0.jpg", "`fields:`"),
        ("missing file: a.png", "--retry-rejected"),
        ("missing file: image_name is a https URL, and nothing is downloaded", "download"),
        ("unreadable: HEIC needs the plugin pillow-heif (a.heic)", "plugin"),
        ("unreadable: cannot identify image file (a.png)", "--retry-rejected"),
        ("too large: decoding it takes more than 320 MiB of memory", "limits.max_memory"),
        ("too long: more than 40000 frames", "limits.max_frames"),
        ("duplicate key: 7", "fields: {id:"),
    ],
)
def test_what_can_be_done_is_said_in_the_words_of_the_command(reason: str, word: str) -> None:
    assert word in advice(reason)
