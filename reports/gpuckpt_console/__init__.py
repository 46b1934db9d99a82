# SPDX-License-Identifier: GPL-3.0-or-later
"""``gpuckpt``: plays of this project, run and watched. The one part that knows ansible-runner."""
