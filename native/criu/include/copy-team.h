/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_COPY_TEAM_H
#define GPUCKPT_COPY_TEAM_H

/*
 * Threads that fill memory of a task being restored. They live inside that task, so every one occupies a thread id of
 * its pid namespace. Tasks are about to be created there by number. So ids are chosen, never left to the kernel.
 * The code serves CRIU and the restorer blob: raw system calls only, nothing of libc, no thread-local storage.
 */
#include <stdbool.h>
#include <sys/uio.h>

/* How a thread starts on a stack of its own is written for one architecture. Elsewhere the caller works alone. */
#ifdef __x86_64__
#define COPY_TEAM_HAS_THREADS true
#else
#define COPY_TEAM_HAS_THREADS false
#endif

#define COPY_TEAM_MAX 256
#define COPY_TEAM_TID_ATTEMPTS 64
#define TEAM_MADV_POPULATE_READ 22 /* headers older than Linux 5.14 lack it */

struct copy_team {
	int (*work)(struct copy_team *team, unsigned item); /* 0, or a negative error that ends the work */
	unsigned items;
	void *data;
	int spare_tid; /* no task of the images uses this id or the COPY_TEAM_TID_ATTEMPTS below it */

	unsigned next;
	int error;
	bool short_handed;        /* the kernel gave fewer threads than were wanted */
	int alive[COPY_TEAM_MAX]; /* the kernel clears a slot when its thread is gone */
};

/*
 * Works through all items with up to `threads` workers, the caller being one of them.
 * Returns 0, or the first error; *used is the number of workers that there were.
 */
extern int copy_team_run(struct copy_team *team, unsigned threads, unsigned *used);

/* Fills `iovs` from the file; they are used up. Returns 0 or a negative error; the end of the file is one. */
extern int team_read(int fd, struct iovec *iovs, int n, unsigned long off);

/* madvise(); -1 where there is no team. */
extern long team_madvise(unsigned long addr, unsigned long len, int advice);

#endif
