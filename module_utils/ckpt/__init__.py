# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ckpt_* modules share: runtimes, CRIU's logs and images, clocks, proofs and records."""
