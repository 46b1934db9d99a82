# SPDX-License-Identifier: GPL-3.0-or-later
"""Values, tables and Markdown as text. Knows nothing of runs."""
