"""The commands of the rehearsal, as a user would type them, in one working folder."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.serving.requests.guard import TOKEN
from tests.benchmarks import free_port
from tests.benchmarks.real.hub import Hub

ROOT = Path(__file__).resolve().parents[3]
PRESET = "mine.yaml"
DATA = "data"
_STAGES = (1, 2, 3)
_START_SECONDS = 3600.0
_ANSWER_SECONDS = 3600.0
_TOKENS = "64"  # the signal tokens of three media are 36
_OF_OTHERS = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_CLIENT_MODE", TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command: what it needs from earlier ones, what it creates, what runs concurrently, and the check afterwards.

    `check` returns a note, and raises ValueError if the result is wrong.
    """

    name: str
    command: Sequence[str]
    needs: Sequence[str] = ()
    makes: Sequence[str] = ()
    meanwhile: "Callable[[subprocess.Popen[bytes]], object] | None" = None
    check: Callable[[], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """The amount of work: training steps and settings of a stage, media of a reply and their denoising steps."""

    max_steps: int
    settings: Sequence[str]
    media: Sequence[str]
    denoising_steps: int


def environment() -> dict[str, str]:
    """The commands' environment: no other cluster, and no hub."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_OTHERS}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def all_steps(hub: Hub, work: Path, amount: Amount) -> list[Step]:
    """All commands in order; paths are relative to the working folder, as a user would write them."""
    exported = "exported/pytorch_model.pt"
    port = free_port()
    return [
        Step(name="prepare", command=_job("prepare", "--data", DATA, "--out", "shards"), makes=["shards"]),
        Step(
            name="embed",
            command=_job("embed", "--shards", "shards", "--preset", PRESET),
            needs=["prepare"],
            makes=["shards/*/embeddings"],
        ),
        *(_stage(stage, amount) for stage in _STAGES),
        Step(name="generate", command=_generate(work, amount), needs=["stage-3"], makes=["reply"]),
        Step(
            name="import",
            command=_job(
                "convert", "--import", os.path.relpath(hub.delta, work), "--preset", PRESET, "--out", "imported"
            ),
            makes=["imported"],
        ),
        Step(
            name="export",
            command=_job("convert", "--export", "imported", "--out", exported),
            needs=["import"],
            makes=["exported"],
            check=partial(same_tensors, hub.delta, work / exported),
        ),
        Step(
            name="chat",
            command=_job("chat", "--checkpoint", "imported", "--port", str(port), "--no-page"),
            needs=["import"],
            meanwhile=partial(_ask, port, amount),
        ),
    ]


def same_tensors(given: Path, made: Path) -> str:
    """Checks that the tensors of two files are bit-identical; raises ValueError naming the first that is not."""
    import torch

    one, other = (torch.load(path, mmap=True, weights_only=True) for path in (given, made))
    if missing := one.keys() ^ other.keys():
        raise ValueError(f"{made}: {min(missing)} is in only one of the files")
    for name, tensor in one.items():
        # NaN differs from itself, so bytes are compared.
        if tensor.dtype != other[name].dtype or not torch.equal(
            *(values.flatten().view(torch.uint8) for values in (tensor, other[name]))
        ):
            raise ValueError(f"{made}: {name} has changed")
    return f"{len(one)} tensors are bit-identical"


def _job(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments]


def _stage(stage: int, amount: Amount) -> Step:
    command = ["--stage", str(stage), "--shards", "shards", "--out", f"stage-{stage}", "--preset", PRESET]
    before = f"stage-{stage - 1}"
    return Step(
        name=f"stage-{stage}",
        command=_job(
            "train_stage",
            *command,
            *(["--init", before] if stage > 1 else []),
            f"max_steps={amount.max_steps}",
            *amount.settings,
        ),
        needs=["embed", *([before] if stage > 1 else [])],
        makes=[f"stage-{stage}"],
    )


def _generate(work: Path, amount: Amount) -> list[str]:
    command = _job("generate", "--checkpoint", "stage-3", "--out", "reply", "--prompt", "What is this? Show me.")
    for path in sorted((work / DATA).glob("T-X_pair_data/*/images/*"))[:1]:
        command += ["--image", str(path.relative_to(work))]
    command += ["--steps", str(amount.denoising_steps), "--max-new-tokens", _TOKENS]
    return command + (["--require", *amount.media] if amount.media else [])


def _ask(port: int, amount: Amount, process: "subprocess.Popen[bytes]") -> None:
    """Waits until the chat answers, asks it once and stops it as a shell would.

    Raises RuntimeError if it ends before, or OSError if it does not answer.
    """
    url = f"http://127.0.0.1:{port}/v1"
    for _ in _until(time.monotonic() + _START_SECONDS, process):
        try:
            urllib.request.urlopen(f"{url}/models", timeout=10).close()
            break
        except (urllib.error.URLError, OSError):
            continue
    reply = _post(f"{url}/chat/completions", _question(amount))
    made = [part["type"] for part in reply["choices"][0]["message"]["parts"] if part["type"] != "text"]
    if len(made) < len(amount.media):
        raise ValueError(
            f"the chat was asked for {', '.join(amount.media)} but returned {', '.join(made) or 'nothing'}"
        )
    process.send_signal(signal.SIGTERM)


def _until(deadline: float, process: "subprocess.Popen[bytes]") -> Iterator[None]:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ValueError("the chat ended before answering")
        yield
        time.sleep(0.5)
    raise TimeoutError(f"the chat did not answer within {_START_SECONDS:.0f} s")


def _question(amount: Amount) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": "Show me a dog."}],
        "modalities": ["text", *amount.media],
        "max_tokens": int(_TOKENS),
        "decoders": {medium: {"steps": amount.denoising_steps} for medium in amount.media},
    }


def _post(url: str, document: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        raise OSError(f"the chat answered {error.code}: {error.read(300).decode(errors='replace')}") from None
    return found
