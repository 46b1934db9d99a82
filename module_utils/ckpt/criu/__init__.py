# SPDX-License-Identifier: GPL-3.0-or-later
"""CRIU: its builds, its switches, its logs and its image files."""
