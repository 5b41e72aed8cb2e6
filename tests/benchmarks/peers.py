"""img2dataset in a separate environment, and a server on loopback that serves it images."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks import cores, say

THREADS = 32
TIMEOUT = 600
# setuptools: a package it depends on still imports pkg_resources.
REQUIREMENTS = ("img2dataset==1.47.0", "setuptools<81")

_SERVER = """
import functools, http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *arguments): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=sys.argv[1]))
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Img2dataset:
    """The installed command and its version."""

    executable: Path
    version: str

    def seconds(
        self, url: str, paths: Sequence[Path], out: Path, short_side: int, quality: int, samples_per_shard: int
    ) -> float:
        """Writes shards of the images at `url`; returns the seconds from its first shard's start to its last one's end.

        Raises:
            RuntimeError: it did not process all images.
        """
        urls = out.with_suffix(".parquet")
        captions = [f"image {path.stem}" for path in paths]
        pq.write_table(pa.table({"url": [f"{url}/{path.name}" for path in paths], "caption": captions}), urls)
        options = {
            "url_list": urls,
            "output_folder": out,
            "input_format": "parquet",
            "url_col": "url",
            "caption_col": "caption",
            "output_format": "webdataset",
            "image_size": short_side,
            "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True,
            "encode_quality": quality,
            "number_sample_per_shard": samples_per_shard,
            "processes_count": cores(),
            "thread_count": THREADS,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        run = subprocess.run(
            [self.executable, *arguments], env=_environment(), capture_output=True, text=True, timeout=TIMEOUT
        )
        stats = [json.loads(path.read_text()) for path in sorted(out.glob("*_stats.json"))]
        done = sum(shard["successes"] for shard in stats)
        if run.returncode or done != len(paths):
            last = (run.stderr.strip() or "no message").splitlines()[-1]
            raise RuntimeError(f"img2dataset took {done} of {len(paths)} images: {last}")
        return max(shard["end_time"] for shard in stats) - min(shard["start_time"] for shard in stats)


def img2dataset() -> Img2dataset:
    """The command, installed with `uv` on first use into a separate environment in the user's cache.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be installed here.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nextgpt-ray", "img2dataset")
    executable, mark = home / "bin" / "img2dataset", home / "installed"
    if not mark.is_file():
        say(f"images: installing {REQUIREMENTS[0]} into {home}")
        _call("uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(home))
        _call("uv", "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), *REQUIREMENTS)
        _call(str(executable), "--help")
        mark.touch()
    return Img2dataset(executable=executable, version=REQUIREMENTS[0].replace("==", " "))


@contextmanager
def image_server(folder: Path) -> Iterator[str]:
    """Serves a folder on loopback from a separate process; yields its URL."""
    command = [sys.executable, "-c", _SERVER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def _call(*command: str) -> None:
    """Runs a command; on failure, raises an error with the last line it printed."""
    run = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=TIMEOUT)
    if run.returncode:
        last = (run.stderr.strip() or "no message").splitlines()[-1]
        raise OSError(f"{command[0]} {command[1]}: {last}")


def _environment() -> Mapping[str, str]:
    """This process's environment, without a proxy for loopback."""
    return {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
