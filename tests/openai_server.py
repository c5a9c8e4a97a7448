"""A server on loopback that speaks OpenAI's protocol and fails in every way servers do."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("429", "500", "hang", "cut", "garbage", "empty")
HANG_SECONDS = 3.0
KEY = "sk-a-secret-that-nobody-should-see"


Message = dict[str, str]


@dataclass(frozen=True)
class Sent:
    """A whole answer, where a text is not enough."""

    body: Any
    status: int = 200


class Server:
    """An OpenAI-compatible server; a share of its answers, drawn by a seed, are faults. Counts what was asked."""

    def __init__(
        self,
        fault_rate: float = 0.0,
        faults: tuple[str, ...] = FAULTS,
        answer: Callable[[list[Message]], str | Sent] = lambda messages: choose_a(messages[-1]["content"]),
    ) -> None:
        self.good: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.bodies: list[dict[str, Any]] = []
        """Of all requests."""
        self.lock = threading.Lock()
        self._random = random.Random(0)
        self._fault_rate, self._faults, self.answer = fault_rate, faults, answer
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"owner": self}))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def drawn_fault(self) -> str | None:
        """Of the next answer, counted."""
        fault = self._random.choice(self._faults) if self._random.random() < self._fault_rate else None
        self.faults[fault or "none"] += 1
        return fault

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request to `owner`."""

    owner: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions":
            self.send_body(b'{"detail": "Not Found"}', 404)
            return
        with self.owner.lock:
            self.owner.bodies.append(body)
            self.owner.keys.add(self.headers["authorization"].removeprefix("Bearer "))
            fault = self.owner.drawn_fault()
        self.answer(body["messages"], fault)

    def answer(self, messages: list[Message], fault: str | None) -> None:
        if fault in ("429", "500"):
            self.send_error_json(int(fault))
        elif fault == "hang":
            time.sleep(HANG_SECONDS)
        elif fault == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{")
        elif fault == "garbage":
            self.send_body(b"{not json", 200)
        elif fault == "empty":
            self.send_body(json.dumps(completion("x") | {"choices": []}).encode(), 200)
        else:
            sent = self.owner.answer(messages)
            with self.owner.lock:
                self.owner.good[messages[-1]["content"]] += 1
            sent = sent if isinstance(sent, Sent) else Sent(completion(sent))
            self.send_body(json.dumps(sent.body).encode(), sent.status)
        self.close_connection = True

    def send_error_json(self, status: int) -> None:
        body = json.dumps({"error": {"message": f"failed with {KEY}", "code": None}}).encode()
        self.send_body(body, status, {"Retry-After": "0.01"})

    def send_body(self, body: bytes, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


def choose_a(question: str) -> str:
    """A judge's reply that begins like its question."""
    return f"Comparison: {question[:9]}\nFinal Response: A"


def refuse(status: int, /, **error: Any) -> Sent:
    """OpenAI's form of an error."""
    return Sent({"error": {"type": "invalid_request_error", "param": None, "code": None, **error}}, status)


def completion(content: Any, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """A reply; the content of some models is a list of parts."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }
