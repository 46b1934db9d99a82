// SPDX-License-Identifier: GPL-2.0-only
/* The part of the memory plan that cuts runs of pages into pieces that are mapped and pieces that are read. */

#include "types.h"
#include "image.h"
#include "log.h"
#include "mem.h"
#include "page.h"
#include "plan.h"
#include "pstree.h"
#include "rst_info.h"
#include "switches.h"
#include "vma.h"

/* A mapped range longer than this holds an anonymous page: see anchored(). */
#define ANCHOR_PERIOD (1UL << 20)

/*
 * An anchor is a page that stays anonymous, so that a range around it spans several mappings. mremap() refuses to grow
 * such a range (EFAULT), and allocators then copy; growing a single file mapping would show what follows in the image.
 */
static bool anchored(const struct vma_area *vma, unsigned long addr, const struct cut *cut)
{
	return addr == vma->e->start || addr + PAGE_SIZE == vma->e->end ||
	       (addr & (cut->period - 1)) == cut->period - PAGE_SIZE;
}

static unsigned long next_anchor(const struct vma_area *vma, unsigned long addr, const struct cut *cut)
{
	unsigned long in_period = (addr & ~(cut->period - 1)) + cut->period - PAGE_SIZE;

	return min_t(unsigned long, in_period, vma->e->end - PAGE_SIZE);
}

struct piece plan_piece_at(const struct page_run *run, unsigned long addr, const struct cut *cut)
{
	unsigned long end = run->addr + run->len;

	if (!run->mappable)
		return (struct piece){addr, end - addr, false};
	if (cut->period && !run->driver) {
		if (anchored(run->vma, addr, cut))
			return (struct piece){addr, PAGE_SIZE, false};
		end = min(end, next_anchor(run->vma, addr, cut));
	}
	return (struct piece){addr, end - addr, end - addr >= cut->min_bytes};
}

static size_t count_mapped(const struct cut *cut)
{
	struct piece piece;
	size_t i, n = 0;

	for (i = 0; i < task_plan.n; i++)
		for_each_piece(&task_plan.runs[i], piece, cut)
			n += piece.mapped;
	return n;
}

/* Each mapped piece can cost two mappings, its own and what it splits off; a quarter is left to the program. */
static size_t mapped_limit(void)
{
	size_t limit = switches()->max_map_count / 4 * 3;
	size_t taken = rsti(task_plan.task)->vmas.nr + 2 * task_plan.bases.ranges_n;

	return limit > taken ? (limit - taken) / 2 : 0;
}

size_t plan_choose_cut(struct cut *cut)
{
	size_t limit = mapped_limit(), n;

	cut->period = switches()->mapped_scope == MAPPED_SCOPE_ALL ? ANCHOR_PERIOD : 0;
	cut->min_bytes = switches()->mapped_min_bytes;
	while ((n = count_mapped(cut)) > limit) {
		cut->period *= 2;
		cut->min_bytes *= 2;
	}
	if (cut->min_bytes != switches()->mapped_min_bytes)
		pr_info("gpuckpt: pid %d: runs below %lu KiB are read, to stay below vm.max_map_count\n",
			vpid(task_plan.task), cut->min_bytes >> 10);
	return n;
}
