#!/usr/bin/env python3
"""A receiver for trying things out: prints each delivery and answers 200.

usage: receiver.py [port] [secret]      with a secret it verifies the signature, too
"""
import hashlib
import hmac
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
SECRET = sys.argv[2] if len(sys.argv) > 2 else None


def verify(header: str, body: bytes) -> str:
    """The Stripe-style scheme: HMAC-SHA256 over timestamp, a dot and the body; any v1 may match."""
    parts = [part.split("=", 1) for part in header.split(",")]
    stamp = next(value for name, value in parts if name == "t")
    wanted = hmac.new(SECRET.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    if not any(name == "v1" and hmac.compare_digest(value, wanted) for name, value in parts):
        return "BAD SIGNATURE"
    return "signature ok" if abs(time.time() - int(stamp)) <= 300 else "TOO OLD"


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        verdict = verify(self.headers["X-Webhook-Signature"], body) if SECRET else ""
        print(self.headers["X-Webhook-Event-Type"], self.headers["webhook-id"], body.decode(), verdict, flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Receiver).serve_forever()
