# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things lie on a node unless a play says otherwise. What is CRIU's is in criu/folder.py and criu/settings.py."""

from __future__ import annotations

# the tmpfs for checkpoints
STORE = "/mnt/checkpoint-ram"
# the profile that denies io_uring to containers
SECCOMP_PROFILE = "/etc/containers/seccomp.d/no-io-uring.json"
# the driver's libraries for containers
GPU_LIBRARIES = "/opt/nvidia-libs"
# what roles replaced, for their rollback
ORIGINALS = "/var/lib/gpuckpt/rollback"
