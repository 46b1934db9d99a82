/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_PARALLEL_READ_H
#define GPUCKPT_PARALLEL_READ_H

struct page_read;

/*
 * The highest of so many consecutive thread ids that no task of the images uses, enough for a team of this size.
 * Returns 0 where there is no such stretch, and then nobody can be hired.
 */
extern int copy_team_spare_tid(unsigned threads);

/* Fills shared memory at addr with several threads. 1: done; 0: the caller does it; -1: error. */
extern int shmem_read_in_parallel(struct page_read *pr, void *addr, unsigned long size, unsigned long shmid);

#endif
