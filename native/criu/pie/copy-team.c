// SPDX-License-Identifier: GPL-2.0-only
/* The copy team of the restorer: the same source, compiled as position-independent code without libc. */
#include "../copy-team.c"
