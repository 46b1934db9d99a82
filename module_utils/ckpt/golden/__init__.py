# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden checkpoints: made once of a server, proved, committed under a name, and served from."""
