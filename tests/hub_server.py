"""A stand-in of the Hugging Face hub on loopback: as much of it as an upload asks."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """Keeps what is committed.

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
        self.commits = 0
        self._refuse, self._private = refuse, private
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                status, answer = hub.answer(self.command, self.path, body, self.headers.get("authorization"))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = _handle

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
