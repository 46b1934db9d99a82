# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden checkpoints elsewhere: published by the node that made one, fetched by all nodes that it fits."""
