# SPDX-License-Identifier: GPL-3.0-or-later
"""From records to figures. Reads records alone, and writes nothing."""
