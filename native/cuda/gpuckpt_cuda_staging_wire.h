/* SPDX-License-Identifier: GPL-2.0-only OR LGPL-2.1-or-later */
/*
 * What the CUDA plugin, or gpuckpt-park, and the staging library in a program say to each other.
 *
 * The library's thread is called GS_THREAD_NAME and a number: the descriptor, in the program, of one end of a pair of
 * sockets (SOCK_SEQPACKET). Who may trace the program takes a copy of it with pidfd_getfd. A request is one packet,
 * with the staging file's descriptor where it needs one, and so is the answer. Both ends belong to the program, so a
 * checkpoint carries them.
 */
#ifndef GPUCKPT_CUDA_STAGING_WIRE_H
#define GPUCKPT_CUDA_STAGING_WIRE_H

#include <stdint.h>

#define GS_THREAD_NAME "gpuckpt:"
#define GS_MAGIC 0x7467736bU /* changes with these structures */

enum gs_request_kind {
	GS_STAGE = 1,      /* contents to the file, physical memory away; the program waits at its next driver call */
	GS_BRING_BACK = 2, /* the opposite; nothing to do for a program that is not staged */
	GS_ASK = 3,        /* how much there is */
};

struct gs_request {
	uint32_t magic;
	uint32_t kind;
	uint32_t limit_ms; /* for the program's calls and work to end, before anything is changed */
	uint32_t number;   /* comes back in the answer */
};

struct gs_answer {
	uint32_t magic;
	uint32_t number;
	uint32_t refused;       /* 1: text says why */
	uint32_t staged;        /* 1: the memory is in the file, and the program waits */
	uint64_t bytes;         /* of all regions */
	uint64_t zero_bytes;    /* known to be zeros, in no file */
	uint64_t dropped_bytes; /* need not be kept, in no file */
	char text[256];
};

#endif
