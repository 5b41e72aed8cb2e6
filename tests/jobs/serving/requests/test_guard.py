"""Who is let in."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from jobs.serving.requests import guard
from jobs.serving.requests.guard import Guard

TOKEN = "a-secret-of-some-length"


def client(token: str | None = None, base: str = "http://127.0.0.1:8000") -> httpx.AsyncClient:
    app = FastAPI()

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @app.get("/")
    @app.get("/healthz")
    async def page() -> str:
        return "here"

    return httpx.AsyncClient(transport=httpx.ASGITransport(Guard(app, token)), base_url=base)


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
