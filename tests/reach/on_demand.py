#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a first request waits on demand, next to a restore by hand of the same golden checkpoint, in turn.

    on_demand.py [--rounds N] [--name NAME]

Needs a node on which serve.yml has brought a server of the runtime `process`, which is not being served. Prints a line of
JSON for each sample: what was measured, and seconds until the first token. `demand` counts from the connection to a socket
that nothing serves, `hand` from the restore command.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

import module_call
from ckpt.system import procfs

PROGRAM = "/opt/gpuckpt/serve/bin/gpuckpt-serve"
LIMIT_S = 60.0


def first_token_s(port: int, model: str) -> float:
    """Seconds from the connection to the first token of a streamed answer, which is then read to its end."""
    body = json.dumps(
        {"model": model, "prompt": "The quick brown fox", "max_tokens": 16, "temperature": 0, "stream": True}
    )
    head = f"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as connection:
        connection.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())
        answer = b""
        while b"data:" not in answer:
            part = connection.recv(4096)
            if not part:
                raise SystemExit(f"on_demand.py: no token came: {answer!r}")
            answer += part
        seconds = time.monotonic() - began
        while connection.recv(65536):
            pass
    return seconds


def demand(name: str, model: str) -> float:
    """One start by a first request; the server is stopped again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    argv = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", PROGRAM, "--on-demand", "--idle=1", name]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        # a connection would be a first request
        while procfs.port_holder(port) is None:
            time.sleep(0.01)
        seconds = first_token_s(port, model)
        process.wait(LIMIT_S)
    return seconds


def by_hand(wanted: dict) -> float:
    """One restore by ckpt_restore, whose record counts from the command."""
    golden = json.loads(Path(wanted["folder"], wanted["name"], "golden.json").read_text(encoding="utf-8"))
    result = module_call.call(
        "ckpt_restore",
        runtime=wanted["runtime"],
        server={**wanted["server"], "name": golden["instance"]},
        criu=wanted["criu"],
        checkpoint={"dir": golden["folder"], "source": "disk"},
        flags=wanted["flags"],
        memory_digest=False,
        stop_after=True,
    )
    return float(result["record"]["t"]["T4"])


def main() -> int:
    """Measures; returns the exit status."""
    parser = argparse.ArgumentParser(description="How long a first request waits on demand.")
    parser.add_argument("--rounds", type=int, default=12, metavar="N")
    parser.add_argument("--name", default="reference", help="the server, as serve.yml calls it")
    options = parser.parse_args()
    wanted = json.loads(Path(f"/etc/gpuckpt/servers/{options.name}.json").read_text(encoding="utf-8"))
    ways = {"demand": lambda: demand(options.name, wanted["server"]["model"]), "hand": lambda: by_hand(wanted)}
    samples: dict[str, list[float]] = {way: [] for way in ways}
    # the first round warms up
    for number in range(options.rounds + 1):
        for way in sorted(ways, reverse=bool(number % 2)):
            seconds = ways[way]()
            if number:
                samples[way].append(seconds)
                print(json.dumps({"way": way, "round": number, "first_token_s": round(seconds, 4)}), flush=True)
    for way, seconds_of in samples.items():
        print(f"{way}: median {median(seconds_of):.3f} s, n = {len(seconds_of)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
