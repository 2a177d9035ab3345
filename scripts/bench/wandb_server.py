"""A W&B server on this machine that answers, refuses, is slow or fails: for tests, and to measure what that costs.

python -m bench.wandb_server MODE      # prints its address, and answers until it is killed
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """A W&B server that answers by `mode`: ok, 401, 500, slow (15 s)."""

    daemon_threads = True

    def __init__(self, mode: str = "ok") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode = mode
        self.requests: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""

    def bodies(self, part: str) -> str:
        return "\n".join(body for path, body in self.requests if part in path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        text = body.decode(errors="replace")
        self.server.requests.append((self.path, text))
        if self.server.mode == "slow":
            time.sleep(15)
        code = int(self.server.mode) if self.server.mode.isdigit() else 200
        content = json.dumps(graphql(text, self.server.url) if self.path == "/graphql" and code == 200 else {}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer


def graphql(text: str, url: str) -> dict[str, Any]:
    query = json.loads(text)
    name = query["variables"].get("name", "x")
    if "upsertBucket" in query["query"]:
        project = {"id": "p", "name": "locallearn", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": name, "displayName": name, "config": "{}", "historyLineCount": 0}
        return {"data": {"upsertBucket": {"inserted": True, "bucket": {**bucket, "project": project}}}}
    if "createRunFiles" in query["query"]:
        files = [{"name": n, "uploadUrl": f"{url}/upload/{n}"} for n in query["variables"]["files"]]
        return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
    return {"data": {}}


if __name__ == "__main__":
    started = Server(sys.argv[1])
    print(started.url, flush=True)
    started.serve_forever()
