/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of the memory plan share: its state, which lasts for one task, and the steps from judging to
 * rendering. */
#ifndef GPUCKPT_PLAN_H
#define GPUCKPT_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "mapped-base.h"
#include "memory-plan.h"

struct page_read;
struct pstree_item;
struct task_restore_args;
struct vma_area;

struct page_run {
	struct vma_area *vma;
	unsigned long addr;
	unsigned long len;
	off_t off;
	bool mappable;
	bool driver; /* what the driver parked: nothing but the driver touches it, and then it is gone */
	bool huge;   /* read, into memory that asks for huge pages */
};

struct range {
	unsigned long start;
	unsigned long end;
};

struct range_list {
	struct range *ranges;
	size_t n;
};

/* Why memory is read although mapping is on. */
enum standaside {
	ASIDE_HUGETLB,
	ASIDE_LOCKED,
	ASIDE_GROWSDOWN,
	ASIDE_EXECUTABLE,
	ASIDE_ADVICE,
	ASIDE_GUARD,
	ASIDE_ARENA,
	ASIDE_SPECIAL,
	ASIDE_INHERITED,
	ASIDE_ALLOCATOR,
	ASIDE_SCOPE,
	ASIDE_SHORT,
	ASIDE_N,
	MAPPABLE = -1,
};

struct restore_plan {
	struct pstree_item *task;
	bool active;
	bool maps;
	bool allocator_owns_all; /* outside of the driver's ranges */
	struct page_run *runs;
	size_t n;
	struct range_list driver;
	struct range_list guards;
	const struct vma_area *judged; /* the mapping that verdict is about */
	enum standaside verdict;
	unsigned long aside_bytes[ASIDE_N];
	struct base_list bases;
};

extern struct restore_plan task_plan;

/* Judging: what may be mapped. */

/* The reason why no page of this restore can go through the plan, or NULL. */
extern const char *plan_restore_standaside(const struct page_read *pr);

/* The reason why nothing can be mapped from this image, or NULL. */
extern const char *plan_mapping_standaside(struct page_read *pr);

/* Why the pages of this mapping are read, or MAPPABLE. */
extern enum standaside plan_vma_standaside(struct vma_area *vma);

/* Why this memory, which is not the driver's, is read although it could be mapped; or MAPPABLE. */
extern enum standaside plan_ordinary_standaside(const struct vma_area *vma);

/* Whether this memory of the driver's may ask for huge pages: advice that the process gave itself is kept. */
extern bool plan_may_be_huge(const struct vma_area *vma);

/* Logs why a whole task stands aside, and how many bytes of a task did, for each reason. */
extern void plan_stand_aside(struct pstree_item *t, const char *note);
extern void plan_report_aside(int pid);

/* A descriptor of the page image, or -1 with an error logged. */
extern int plan_open_page_image(unsigned long id);

/* Cutting: which pieces of a run are mapped. */

/* How finely runs are cut. Coarser cuts keep the number of mappings within the kernel's limit. */
struct cut {
	unsigned long period; /* 0: no anchors */
	unsigned long min_bytes;
};

struct piece {
	unsigned long addr;
	unsigned long len;
	bool mapped;
};

/* The piece of the run that starts at addr. */
extern struct piece plan_piece_at(const struct page_run *run, unsigned long addr, const struct cut *cut);

#define for_each_piece(run, piece, cut)                                                                                \
	for (piece = plan_piece_at(run, (run)->addr, cut); piece.addr < (run)->addr + (run)->len;                      \
	     piece = plan_piece_at(run, piece.addr + piece.len, cut))

/* Chooses the finest cut that keeps within the kernel's limit of mappings; returns how many pieces are mapped. */
extern size_t plan_choose_cut(struct cut *cut);

/* Rendering: the same as lists for the restorer. 0, or -1 with an error logged. */
extern int plan_render(struct task_restore_args *ta, const struct cut *cut, size_t mapped);

#endif
