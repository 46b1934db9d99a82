// SPDX-License-Identifier: GPL-2.0-only
/*
 * Plans how a task's private memory is filled on restore. It is mapped from the page image where that cannot be told
 * from anonymous memory. Everywhere else one or several threads read it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "types.h"
#include "allocator.h"
#include "cuda-ranges.h"
#include "image.h"
#include "log.h"
#include "mapped-base.h"
#include "mem.h"
#include "memory-plan.h"
#include "page.h"
#include "pagemap.h"
#include "parallel-read.h"
#include "plan.h"
#include "pstree.h"
#include "restorer.h"
#include "rst_info.h"
#include "servicefd.h"
#include "span.h"
#include "switches.h"
#include "vma.h"
#include "xmalloc.h"

/* The plan of the task that this process is about to become. A forked child starts its own in memory_plan_begin(). */
struct restore_plan task_plan;

static int add_range(struct range_list *list, struct range range)
{
	if (array_grow(&list->ranges, list->n, sizeof(range)))
		return -1;
	list->ranges[list->n++] = range;
	return 0;
}

static int read_driver_ranges(struct pstree_item *t)
{
	char name[64], line[128];
	FILE *f;
	int fd;

	snprintf(name, sizeof(name), CUDA_RANGES_FILE, vpid(t));
	fd = openat(get_service_fd(IMG_FD_OFF), name, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		if (errno == ENOENT)
			return 0;
		pr_perror("Can't open %s", name);
		return -1;
	}
	f = fdopen(fd, "r");
	if (!f) {
		pr_perror("Can't read %s", name);
		close(fd);
		return -1;
	}
	while (fgets(line, sizeof(line), f)) {
		struct range range;

		if (sscanf(line, CUDA_RANGES_LINE, &range.start, &range.end) != 2 || range.start >= range.end) {
			pr_err("%s holds a line that is no range: %s", name, line);
			fclose(f);
			return -1;
		}
		if (add_range(&task_plan.driver, range)) {
			fclose(f);
			return -1;
		}
	}
	fclose(f);
	return 0;
}

static int find_guards(void)
{
	struct vma_area *vma;

	list_for_each_entry(vma, &rsti(task_plan.task)->vmas.h, list) {
		struct range range = {vma->e->start, vma->e->end};

		if (vma_area_is(vma, VMA_AREA_GUARD) && add_range(&task_plan.guards, range))
			return -1;
	}
	return 0;
}

int memory_plan_begin(struct pstree_item *t, struct page_read *pr)
{
	const struct switches *sw = switches();
	const char *aside;

	xfree(task_plan.runs);
	xfree(task_plan.driver.ranges);
	xfree(task_plan.guards.ranges);
	base_list_free(&task_plan.bases);
	memset(&task_plan, 0, sizeof(task_plan));
	task_plan.task = t;

	if (base_list_read(vpid(t), &task_plan.bases))
		return -1;
	if (!sw->mapped_restore && sw->restore_threads == 1 && !sw->driver_huge_pages && !task_plan.bases.ranges_n)
		return 0;
	aside = plan_restore_standaside(pr);
	if (aside && task_plan.bases.ranges_n) {
		pr_err("A delta checkpoint can't be restored with %s; restore it without\n", aside);
		return -1;
	}
	if (aside) {
		plan_stand_aside(t, aside);
		return 0;
	}
	task_plan.active = true;
	if (sw->mapped_restore) {
		aside = plan_mapping_standaside(pr);
		if (aside)
			plan_stand_aside(t, aside);
		task_plan.maps = !aside;
	}
	if (task_plan.maps && find_guards())
		return -1;
	if (task_plan.maps && sw->mapped_scope == MAPPED_SCOPE_ALL)
		task_plan.allocator_owns_all = allocator_owns_process(t);
	if (sw->driver_huge_pages || task_plan.maps)
		return read_driver_ranges(t);
	return 0;
}

/* CRIU writes its pagemap in pieces of a pipe's size; neighbours are joined again, to be one mapping. */
static bool continues_last_run(const struct page_run *run)
{
	const struct page_run *last = &task_plan.runs[task_plan.n - 1];

	return task_plan.n && last->vma == run->vma && last->mappable == run->mappable && last->driver == run->driver &&
	       last->huge == run->huge && last->addr + last->len == run->addr && last->off + last->len == run->off;
}

static int add_run(struct page_run run)
{
	if (continues_last_run(&run)) {
		task_plan.runs[task_plan.n - 1].len += run.len;
		return 0;
	}
	if (array_grow(&task_plan.runs, task_plan.n, sizeof(*task_plan.runs)))
		return -1;
	task_plan.runs[task_plan.n++] = run;
	return 0;
}

/* The length of the longest head of [addr, addr + len) that lies wholly inside or wholly outside the driver's ranges.
 */
static unsigned long split_at_driver_range(unsigned long addr, unsigned long len, bool *inside)
{
	unsigned long end = addr + len;
	size_t i;

	*inside = false;
	for (i = 0; i < task_plan.driver.n; i++) {
		const struct range *r = &task_plan.driver.ranges[i];

		if (r->start <= addr && addr < r->end) {
			*inside = true;
			return min(end, r->end) - addr;
		}
		if (r->start > addr && r->start < end)
			end = r->start;
	}
	return end - addr;
}

static int add_runs(struct vma_area *vma, unsigned long addr, unsigned long len, off_t off, bool mappable)
{
	while (len) {
		struct page_run run = {.vma = vma, .addr = addr, .off = off};
		enum standaside aside;
		bool inside;

		run.len = split_at_driver_range(addr, len, &inside);
		run.driver = inside;
		aside = inside ? MAPPABLE : plan_ordinary_standaside(vma);
		run.mappable = mappable && aside == MAPPABLE;
		run.huge = inside && !run.mappable && plan_may_be_huge(vma);
		if (mappable && !run.mappable)
			task_plan.aside_bytes[aside] += run.len;
		if (add_run(run))
			return -1;
		addr += run.len;
		off += run.len;
		len -= run.len;
	}
	return 0;
}

int memory_plan_take(struct vma_area *vma, struct page_read *pr, unsigned long addr, unsigned long len)
{
	enum standaside aside;

	if (!task_plan.active)
		return 0;
	aside = task_plan.maps ? plan_vma_standaside(vma) : MAPPABLE;
	/* CRIU compares the pages of forked relatives and shares them; mapped, each would hold an image of its own. */
	if (vma_area_is(vma, VMA_PREMMAPED)) {
		if (task_plan.maps)
			task_plan.aside_bytes[aside == MAPPABLE ? ASIDE_INHERITED : aside] += len;
		return 0;
	}
	if (task_plan.maps && aside != MAPPABLE)
		task_plan.aside_bytes[aside] += len;
	return add_runs(vma, addr, len, pr->pi_off, task_plan.maps && aside == MAPPABLE) ? -1 : 1;
}

/* A short image would be found out by the program, as SIGBUS, long after the restore. */
static int check_image_size(int fd)
{
	const struct page_run *last;
	struct stat st;

	if (!task_plan.n)
		return 0;
	last = &task_plan.runs[task_plan.n - 1];
	if (fstat(fd, &st)) {
		pr_perror("Can't stat the page image");
		return -1;
	}
	if (st.st_size < last->off + last->len) {
		pr_err("The page image is truncated: it has %ld bytes, %ld are needed; take another checkpoint\n",
		       (long)st.st_size, (long)(last->off + last->len));
		return -1;
	}
	return 0;
}

int memory_plan_render(struct pstree_item *t, struct task_restore_args *ta)
{
	struct memory_plan *out = &ta->memory;
	struct cut cut;
	size_t mapped;

	memset(out, 0, sizeof(*out));
	if (task_plan.task != t || !task_plan.active)
		return 0;
	if (!task_plan.n && !task_plan.bases.ranges_n) {
		plan_report_aside(vpid(t));
		return 0;
	}

	ta->vma_ios_fd = plan_open_page_image(rsti(t)->pages_img_id);
	if (ta->vma_ios_fd < 0 || check_image_size(ta->vma_ios_fd))
		return -1;

	out->active = true;
	out->pid = vpid(t);
	out->clock_offset_us = span_clock_offset_us;
	out->threads = switches()->restore_threads;
	out->spare_tid = copy_team_spare_tid(out->threads);
	mapped = plan_choose_cut(&cut);
	if (plan_render(ta, &cut, mapped))
		return -1;
	plan_report_aside(out->pid);
	return 1;
}
