# SPDX-License-Identifier: GPL-3.0-or-later
"""The truth of a run: its records and its manifest, validated."""
