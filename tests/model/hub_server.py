"""A small stand-in for the Hugging Face hub: the routes that uploading and downloading a model take, in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response, abort, request
from werkzeug.serving import make_server

TOKEN = "hf_secret"
Files = dict[str, bytes]


class Hub:
    """Repositories by id; a commit is all files as they stand, its hash the number it has."""

    def __init__(self) -> None:
        self.commits: dict[str, list[Files]] = {}
        self.private: set[str] = set()
        self.uploads: Files = {}

    def files(self, repo: str, revision: str) -> tuple[str, Files]:
        """A commit's hash and files; `main` is the last one."""
        if repo not in self.commits or (repo in self.private and not authorized()):
            abort(Response("no such repository", 401, {"X-Error-Code": "RepoNotFound"}))
        commits = self.commits[repo]
        number = len(commits) - 1 if revision == "main" else int(revision, 16)
        if number >= len(commits):
            abort(Response("no such revision", 404, {"X-Error-Code": "RevisionNotFound"}))
        return f"{number:040x}", commits[number]


def authorized() -> bool:
    return request.headers.get("Authorization") == f"Bearer {TOKEN}"


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def app(hub: Hub) -> Flask:
    flask = Flask("hub")

    @flask.before_request
    def only_known_people_write() -> None:
        if request.method in ("POST", "DELETE") and not authorized():
            abort(401)

    @flask.post("/api/repos/create")
    def create() -> Any:
        asked = request.get_json()
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in hub.commits:
            return {"url": f"{request.host_url}{repo}"}, 409
        hub.commits[repo] = [{}]
        if asked.get("private") or asked.get("visibility") == "private":
            hub.private.add(repo)
        return {"url": f"{request.host_url}{repo}"}

    @flask.post("/api/validate-yaml")
    def validate() -> Any:
        return {"warnings": [], "errors": []}

    @flask.post("/api/models/<path:repo>/preupload/<revision>")
    def preupload(repo: str, revision: str) -> Any:
        files = [file["path"] for file in request.get_json()["files"]]
        modes = [{"path": p, "uploadMode": "lfs" if is_large(p) else "regular", "shouldIgnore": False} for p in files]
        return {"files": modes}

    @flask.post("/<path:repo>.git/info/lfs/objects/batch")
    def batch(repo: str) -> Any:
        upload = {o["oid"]: {"href": f"{request.host_url}upload/{o['oid']}"} for o in request.get_json()["objects"]}
        objects = [{**o, "actions": {"upload": upload[o["oid"]]}} for o in request.get_json()["objects"]]
        return {"transfer": "basic", "objects": objects}

    @flask.put("/upload/<oid>")
    def upload(oid: str) -> Any:
        content = request.get_data()
        assert hashlib.sha256(content).hexdigest() == oid
        hub.uploads[oid] = content
        return {}

    @flask.post("/api/models/<path:repo>/commit/<revision>")
    def commit(repo: str, revision: str) -> Any:
        files = dict(hub.files(repo, revision)[1])
        for line in request.get_data().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = hub.uploads[value["oid"]]
        hub.commits[repo].append(files)
        oid = hub.files(repo, "main")[0]
        return {"commitUrl": f"{request.host_url}{repo}/commit/{oid}", "commitOid": oid}

    @flask.get("/api/models/<path:repo>")
    @flask.get("/api/models/<path:repo>/revision/<revision>")
    def info(repo: str, revision: str = "main") -> Any:
        sha, files = hub.files(repo, revision)
        return {"id": repo, "sha": sha, "private": repo in hub.private, "siblings": [{"rfilename": n} for n in files]}

    @flask.get("/api/models/<path:repo>/tree/<revision>")
    def tree(repo: str, revision: str) -> Any:
        files = hub.files(repo, revision)[1].items()
        return [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files]

    @flask.get("/<path:repo>/resolve/<revision>/<path:name>")
    def resolve(repo: str, revision: str, name: str) -> Any:
        sha, files = hub.files(repo, revision)
        headers = {"ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"', "X-Repo-Commit": sha}
        return Response(files[name], headers=headers, mimetype="application/octet-stream")

    return flask


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The URL of a hub on loopback while it lasts."""
    server = make_server("127.0.0.1", 0, app(hub), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
