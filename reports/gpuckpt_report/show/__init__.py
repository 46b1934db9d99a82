# SPDX-License-Identifier: GPL-3.0-or-later
"""What people read: pages, sentences, tables and charts, made of figures."""
