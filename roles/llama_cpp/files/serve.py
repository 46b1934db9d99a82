#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves a GGUF model over HTTP with llama.cpp's own server, in the foreground.

serve.py MODEL.gguf [--host 127.0.0.1] [--port 18081] [--threads 1]
serve.py --check MODEL.gguf       load the model, answer one prompt, end
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys

import xllamacpp


def main() -> int:
    """Serves until a signal ends it; returns the exit status."""
    parser = argparse.ArgumentParser(description="Serve a GGUF model with llama.cpp.")
    parser.add_argument("model", help="a file in GGUF format")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=18081)
    parser.add_argument("--threads", type=int, default=1, help="more only where processors are idle: they spin")
    parser.add_argument("--check", action="store_true", help="load, answer, end")
    options = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames = [options.host]
    params.port = free_port(options.host) if options.check else options.port
    params.n_ctx = 1024
    # one request at a time: how requests share a batch changes the last bits of an answer
    params.n_parallel = 1
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.endpoint_metrics = True
    params.warmup = True
    server = xllamacpp.Server(params)
    if options.check:
        answer = server.handle_completions({"prompt": "The", "max_tokens": 4, "temperature": 0})
        return 0 if answer["choices"] else 1
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


def free_port(host: str) -> int:
    """A port that nobody has just now."""
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
