/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_MEMORY_PLAN_H
#define GPUCKPT_MEMORY_PLAN_H

#include <stdbool.h>
#include <sys/types.h>

/* Memory that is mapped from an image file in place of being read. */
struct mapped_run {
	unsigned long addr;
	unsigned long len;
	off_t off;
	int fd;
	int prot;
	int flags;
	bool closes_fd; /* the last run of a file that nobody else closes */
};

/* A part of what the GPU driver parked: it is read back after the restore, and then released. */
struct driver_range {
	unsigned long start;
	unsigned long end;
};

/* How the restorer fills one task's private memory; a part of struct task_restore_args. */
struct memory_plan {
	bool active; /* else the restorer does as stock does */
	int pid;
	struct mapped_run *runs;
	unsigned runs_n;
	struct driver_range *huge; /* is read, and may use huge pages meanwhile */
	unsigned huge_n;
	struct driver_range
		*populate; /* is mapped, and shall have its page tables filled; pieces for one worker each */
	unsigned populate_n;
	unsigned threads;
	int spare_tid;
	unsigned long mapped_bytes;
	unsigned long read_bytes;
	unsigned long read_start_us;
	long clock_offset_us;
};

struct pstree_item;
struct vma_area;
struct page_read;
struct task_restore_args;

/* Decides whether the plan may act for this task, which becomes the current one. */
extern int memory_plan_begin(struct pstree_item *t, struct page_read *pr);

/* 1: the plan fills these pages, which lie at the reader's position in the image; 0: the caller does; -1: error. */
extern int memory_plan_take(struct vma_area *vma, struct page_read *pr, unsigned long addr, unsigned long len);

/* Writes the plan for the restorer. 1: done, vma_ios included; 0: there is none; -1: error. */
extern int memory_plan_render(struct pstree_item *t, struct task_restore_args *ta);

#endif
