"""Who is let in."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from jobs.serving.requests import guard
from jobs.serving.requests.guard import Guard

TOKEN = "a-secret-of-some-length"


def client(
    token: str | None = None, base: str = "http://127.0.0.1:8000", origins: tuple[str, ...] = ()
) -> httpx.AsyncClient:
    app = FastAPI()

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @app.get("/")
    @app.get("/healthz")
    async def page() -> str:
        return "here"

    return httpx.AsyncClient(transport=httpx.ASGITransport(Guard(app, token, origins)), base_url=base)


async def get(path: str = "/", token: str | None = None, base: str = "http://127.0.0.1:8000", **more: Any) -> Any:
    async with client(token, base) as http:
        return await http.get(path, **more)


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "localhost"])
async def test_loopbacks_own_names_are_answered(host: str) -> None:
    answer = await get(base=f"http://{host}")
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.anyio
async def test_a_name_that_points_to_loopback_and_another_pages_requests_are_not() -> None:
    assert (await get(base="http://rebound.example:8000")).status_code == 403
    other = await get(headers={"Origin": "http://evil.example"})
    assert other.status_code == 403
    assert "another page" in other.json()["error"]["message"]
    assert (await get(headers={"Origin": "http://127.0.0.1:8000"})).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_a_page_of_an_allowed_origin_uses_the_api_and_nothing_else(token: str | None) -> None:
    page = {"Origin": "http://app.example:3000"}
    asks = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-a"}
    async with client(token, origins=("http://app.example:3000",)) as http:
        preflight = await http.options("/v1/chat/completions", headers=asks)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "http://app.example:3000"
        assert preflight.headers["access-control-allow-headers"] == "authorization,x-a"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        answer = await http.get("/healthz", headers=page)
        assert (answer.status_code, answer.json()) == (200, "here")
        assert answer.headers["access-control-allow-origin"] == "http://app.example:3000"
        assert answer.headers["vary"] == "Origin"
        for headers in (asks | {"Origin": "http://evil.example"}, page | {"Origin": "http://app.example"}):
            refused = await http.request("OPTIONS", "/v1/chat/completions", headers=headers)
            assert refused.status_code in (401, 403)
            assert "access-control-allow-origin" not in refused.headers
        assert (await http.get("/", headers=page)).status_code in (401, 403), "the page is not shared"
        if token:
            refused = await http.get("/v1/models", headers=page)
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "http://app.example:3000", "so that it is read"


@pytest.mark.anyio
async def test_with_a_token_nobody_gets_in_without_it() -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"{guard.TOKEN_COOKIE}=wrong"}):
        answer = await get(token=TOKEN, base="http://any.example", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
    assert (await get("/healthz", token=TOKEN)).status_code == 200
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert (await get(token=TOKEN, base="http://any.example", headers=bearer)).status_code == 200


@pytest.mark.anyio
async def test_a_browser_is_given_the_token_once_and_keeps_it_where_no_script_reads_it() -> None:
    async with client(TOKEN) as http:
        first = await http.get("/", params={"token": TOKEN})
        assert first.status_code == 303
        assert first.headers["location"] == "/"
        assert "httponly" in first.headers["set-cookie"].lower()
        assert (await http.get("/")).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_large_body_is_refused_before_it_is_held(monkeypatch: pytest.MonkeyPatch, is_announced: bool) -> None:
    monkeypatch.setattr(guard, "MAX_BODY", 1000)

    async def pieces() -> Any:
        for _ in range(5):
            yield b"x" * 300

    async with client() as http:
        assert (await http.post("/size", content=b"x" * 1000)).json() == 1000
        answer = await http.post("/size", content=b"x" * 1001 if is_announced else pieces())
    assert answer.status_code == 413


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
