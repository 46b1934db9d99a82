# SPDX-License-Identifier: GPL-3.0-or-later
"""The operations with their clocks and proofs, and the records that they yield."""
