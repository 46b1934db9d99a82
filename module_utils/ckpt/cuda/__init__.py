# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVIDIA driver: its features, its plan, and the state of processes."""
