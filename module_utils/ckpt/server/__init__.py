# SPDX-License-Identifier: GPL-3.0-or-later
"""The server under test: its description, its requests, and how it is made small."""
