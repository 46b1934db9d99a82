/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_SWITCHES_H
#define GPUCKPT_SWITCHES_H

#include <stdbool.h>

enum mapped_scope {
	MAPPED_SCOPE_ALL,    /* every private anonymous mapping that qualifies */
	MAPPED_SCOPE_DRIVER, /* only where the GPU driver parked its data */
};

enum mapped_redump {
	MAPPED_REDUMP_STANDALONE, /* all pages, so that the older images may go */
	MAPPED_REDUMP_DELTA,      /* pages written since; the older images are kept and named */
};

enum mapped_allocators {
	MAPPED_ALLOCATORS_ASIDE, /* what an allocator that may rely on zeros owns is read */
	MAPPED_ALLOCATORS_TRUST, /* the user knows that nothing in the processes relies on zeros */
};

/* What the environment asks for. With nothing set, CRIU behaves like stock. */
struct switches {
	bool mapped_restore;
	unsigned long mapped_min_bytes;
	enum mapped_scope mapped_scope;
	enum mapped_redump mapped_redump;
	enum mapped_allocators mapped_allocators;
	unsigned restore_threads;
	bool driver_huge_pages;
	bool driver_populate;
	unsigned freeze_poll_ms;
	bool hw_breakpoints;         /* tasks are stopped by them where the machine has some */
	unsigned long max_map_count; /* of this node */
	bool noreserve_is_kept;      /* this node's kernel notes MAP_NORESERVE */
};

/* Reads the environment once; -1 and one message for each value that is wrong. */
extern int switches_load(void);

extern const struct switches *switches(void);

#endif
