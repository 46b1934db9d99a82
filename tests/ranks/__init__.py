# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranks of a server on several GPUs as real processes, for tests on a machine without one."""
