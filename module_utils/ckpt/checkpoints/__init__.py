# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint as files: what belongs to it, its digests, its size, and how one replaces another."""
