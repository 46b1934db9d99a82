# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run compared, and on what: the words above its figures."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gpuckpt_report.analysis.run import RunAnalysis
from gpuckpt_report.records.schema import RunManifest
from gpuckpt_report.text.units import human_bytes

ENGINES = {"vllm": "vLLM", "reference": "gpuckpt's reference server"}


def title(run: RunAnalysis) -> str:
    """Model, engine and processor in one line, of what the manifest knows."""
    server = run.manifest.server
    engine = _engine(run.manifest)
    model = server.get("model")
    what = f"{model} in {engine}" if model and server.get("kind") != "reference" else engine
    where = _hosts([_processor(known) for known in run.manifest.hosts.values()])
    starts = {lane.start for lane in run.manifest.lanes if lane.other_server is None}
    asked = " and ".join(words for start, words in (("cold", "cold start"), ("restore", "restore")) if start in starts)
    return f"{asked.capitalize()}: {what}" + (f", {where}" if where else "")


def facts(run: RunAnalysis) -> list[tuple[str, str]]:
    """Rows of the page's first table: what was measured, of which server, on which machines."""
    manifest = run.manifest
    server = _server(manifest)
    rows = [("Server", server)] if server else []
    machines = _hosts([machine(known) for known in manifest.hosts.values()])
    label = "Machine" if len(run.hosts) == 1 else f"{len(run.hosts)} machines"
    return [*rows, (label, machines or "not described")]


def compared(manifest: RunManifest) -> str:
    """How many lanes of which kind were measured, and how often."""
    starts = Counter(lane.start for lane in manifest.lanes if lane.other_server is None)
    restores, colds = starts.get("restore", 0), starts.get("cold", 0)
    parts = [f"{restores} way{'s' * (restores > 1)} to restore a checkpoint"] if restores else []
    parts += [f"{colds} kinds of cold start" if colds > 1 else "a cold start"] if colds else []
    others = Counter(lane.other_server for lane in manifest.lanes if lane.other_server is not None)
    parts += [f"{count} lane{'s' * (count > 1)} of another server, {server}" for server, count in others.items()]
    counts = sorted({lane.iterations or manifest.iterations for lane in manifest.lanes})
    times = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    return f"{', '.join(parts[:-1])}{' and ' * (len(parts) > 1)}{parts[-1]}; each {times} times, in turns"


def machine(known: dict[str, Any]) -> str:
    """One line on a host, of what the manifest knows: GPUs, driver, processors, system."""
    gpus, driver = _gpus(known), _at(known, "gpu", "driver", "version")
    cores, memory = _at(known, "host", "cpu", "count"), _at(known, "host", "memory_bytes")
    system, kernel = _at(known, "host", "os"), _at(known, "host", "kernel")
    parts = [_counted(gpus)] if gpus else ["no GPU"] if known.get("host") else []
    parts += [f"driver {driver}"] if driver else []
    parts += [f"{cores} cores"] if cores else []
    parts += [f"{human_bytes(memory)} of memory"] if isinstance(memory, int) else []
    parts += [str(system)] if system else []
    return ", ".join([*parts, *([f"Linux {kernel}"] if kernel else [])])


def _server(manifest: RunManifest) -> str:
    server = manifest.server
    if not server:
        return ""
    parts = [_engine(manifest)]
    parts += [f"model {server['model']}"] if server.get("model") else []
    packages = _packages(manifest)
    parts += [f"torch {packages['torch']}"] if packages.get("torch") else []
    return ", ".join(parts)


def _engine(manifest: RunManifest) -> str:
    kind = str(manifest.server.get("kind") or "")
    name = ENGINES.get(kind) or str(manifest.server.get("name") or "a server that the manifest does not describe")
    version = _packages(manifest).get(kind)
    return f"{name} {version}" if version else name


def _packages(manifest: RunManifest) -> dict[str, Any]:
    """Those of the first host that has any."""
    found = (known.get("packages") for known in manifest.hosts.values())
    return next((packages for packages in found if packages and isinstance(packages, dict)), {})


def _processor(known: dict[str, Any]) -> str:
    cores = _at(known, "host", "cpu", "count")
    return _counted(_gpus(known)) or (f"{cores} CPU cores" if cores else "")


def _gpus(known: dict[str, Any]) -> list[str]:
    found = _at(known, "gpu", "gpus")
    return [str(one["name"]) for one in found if _at(one, "name")] if isinstance(found, list) else []


def _at(tree: Any, *keys: str) -> Any:
    """What lies there in nested mappings whose shape nobody promised; None where nothing does."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _hosts(described: list[str]) -> str:
    """Each distinct description of hosts once, with how many hosts it is of where there are several."""
    counts = Counter(words for words in described if words)
    return "; ".join(words if count == 1 else f"{count} hosts with {words}" for words, count in counts.items())


def _counted(names: list[str]) -> str:
    """Each distinct name once, with how often it is there."""
    counts = Counter(name for name in names if name)
    return "; ".join(name if count == 1 else f"{count} × {name}" for name, count in counts.items())
