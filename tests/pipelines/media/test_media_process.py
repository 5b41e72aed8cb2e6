"""A decoder that crashes, hangs or takes all memory costs its own medium and nothing else."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest
from dataset_cases import picture

import pipelines.media.process as media_process_module
from pipelines.media.policy import Limits, MediaPolicy, Refused
from pipelines.media.process import COMMAND, MediaProcess, media_process
from pipelines.media.stored import Stored
from pipelines.sample import Media, Modality

POLICY = MediaPolicy(limits=Limits(max_memory=64 * 2**20, max_decode_seconds=0.3))
# The real child with a codec that does at certain bytes what a broken one would.
BROKEN_CODEC = """
import ctypes, os, re, socket, sys
from pipelines.media.codecs import refusals
import pipelines.media.child as child
store, state = child.store, []

def broken(media, policy):
    state.append(media)
    data = bytes(media.data)
    if data == b"crash": ctypes.string_at(0)
    if data == b"abort": os.abort()
    if data == b"hang": re.fullmatch(r"(a|a)*b", "a" * 64)
    if data == b"sleep": ctypes.CDLL(None).sleep(100)
    if data == b"bomb": bytearray(2**30)
    if data == b"exit": os._exit(3)
    if data == b"aged" and len(state) > 1: os.abort()
    with refusals():
        if data == b"open": open(os.devnull)
        if data == b"connect": socket.socket()
    if data == b"aged": media = child.Media(modality=media.modality, data=GOOD, format="png")
    return store(media, policy)

child.store = broken
GOOD = bytes.fromhex(sys.argv[1])
child.main()
"""
GOOD = picture(1).data


def medium(data: bytes) -> Media:
    return Media(modality=Modality.IMAGE, data=data, format="png")


@pytest.fixture(scope="module")
def process() -> Iterator[MediaProcess]:
    process = MediaProcess((sys.executable, "-P", "-c", BROKEN_CODEC, GOOD.hex()))
    yield process
    process.close()


def outcomes(process: MediaProcess, *data: bytes) -> list[str]:
    results = process.store([medium(value) for value in data], POLICY)
    return ["good" if isinstance(result, Stored) else str(result) for result in results]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"exit", "decoder crashed: exit status 3"),
        (b"hang", "decoder hung: more than 0.3 s"),
        (b"sleep", "decoder hung: more than 0.3 s"),
        (b"bomb", "too large: decoding it takes more than 64 MiB of memory"),
    ],
)
def test_what_kills_the_decoder_costs_its_own_medium_alone(process: MediaProcess, data: bytes, reason: str) -> None:
    assert outcomes(process, GOOD, data, GOOD, b"no picture", GOOD) == [
        "good",
        reason,
        "good",
        "unreadable: cannot identify image file",
        "good",
    ]


def test_a_medium_is_not_blamed_for_what_others_left_behind(process: MediaProcess) -> None:
    assert outcomes(process, GOOD, b"aged", GOOD) == ["good"] * 3


def test_deaths_in_a_row_are_each_told(process: MediaProcess) -> None:
    crashes = ["decoder crashed: SIGABRT", "decoder crashed: SIGSEGV"]
    assert outcomes(process, b"abort", b"crash", GOOD) == [*crashes, "good"]


@pytest.mark.parametrize("data", [b"open", b"connect"])
def test_the_decoder_can_open_nothing(process: MediaProcess, data: bytes) -> None:
    [said] = outcomes(process, data)
    assert said.startswith("unreadable: [Errno 24] Too many open files")


def test_what_is_no_medium_passes_through_in_its_place(process: MediaProcess) -> None:
    elements = ["first", medium(GOOD), "between", Refused("missing file"), medium(GOOD), "last"]
    results = list(process.store(elements, POLICY))
    assert [type(result) for result in results] == [str, Stored, str, Refused, Stored, str]
    assert results[0::5] == ["first", "last"]


def test_media_larger_than_any_pipe_do_not_lock_it_up(process: MediaProcess) -> None:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((1200, 1200), 90).save(buffer, format="BMP")
    assert outcomes(process, *[buffer.getvalue()] * 12) == ["good"] * 12


@pytest.mark.parametrize(
    "answer", ['{"format": "../x", "facts": {}, "unchanged": true}', "[]", '{"format": "jpg"}', "{"]
)
def test_a_decoder_that_talks_nonsense_is_not_believed(answer: str) -> None:
    script = (
        "import struct, sys\nfrom pipelines.media.child import read_message, write_message\n"
        "write_message(sys.stdout.buffer, 'ready')\nread_message(sys.stdin.buffer)\n"
        "text = sys.argv[1].encode()\nsys.stdout.buffer.write(struct.pack('>II', len(text), 0) + text)"
    )
    process = MediaProcess((sys.executable, "-P", "-c", script, answer))
    assert outcomes(process, GOOD) == ["decoder crashed: exit status 0"]
    process.close()


def test_the_child_sees_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    process = MediaProcess()
    assert b"secret" not in Path(f"/proc/{process._process.pid}/environ").read_bytes()
    process.close()


def test_a_decoder_that_cannot_start_is_the_jobs_failure_not_the_mediums() -> None:
    with pytest.raises(RuntimeError, match=r"the media process cannot start \(exit status 5\)"):
        MediaProcess((sys.executable, "-c", "raise SystemExit(5)"))


def test_the_child_is_kept_for_the_next_caller_and_replaced_when_it_died_between() -> None:
    with media_process() as first:
        pid = first._process.pid
    with media_process() as again:
        assert again._process.pid == pid
    os.kill(pid, signal.SIGKILL)
    _until(lambda: not again.is_idle)
    with media_process() as other:
        assert outcomes(other, GOOD) == ["good"]
        assert other._process.pid != pid


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "from pipelines.media.process import MediaProcess\n"
        "print(MediaProcess()._process.pid, flush=True)\nimport time; time.sleep(60)"
    )
    root = str(Path(media_process_module.__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.kill()
    _until(lambda: not Path(f"/proc/{child}/exe").exists())


def test_the_child_is_small_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    child = MediaProcess(COMMAND)
    truncated = GOOD[:40]
    assert outcomes(child, GOOD, truncated)[0] == "good"
    modules = subprocess.run(
        [sys.executable, "-c", "import sys, pipelines.media.child; print(*sys.modules)"],
        cwd=Path(media_process_module.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"ray", "torch", "pyarrow", "pandas", "fsspec", "upath"} & set(modules)
    child.close()
    assert capfd.readouterr() == ("", "")


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
