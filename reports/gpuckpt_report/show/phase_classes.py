# SPDX-License-Identifier: GPL-3.0-or-later
"""Phases in plain words, and the class that each belongs to: one colour a class, the same in every chart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpuckpt_report.analysis.run import UNATTRIBUTED


@dataclass(frozen=True)
class PhaseClass:
    """A class of phases: its name in the style sheet, its name for readers, and what belongs to it."""

    key: str
    title: str
    meaning: str


START = PhaseClass(
    "start", "start of the command", "podman, the OCI runtime and CRIU before and after the restore itself"
)
IMAGES = PhaseClass("images", "images and files", "reading what the checkpoint describes: processes, files, sockets")
MEMORY = PhaseClass("memory", "memory of the processes", "bringing back the bytes of the processes' memory")
GPU = PhaseClass("gpu", "GPU driver", "NVIDIA's driver making contexts and copying memory to the GPU")
WEIGHTS = PhaseClass("weights", "loading or waking", "the server loading its weights, or waking up with them")
TOKEN = PhaseClass("token", "first token", "from the request to the first token of the answer")
REST = PhaseClass("rest", "unattributed", "time before the first token that no phase covers")
OTHER = PhaseClass("other", "other", "CRIU's scripts, its last steps, and phases that this list does not know")
CLASSES = (START, IMAGES, MEMORY, GPU, WEIGHTS, TOKEN, REST, OTHER)


@dataclass(frozen=True)
class PhaseName:
    """A phase: its class, its name for readers, and what happens in it."""

    phase_class: PhaseClass
    title: str
    meaning: str


PHASES = {
    "before_criu": PhaseName(START, "before CRIU", "podman and the OCI runtime, until CRIU starts"),
    "after_criu": PhaseName(START, "after CRIU", "from CRIU's end until the command returns"),
    "criu_setup": PhaseName(START, "CRIU starts", "CRIU looks at the kernel and its options"),
    "start_command": PhaseName(START, "start command", "the command that starts the server, until it returns"),
    "unpack": PhaseName(IMAGES, "unpack the archive", "the checkpoint's archive is unpacked to files"),
    "read_images": PhaseName(IMAGES, "read descriptions", "CRIU reads what the checkpoint says of the processes"),
    "fork_and_files": PhaseName(IMAGES, "processes and files", "CRIU makes the processes and opens their files"),
    "memory_and_threads": PhaseName(MEMORY, "memory and threads", "memory is put in place, threads are made"),
    "read": PhaseName(MEMORY, "read memory", "memory is read from the images"),
    "mapped": PhaseName(MEMORY, "map memory", "images are mapped; their bytes arrive when touched"),
    "shmem-read": PhaseName(MEMORY, "read shared memory", "memory that processes share is read from the images"),
    "populate": PhaseName(MEMORY, "populate pages", "pages that the driver will read are brought in beforehand"),
    "standaside": PhaseName(
        MEMORY, "memory kept from mapping", "a mark: memory that is read although it could be mapped"
    ),
    "devices": PhaseName(GPU, "wait for the GPU", "CRIU waits until its plugin has restored the GPU"),
    "driver-open": PhaseName(GPU, "open the driver", "the plugin opens NVIDIA's driver"),
    "pool-init": PhaseName(
        GPU, "initialise the driver", "a helper initialises the driver during the restore of memory"
    ),
    "pool-wait": PhaseName(GPU, "wait for the helper", "the restore waits for the helper that initialises the driver"),
    "cuda-restore": PhaseName(GPU, "driver restores the GPU", "the driver makes contexts and copies memory to the GPU"),
    "cuda-unlock": PhaseName(GPU, "driver lets CUDA run", "the driver lets the processes call CUDA again"),
    "gpu-stage": PhaseName(GPU, "library saves the GPU", "programs put the GPU's memory into files themselves"),
    "gpu-bring-back": PhaseName(GPU, "library restores the GPU", "programs take the GPU's memory back from files"),
    "cuda-lock": PhaseName(GPU, "driver stops CUDA", "the driver holds the processes' calls of CUDA"),
    "cuda-checkpoint": PhaseName(GPU, "driver saves the GPU", "the driver copies the GPU's memory to the host"),
    "contexts": PhaseName(GPU, "make CUDA contexts", "floor: contexts are made in fresh processes"),
    "copies": PhaseName(GPU, "copy to the GPU", "floor: copies from the host to the GPU"),
    "load": PhaseName(WEIGHTS, "load and get healthy", "the server loads its weights, until /health answers"),
    "wake": PhaseName(WEIGHTS, "wake up", "the restored server brings its weights back to the GPU"),
    "prefetch-context": PhaseName(WEIGHTS, "prefetch: context", "the helper that prefetches weights makes its context"),
    "prefetch-copy": PhaseName(WEIGHTS, "prefetch: copy", "weights are copied to the GPU while the restore runs"),
    "first_token": PhaseName(TOKEN, "first token", "from the request to the first token of the answer"),
    UNATTRIBUTED: PhaseName(REST, "unattributed", "time before the first token that no phase covers"),
    "freeze": PhaseName(OTHER, "stop the processes", "checkpoint: CRIU stops the processes"),
    "inspect": PhaseName(OTHER, "inspect the processes", "checkpoint: CRIU looks at memory, files and sockets"),
    "memory": PhaseName(MEMORY, "write memory", "checkpoint: memory is written to the images"),
    "describe": PhaseName(OTHER, "describe the processes", "checkpoint: CRIU writes what it saw of the processes"),
    "finish": PhaseName(OTHER, "last steps", "CRIU's last steps before the processes may run"),
    "detach": PhaseName(OTHER, "let the processes run", "CRIU lets go of the processes"),
    "store": PhaseName(OTHER, "read the store", "floor: a file on the checkpoint store is read"),
}
# CRIU names the scripts that it runs, and any hook may have one.
SCRIPT = "script_"


def named(phase: str) -> PhaseName:
    """A phase of the records as readers see it; one that is not known is of the class ``other``, by its own name."""
    if phase.startswith(SCRIPT):
        return PhaseName(OTHER, f"script {phase.removeprefix(SCRIPT)}", "a script that CRIU runs at this hook")
    return PHASES.get(phase) or PhaseName(OTHER, phase, "not known to this list")


def glossary(phases: Iterable[str]) -> list[tuple[PhaseClass, list[tuple[str, PhaseName]]]]:
    """The phases given, by class: (name in records, what it is)."""
    known = [(phase, named(phase)) for phase in dict.fromkeys(phases)]
    groups = [(kind, [item for item in known if item[1].phase_class is kind]) for kind in CLASSES]
    return [(kind, members) for kind, members in groups if members]
