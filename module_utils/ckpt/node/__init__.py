# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node is, read and never changed."""
