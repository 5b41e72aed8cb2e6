"""Serves a model as a chat page and an OpenAI-compatible API: `jobs/chat.py --checkpoint RUN [--port P]`."""

import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from jobs.common import cli
from jobs.replies import options
from jobs.serving.requests.guard import TOKEN


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until it is interrupted or terminated."""
    parser = cli.parser("Serve a model as a chat page in the browser and as an OpenAI-compatible HTTP API.")
    options.add_model(parser)
    parser.add_argument("--port", type=int, default=8000, metavar="P", help="where to listen")
    parser.add_argument(
        "--public", action="store_true", help=f"listen on all addresses; requires a token, from the variable {TOKEN}"
    )
    parser.add_argument("--places", type=int, default=64, metavar="N", help="conversations answered concurrently")
    parser.add_argument("--batch", type=int, metavar="N", help="maximum batch size of a decoder")
    parser.add_argument(
        "--max-replicas",
        type=int,
        default=1,
        metavar="N",
        help="maximum number of replicas of the LLM and of each decoder",
    )
    parser.add_argument("--language-gpus", type=float, metavar="X", help="GPUs per replica of the LLM")
    parser.add_argument("--decoder-gpus", type=float, metavar="X", help="GPUs per replica of a decoder")
    parser.add_argument(
        "--allow-url",
        action="append",
        default=[],
        metavar="PREFIX",
        help="allow media URLs under this prefix in requests",
    )
    parser.add_argument("--no-page", action="store_true", help="serve only the API")
    cli.add_overrides(parser, "model.llm.name=PATH where a frozen part has moved")
    arguments = parser.parse_args(argv)
    token = os.environ.get(TOKEN) or None
    _check(arguments, token)

    import logging

    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.schema import LoggingConfig

    from jobs.common.settings import checkpoint_model
    from jobs.serving.app import Settings, build
    from model.checkpoints.hub import find_checkpoint

    checkpoint = find_checkpoint(arguments.checkpoint)
    checkpoint_model(checkpoint, arguments.overrides)  # before Ray starts, so that missing parts are reported at once
    settings = Settings(
        checkpoint=str(checkpoint),
        overrides=tuple(arguments.overrides),
        architecture=arguments.architecture,
        places=arguments.places,
        batch=arguments.batch,
        max_replicas=arguments.max_replicas,
        language_gpus=arguments.language_gpus,
        decoder_gpus=arguments.decoder_gpus,
        token=token,
        allow_urls=tuple(arguments.allow_url),
        page=not arguments.no_page,
    )
    host = "0.0.0.0" if arguments.public else "127.0.0.1"
    cli.start_ray()
    # After Ray has installed its handlers. Shells start background commands with SIGINT ignored.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, _interrupt)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    print("loading the model", flush=True)
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    try:
        application = build(settings)
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=host, port=arguments.port),
            logging_config=quiet,
        )
        serve.run(application, name="chat", logging_config=quiet)
        print(f"chat page  http://127.0.0.1:{arguments.port}/" + ("?token=..." if token else ""))
        print(f"API        http://127.0.0.1:{arguments.port}/v1 (described at /docs)")
        print("Ctrl-C ends it", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("ending", flush=True)
        if cli.owns_ray():
            _end()
    finally:
        if not cli.owns_ray():
            serve.shutdown()


def _interrupt(*_: object) -> None:
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_DFL)  # a second signal ends the process at once
    raise KeyboardInterrupt


def _end() -> NoReturn:
    """Ends this process and the Ray that it started.

    Serve's own shutdown waits for each deployment in turn, and for unfinished replies that nobody would receive.
    """
    import psutil
    import ray

    from jobs.serving.requests.sessions import remove_orphans

    ours = psutil.Process().children(recursive=True)
    ray.shutdown()
    _, left = psutil.wait_procs(ours, timeout=1)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=0.2)
    remove_orphans({process.pid for process in ours})
    sys.stdout.flush()
    os._exit(0)  # a regular exit takes seconds to unload torch and Ray's client


def _check(arguments: Namespace, token: str | None) -> None:
    mistakes = []
    if arguments.public and not token:
        mistakes.append(
            f"--public: set {TOKEN} to a secret of 16 characters or more; whoever knows it can use the model"
        )
    if token is not None and len(token) < 16:
        mistakes.append(f"{TOKEN}: must be 16 characters or more")
    if not 1 <= arguments.port <= 65535:
        mistakes.append(f"--port {arguments.port}: must be 1 to 65535")
    for name in ("places", "batch", "max_replicas"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            mistakes.append(f"--{name.replace('_', '-')} {value}: must be at least 1")
    mistakes += [
        f"--allow-url {url}: give http:// or https://, a host, and optionally a path"
        for url in arguments.allow_url
        if not url.startswith(("http://", "https://"))
    ]
    if mistakes:
        raise cli.UsageError("\n".join(mistakes))


if __name__ == "__main__":
    cli.run(main)
