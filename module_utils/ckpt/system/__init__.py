# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machine does for us: files, processes, commands. Knows nothing of checkpoints."""
