"""Serves a model as a chat page and an OpenAI-compatible API: `jobs/chat.py --checkpoint RUN [--port P]`."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, NoReturn

from jobs.common import cli, signals
from jobs.common.cli import Option
from jobs.replies.options import Architecture, ModelOptions
from jobs.serving.requests.guard import TOKEN
from model.checkpoints.description import SHIPPED, SMALL
from model.parts.small_llm import missing

_ORIGIN = re.compile(r"https?://[^/?#@\s]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Serve a model as a chat page in the browser and as an OpenAI-compatible HTTP API."""

    model: ModelOptions
    port: Annotated[int, Option("where to listen", "P", least=1, most=65535)] = 8000
    public: Annotated[bool, Option(f"listen on all addresses; requires a token, from the variable {TOKEN}")] = False
    places: Annotated[int, Option("conversations answered concurrently", "N", least=1)] = 64
    batch: Annotated[int | None, Option("maximum batch size of a decoder", "N", least=1)] = None
    max_replicas: Annotated[int, Option("maximum number of replicas of the LLM and of each decoder", "N", least=1)] = 1
    language_gpus: Annotated[float | None, Option("GPUs per replica of the LLM", "X")] = None
    decoder_gpus: Annotated[float | None, Option("GPUs per replica of a decoder", "X")] = None
    separate_decoders: Annotated[
        bool, Option("run each decoder in a process of its own, as is done where there is a GPU")
    ] = False
    allow_url: Annotated[
        tuple[str, ...], Option("allow media URLs under this prefix in requests", "PREFIX", several="append")
    ] = ()
    allow_origin: Annotated[
        tuple[str, ...],
        Option("let pages of this origin use the API (CORS); * for all", "ORIGIN", several="append"),
    ] = ()
    no_page: Annotated[bool, Option("serve only the API")] = False
    overrides: Annotated[tuple[str, ...], cli.overrides("model.llm.name=PATH where a frozen part has moved")] = ()


def talks_best(architecture: Architecture) -> str:
    """The shipped model that a conversation is best had with: `small`, or `world` where the LLM of that is missing.

    Only `world` was taught to plan.
    """
    return SHIPPED if missing() or architecture == "scheduler" else SMALL


def run(options: ChatOptions) -> None:
    """Serves until it is interrupted or terminated."""
    token = os.environ.get(TOKEN) or None
    cli.check(options, _mistakes(options, token))

    import logging

    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.schema import LoggingConfig

    from jobs.common.settings import checkpoint_model
    from jobs.serving.app import Settings, build
    from model.checkpoints.hub import find_checkpoint

    chosen = options.model.checkpoint or talks_best(options.model.architecture)
    checkpoint = find_checkpoint(chosen)
    checkpoint_model(checkpoint, options.overrides)  # before Ray starts, so that missing parts are reported at once
    settings = Settings(
        checkpoint=str(checkpoint),
        overrides=options.overrides,
        architecture=options.model.architecture,
        places=options.places,
        batch=options.batch,
        max_replicas=options.max_replicas,
        language_gpus=options.language_gpus,
        decoder_gpus=options.decoder_gpus,
        separate_decoders=options.separate_decoders,
        token=token,
        allow_urls=options.allow_url,
        allow_origins=options.allow_origin,
        page=not options.no_page,
    )
    host = "0.0.0.0" if options.public else "127.0.0.1"
    cli.start_ray(serves=True)
    # After Ray has installed its handlers. Shells start background commands with SIGINT ignored.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, _interrupt)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    print(f"loading {chosen}", flush=True)
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    try:
        application = build(settings)
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=host, port=options.port),
            logging_config=quiet,
        )
        serve.run(application, name="chat", logging_config=quiet)
        print(f"chat page  http://127.0.0.1:{options.port}/" + ("?token=..." if token else ""))
        print(f"API        http://127.0.0.1:{options.port}/v1 (described at /docs)")
        print("Ctrl-C ends it", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("ending", flush=True)
        if signals.owns_ray():
            _end()
    finally:
        if not signals.owns_ray():
            serve.shutdown()


def _interrupt(*_: object) -> None:
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_DFL)  # a second signal ends the process at once
    raise KeyboardInterrupt


def _end() -> NoReturn:
    """Ends this process and the Ray that it started.

    Serve's own shutdown waits for each deployment in turn, and for unfinished replies that nobody would receive.
    """
    from jobs.serving.requests.sessions import remove_orphans

    remove_orphans(signals.end_ray())
    signals.leave(0)


def _mistakes(options: ChatOptions, token: str | None) -> Iterator[str]:
    if options.public and not token:
        yield f"--public: set {TOKEN} to a secret of 16 characters or more; whoever knows it can use the model"
    if token is not None and len(token) < 16:
        yield f"{TOKEN}: must be 16 characters or more"
    for url in options.allow_url:
        if not url.startswith(("http://", "https://")):
            yield f"--allow-url {url}: give http:// or https://, a host, and optionally a path"
    for origin in options.allow_origin:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            yield f"--allow-origin {origin}: give http:// or https://, a host, and optionally a port, or *"


main = cli.command(ChatOptions, run)

if __name__ == "__main__":
    cli.run(main)
