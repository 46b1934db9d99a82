# SPDX-License-Identifier: GPL-3.0-or-later
"""Who works on a node, and what is left when work was broken off."""
