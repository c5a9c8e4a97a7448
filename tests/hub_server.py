"""A stand-in of the Hugging Face hub on loopback: as much of it as uploads and downloads ask."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class Stored:
    """A repository that can be downloaded.

    Args:
        branches: bytes of each file, by branch.
        gated: only who has this token gets its files.
        stops_at: files of these names end in their middle, once each, like a connection that breaks.
        missing: files of these names are listed and not there.
        status: answer every question with it, for instance 503; None: answer.
    """

    def __init__(
        self,
        gated: str | None = None,
        stops_at: tuple[str, ...] = (),
        missing: tuple[str, ...] = (),
        status: int | None = None,
        **branches: dict[str, bytes],
    ) -> None:
        self.branches = {name.replace("__", "/"): files for name, files in branches.items()}
        self.gated, self.stops_at, self.missing, self.status = gated, set(stops_at), missing, status

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Hash and files of a branch, or of a hash."""
        for name, files in self.branches.items():
            sha = hashlib.sha1(repr([name, sorted(files.items())]).encode()).hexdigest()
            if revision in (name, sha):
                return sha, files
        return None


class Hub:
    """Keeps what is committed, and serves what is in `stored`, by kind and name: "datasets/me/data".

    Args:
        refuse: answer every request with 403.
        private: what it says of a repository, whatever was asked for; None: what was asked for.
    """

    def __init__(self, refuse: bool = False, private: bool | None = None) -> None:
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.created: dict[str, Any] = {}
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, Stored] = {}
        self.commits = 0
        self._refuse, self._private = refuse, private
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                token = self.headers.get("authorization")
                found = hub.serve(self.command, unquote(self.path), token, self.headers.get("range"))
                if found is None:
                    status, answer = hub.answer(self.command, self.path, body, token)
                    found = status, {"content-type": "application/json"}, json.dumps(answer).encode()
                status, headers, content = found
                self.send_response(status)
                for name, value in ({"content-length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
                if len(content) < int(headers.get("content-length", 0)):
                    self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = _handle

            def log_message(self, *arguments: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(
        self, method: str, path: str, token: str | None, part: str | None
    ) -> tuple[int, dict[str, str], bytes] | None:
        """Status, headers and content of what a download asks; None: it is no such question."""
        asked = re.fullmatch(r"/api/(\w+/.+?)/(revision|auth-check|tree)/?(.*)", path.partition("?")[0])
        file = re.fullmatch(r"/(datasets/[^/]+(?:/[^/]+)?|[^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path)
        if method not in ("GET", "HEAD") or not (asked or file):
            return None
        self.requests.append(f"{method} {path}")
        self.tokens.add(token)
        name = asked[1] if asked else file[1] if file[1].startswith("datasets/") else f"models/{file[1]}"
        stored = self.stored.get(name)
        if stored is None:
            return 401, {"x-error-code": "RepoNotFound"}, b"{}"
        if stored.status is not None:
            return stored.status, {}, b"{}"
        refused = stored.gated is not None and token != f"Bearer {stored.gated}"
        if refused and (file or asked[2] == "auth-check"):
            return 403, {"x-error-code": "GatedRepo"}, b"{}"
        if asked and asked[2] == "auth-check":
            return 200, {}, b"{}"
        found = stored.find(file[2] if file else asked[3])
        if found is None:
            return 404, {"x-error-code": "RevisionNotFound"}, b"{}"
        sha, files = found
        if asked and asked[2] == "tree":
            tree = [{"type": "file", "path": each, "size": len(files[each]), "oid": sha} for each in files]
            return 200, {"content-type": "application/json"}, json.dumps(tree).encode()
        if file is None:
            about = {"id": name.partition("/")[2], "sha": sha, "gated": "auto" if stored.gated else False}
            about |= {"private": False, "siblings": [{"rfilename": each} for each in files]}
            return 200, {"content-type": "application/json"}, json.dumps(about).encode()
        if file[3] not in files or file[3] in stored.missing:
            return 404, {"x-error-code": "EntryNotFound"}, b""
        return self._file(method, stored, sha, file[3], files[file[3]], part)

    @staticmethod
    def _file(
        method: str, stored: Stored, sha: str, name: str, content: bytes, part: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {"etag": f'"{hashlib.sha256(content).hexdigest()}"', "x-repo-commit": sha}
        start = int(part.removeprefix("bytes=").partition("-")[0]) if part and method == "GET" else 0
        headers |= {"content-length": str(len(content) - start), "accept-ranges": "bytes"}
        if start:
            headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        if method == "GET" and name in stored.stops_at:
            stored.stops_at.discard(name)
            rest = rest[: len(rest) // 2]
        return 206 if start else 200, headers, rest

    def answer(self, method: str, path: str, body: bytes, authorization: str | None) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        if method == "PUT":
            # To the storage behind the hub, whose addresses are signed: the token is not sent there.
            self.objects[path.rpartition("/")[2]] = body
            return 200, {}
        self.tokens.add(authorization)
        if self._refuse:
            return 403, {"error": "You don't have the rights to do this"}
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return 200, {"url": f"{self.address}/{self.created['organization']}/{self.created['name']}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            return 200, {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._upload(o) for o in json.loads(body)["objects"]]}
        if "/commit/" in path:
            self._commit([json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.address}{path.removeprefix('/api/models')}", "commitOid": "0" * 40}
        if method == "GET" and path.startswith("/api/models/"):
            private = bool(self.created.get("private")) if self._private is None else self._private
            return 200, {"id": path.removeprefix("/api/models/"), "private": private}
        return 404, {"error": f"the stand-in does not know {method} {path}"}

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {**wanted, "actions": {"upload": {"href": f"{self.address}/storage/{wanted['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        self.commits += 1
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
