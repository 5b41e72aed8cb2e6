"""The Ray Serve application: page and API in front, the parts of the model behind.

serve run jobs.serving.app:build checkpoint=RUN
"""

import os
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from jobs.common.settings import checkpoint_model
from jobs.replies.events import Event
from jobs.replies.options import Architecture
from jobs.replies.respond import asks
from jobs.serving.deployments import About, Language, Renderer, Together, about
from model.inference.query import AT_ONCE, Query
from model.parts.config import ModelConfig
from pipelines.sample import Modality

Fraction = Annotated[float, Field(ge=0, le=64)]


class Settings(BaseModel):
    """What is served and how; the arguments of `build`.

    `overrides` are `model.KEY=VALUE`, for frozen parts that have moved. `places` limits how many conversations are
    answered concurrently. GPUs are per replica; by default the LLM takes 0.4 and each decoder 0.2 of a GPU if the
    cluster has any. `token` defaults to the variable `NEXTGPT_CHAT_TOKEN`; without a token, only requests to loopback
    host names are answered. `allow_origins` are the other origins whose pages may use the API. Without GPUs the LLM and
    the decoders are in one process, unless `separate_decoders`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    overrides: tuple[str, ...] = ()
    architecture: Architecture = "joint"
    places: Annotated[int, Field(ge=1)] = 64
    at_once: Annotated[int, Field(ge=1)] = AT_ONCE
    batch: Annotated[int, Field(ge=1)] | None = None
    max_replicas: Annotated[int, Field(ge=1)] = 1
    language_gpus: Fraction | None = None
    decoder_gpus: Fraction | None = None
    separate_decoders: bool = False
    token: str | None = None
    allow_urls: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    page: bool = True


@serve.deployment
@serve.ingress()
class Front:
    """The HTTP front end: the API, and the page with its visitors' conversations."""

    def __init__(self, settings: Settings, about: About, language: Any, renderers: dict[str, Any]) -> None:
        self._settings, self._about, self._language, self._renderers = settings, about, language, renderers
        self._page: Any = None

    def __del__(self) -> None:
        """Deletes visitors' files; Serve calls it when a replica ends."""
        if self._page is not None:
            self._page.close()

    def __serve_build_asgi_app__(self) -> Any:
        from fastapi import FastAPI

        from jobs.serving.api import add_handlers, router
        from jobs.serving.handles import Handles
        from jobs.serving.requests.guard import TOKEN, Guard
        from jobs.serving.requests.loading import Gate, Parts
        from jobs.serving.service import Service, answer

        settings = self._settings
        # Once: Serve would keep a handle for every request.
        renderers = {Modality(name): handle.options(stream=True) for name, handle in self._renderers.items()}
        handles = Handles(self._language.options(stream=True), renderers)
        architecture, guides = settings.architecture, self._about.needs_guides

        def answer_all(query: Query) -> AsyncGenerator[Event, None]:
            return answer(handles, asks(architecture, query, guides=guides))

        service = Service(self._about, answer_all, settings.places, architecture)
        app = FastAPI(title="NExT-GPT on Ray", docs_url="/docs", redoc_url=None)
        app.include_router(router(service, settings.allow_urls))
        add_handlers(app)
        if settings.page:
            from jobs.serving.requests.sessions import Sessions

            sessions = Sessions()
            os.environ["GRADIO_TEMP_DIR"] = str(sessions.root / "uploads")  # read when Gradio is imported
            from jobs.serving.page import add_page

            self._page = add_page(app, service, sessions)
        parts = {"language model": self._language} | {f"{name} decoder": part for name, part in self._renderers.items()}
        loading = Parts({name: part.is_loaded.remote for name, part in parts.items()})
        return Guard(
            Gate(self._page or app, loading), settings.token or os.environ.get(TOKEN) or None, settings.allow_origins
        )


def build(settings: Settings) -> Application:
    """The application; a Ray Serve application builder."""
    config = checkpoint_model(settings.checkpoint, settings.overrides)
    model = about(settings.checkpoint, config)
    gpus = _gpus()
    language_gpus = 0.4 * gpus if settings.language_gpus is None else settings.language_gpus
    decoder_gpus = 0.2 * gpus if settings.decoder_gpus is None else settings.decoder_gpus
    language, renderers = (
        _apart(settings, config, language_gpus, decoder_gpus)
        if settings.separate_decoders or language_gpus or decoder_gpus
        else _together(settings, config)
    )
    front: Any = Front
    options = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0.1}}
    return front.options(**options).bind(settings, model, language, renderers)


def _apart(
    settings: Settings, config: ModelConfig, language_gpus: float, decoder_gpus: float
) -> tuple[Application, dict[str, Application]]:
    """The LLM and each decoder as deployments of their own, which GPUs and replicas are given to one by one."""
    language = _deployment(Language, "Language", settings, language_gpus)
    renderers = {
        modality.value: _deployment(Renderer, f"{modality.value.title()}Renderer", settings, decoder_gpus).bind(
            output.decoder, modality, config.decoders, settings.batch
        )
        for modality, output in config.outputs.items()
    }
    return language.bind(settings.checkpoint, config, settings.at_once), renderers


def _together(settings: Settings, config: ModelConfig) -> tuple[Application, dict[str, Application]]:
    """One deployment, in the place of each part."""
    model = _deployment(Together, "Model", settings, 0, parts=1 + len(config.outputs)).bind(
        settings.checkpoint, config, settings.at_once, settings.batch
    )
    return model, {modality.value: model for modality in config.outputs}


def _deployment(part: type, name: str, settings: Settings, gpus: float, parts: int = 1) -> Any:
    options: dict[str, Any] = {
        "name": name,
        "max_ongoing_requests": 4 * settings.at_once * parts,
        "ray_actor_options": {"num_cpus": 0.2 if not gpus else 1, "num_gpus": gpus},
        "health_check_period_s": 2,
        "health_check_timeout_s": 30,
    }
    if settings.max_replicas > 1:
        options["autoscaling_config"] = {
            "min_replicas": 1,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": max(1, settings.at_once // 2),
        }
    return serve.deployment(part).options(**options)


def _gpus() -> int:
    """1 if the cluster has a GPU, else 0."""
    import ray

    return int(ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1)
