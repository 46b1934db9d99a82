# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation that the ckpt_* modules have in common; their options are in module_utils/ckpt/module.py."""

from __future__ import annotations


class ModuleDocFragment:
    """`ckpt`: the server. `ckpt.measurement`: the build of CRIU. `ckpt.record`: the identity of what is measured.

    `ckpt.golden`: a server that is served from a golden checkpoint. `ckpt.copies`: where copies of those lie.
    """

    DOCUMENTATION = r"""
options:
  runtime:
    description: What holds the server's processes, a container or a plain process tree with bare CRIU.
    type: str
    choices: [podman, process]
    required: true
  server:
    description:
      - The server, as the role inference_server publishes it in the fact C(inference_server_spec).
      - Keys are C(name), C(kind) (V(reference), V(vllm) or V(command)), C(command), C(model), C(port) and optionally C(host),
        C(health_path), C(completions_path), C(counter_path), C(counter_metric), C(health_timeout_s), C(env), C(env_secret_file),
        C(cwd), C(stdout), C(image) or C(rootfs), C(podman_args), C(privileged), C(capabilities), C(expose_development), C(gpu),
        C(shares_gpu_memory), C(canary), C(question), C(sleep), C(staging_dir), C(prefetch).
      - A server whose processes use several GPUs is not checkpointed unless C(shares_gpu_memory) is V(false), which says that
        they share no memory of a GPU, or let go of it when they are slimmed.
      - Every wrong key is named in one message.
    type: dict
    required: true
"""

    MEASUREMENT = r"""
requirements:
  - root
  - Python 3.11 or newer on the node
options:
  criu:
    description: The build of CRIU and its switches.
    type: dict
    suboptions:
      build:
        description: Which of the builds below O(criu.home) is used.
        type: str
        choices: [current, stock, patched, distro]
        default: current
      switches:
        description: Variables C(CRIU_*) for this operation, over the node's defaults in C(/etc/gpuckpt/criu.env).
        type: dict
        default: {}
      home:
        description: Folder of the builds.
        type: path
        default: /opt/gpuckpt/criu
"""

    GOLDEN = r"""
options:
  name:
    description: The name under which it is served.
    type: str
    required: true
  criu:
    description: The build of CRIU and its switches, as for C(ckpt_start).
    type: dict
    suboptions:
      build: {description: Which build., type: str, choices: [stock, patched, distro, current], default: current}
      switches: {description: "Switches, on top of the node's own.", type: dict, default: {}}
      home: {description: Folder of the builds., type: path, default: /opt/gpuckpt/criu}
  folder:
    description:
      - Where the checkpoints of all servers lie; each has a folder of its own there. On a disk it outlives a reboot.
      - It holds memory of processes, secrets included, and is for root alone.
    type: path
    default: /var/lib/gpuckpt/golden
  slimming:
    description: What is given back before the checkpoint, as for C(ckpt_checkpoint).
    type: str
    choices: [none, sleep1, sleep2, kv-drop, staged]
    default: none
  flags:
    description: More options for restores, as for C(ckpt_restore).
    type: list
    elements: str
    default: []
  verify:
    description: Which files each restore compares with their digests, as for C(ckpt_restore).
    type: str
    choices: [metadata, pages]
    default: metadata
  prefetch:
    description: Start C(server.prefetch) together with each restore, as for C(ckpt_restore).
    type: bool
    default: false
  warmup_requests:
    description: Requests that the server answers before its checkpoint.
    type: int
    default: 5
  listen:
    description: Where clients connect, as C(HOST:PORT), if that is not the server's own port. No two servers of a node share one.
    type: str
    default: ""
  source:
    description: V(disk) leaves the images in place. V(tar) makes an archive of them, which takes longer to restore; a container's
      checkpoint can be restored on other nodes only from one.
    type: str
    choices: [disk, tar]
    default: disk
"""

    COPIES = r"""
options:
  rclone:
    description:
      - Where copies lie, as rclone has it, V(REMOTE:PATH) or a folder. The remote is described in the file O(credentials).
      - Below it there is a folder for each O(name).
    type: str
  registry:
    description:
      - Where copies lie, a registry of container images with a path, such as V(registry.example.org/golden).
      - It is reached through skopeo.
      - Below it there is a repository for each O(name).
    type: str
  credentials:
    description: Configuration of rclone, or the file of a registry's credentials, on the node, for root alone.
    type: path
  verify_tls:
    description: Whether certificates of the remote must be good.
    type: bool
    default: true
  age_identity:
    description: File with this node's secret key of age, on the node, for root alone. It reads encrypted copies.
    type: path
  node:
    description: What the inventory calls this node. Others read it where it says which publication it uses.
    type: str
    default: ""
  transfers:
    description: Parts that travel at once. Each takes the memory of a part. V(0) is as many as there are processors, at most 4.
    type: int
    default: 0
"""

    RECORD = r"""
options:
  record:
    description: Identity of the measurement. Without it nothing is recorded, and a failure fails the task.
    type: dict
    suboptions:
      run_id:
        description: Identifier of the run.
        type: str
        required: true
      host:
        description: Inventory name of the node; the node's own name if it is left out.
        type: str
      seq:
        description: Number among the run's records of this kind, for a lane the position in its schedule.
        type: int
        required: true
      lane:
        description: Name of the lane, or of what was measured in its place.
        type: str
        required: true
      iteration:
        description: Iteration of the lane.
        type: int
        default: 0
      warmup:
        description: Whether the measurement is a warm-up, which statistics leave out.
        type: bool
        default: false
      bill:
        description: Whether a start is the first part of a bill, for the sake of the probes that follow it.
        type: bool
        default: false
  record_path:
    description: File on the node that the record is written to (mode 0600) before the module returns.
    type: path
  deadline_s:
    description:
      - Seconds after which the module ends what it does, puts back what it had begun, and fails with the reason V(timeout).
      - Ansible's own O(ignore:timeout) only stops waiting for a module, which then goes on; give it a minute more than this.
    type: float
  fail_on_error:
    description:
      - A cold start, a restore or a floor that fails with O(record) given is a result, and the task does not fail.
        V(true) makes it fail.
    type: bool
    default: false
"""
