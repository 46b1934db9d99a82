// SPDX-License-Identifier: GPL-2.0-only
/* The part of the memory plan that writes it down for the restorer, in memory that the restorer keeps. */
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "types.h"
#include "image.h"
#include "log.h"
#include "mapped-base.h"
#include "mem.h"
#include "page.h"
#include "plan.h"
#include "pstree.h"
#include "restorer.h"
#include "rst-malloc.h"
#include "rst_info.h"
#include "switches.h"
#include "vma.h"
#include "xmalloc.h"

/* So many bytes per read let several threads share the work evenly. A multiple of a huge page: see add_read(). */
#define THREAD_READ_BYTES (4UL << 20)

/* So many bytes are populated at once by one thread. */
#define POPULATE_BYTES (32UL << 20)

static struct mapped_run mapped_run(const VmaEntry *e, unsigned long addr, unsigned long len, int fd, off_t off)
{
	return (struct mapped_run){
		.addr = addr,
		.len = len,
		.off = off,
		.fd = fd,
		.prot = e->prot,
		.flags = MAP_PRIVATE | MAP_FIXED | (e->flags & MAP_NORESERVE),
	};
}

static struct mapped_run *render_own_runs(struct mapped_run *to, const struct cut *cut, int fd)
{
	struct piece piece;
	size_t i;

	for (i = 0; i < task_plan.n; i++) {
		const struct page_run *run = &task_plan.runs[i];

		for_each_piece(run, piece, cut)
			if (piece.mapped)
				*to++ = mapped_run(run->vma->e, piece.addr, piece.len, fd,
						   run->off + (piece.addr - run->addr));
	}
	return to;
}

static const VmaEntry *vma_around(const struct base_range *range)
{
	struct vma_area *vma;

	list_for_each_entry(vma, &rsti(task_plan.task)->vmas.h, list)
		if (vma->e->start <= range->start && range->end <= vma->e->end &&
		    vma_area_is(vma, VMA_AREA_REGULAR | VMA_ANON_PRIVATE))
			return vma->e;
	pr_err("The list of base images names %lx-%lx, which is no private memory of this process\n", range->start,
	       range->end);
	return NULL;
}

/* The runs of one base; the last of them closes its file. */
static struct mapped_run *render_base_runs(struct mapped_run *to, unsigned base)
{
	struct mapped_run *last = NULL;
	int fd = base_open(&task_plan.bases.files[base]);
	size_t i;

	if (fd < 0)
		return NULL;
	for (i = 0; i < task_plan.bases.ranges_n; i++) {
		const struct base_range *range = &task_plan.bases.ranges[i];
		const VmaEntry *e;

		if (range->base != base)
			continue;
		e = vma_around(range);
		if (!e)
			return NULL;
		last = to;
		*to++ = mapped_run(e, range->start, range->end - range->start, fd, range->off);
	}
	if (last)
		last->closes_fd = true;
	else
		close(fd);
	return to;
}

static int render_all_mapped(struct memory_plan *out, const struct cut *cut, size_t n, int fd)
{
	struct mapped_run *first, *to;
	unsigned base;

	n += task_plan.bases.ranges_n;
	out->runs = (struct mapped_run *)rst_mem_align_cpos(RM_PRIVATE);
	first = to = rst_mem_alloc(n * sizeof(*first), RM_PRIVATE);
	if (!first)
		return -1;
	to = render_own_runs(to, cut, fd);
	for (base = 0; base < task_plan.bases.files_n; base++) {
		to = render_base_runs(to, base);
		if (!to)
			return -1;
	}
	out->runs_n = to - first;
	while (to-- > first)
		out->mapped_bytes += to->len;
	return 0;
}

/* The part of the driver's range around this run that lies in the run's mapping, so that advice splits no mapping. */
static struct driver_range driver_range_around(const struct page_run *run)
{
	const VmaEntry *e = run->vma->e;
	size_t i = 0;

	while (run->addr < task_plan.driver.ranges[i].start || run->addr >= task_plan.driver.ranges[i].end)
		i++; /* one of them is around: see add_runs() */
	return (struct driver_range){
		.start = max(task_plan.driver.ranges[i].start, (unsigned long)e->start),
		.end = min(task_plan.driver.ranges[i].end, (unsigned long)e->end),
	};
}

static int render_huge_ranges(struct memory_plan *out)
{
	struct driver_range *last = NULL;
	size_t i;

	out->huge = (struct driver_range *)rst_mem_align_cpos(RM_PRIVATE);
	for (i = 0; i < task_plan.n; i++) {
		struct driver_range range;

		if (!task_plan.runs[i].huge)
			continue;
		range = driver_range_around(&task_plan.runs[i]);
		if (last && last->start == range.start)
			continue;
		last = rst_mem_alloc(sizeof(*last), RM_PRIVATE);
		if (!last)
			return -1;
		*last = range;
		out->huge_n++;
	}
	return 0;
}

static int add_populated(struct memory_plan *out, unsigned long addr, unsigned long end)
{
	for (; addr < end; addr += POPULATE_BYTES) {
		struct driver_range *part = rst_mem_alloc(sizeof(*part), RM_PRIVATE);

		if (!part)
			return -1;
		*part = (struct driver_range){addr, min(end, addr + POPULATE_BYTES)};
		out->populate_n++;
	}
	return 0;
}

static int render_populated_ranges(struct memory_plan *out, const struct cut *cut)
{
	struct piece piece;
	size_t i;

	out->populate = (struct driver_range *)rst_mem_align_cpos(RM_PRIVATE);
	for (i = 0; switches()->driver_populate && i < task_plan.n; i++) {
		if (!task_plan.runs[i].driver)
			continue;
		for_each_piece(&task_plan.runs[i], piece, cut) {
			if (piece.mapped && add_populated(out, piece.addr, piece.addr + piece.len))
				return -1;
		}
	}
	return 0;
}

/* One preadv() in the making: neighbours in the file, anywhere in memory. */
struct read_batch {
	struct iovec iovs[IOV_MAX];
	unsigned n;
	off_t off;
	unsigned long bytes;
	unsigned long max_bytes;
	unsigned long block; /* of memory, where that asks for huge pages; else 0 */
};

static int flush_batch(struct read_batch *batch, struct task_restore_args *ta)
{
	struct restore_vma_io *rio;

	if (!batch->n)
		return 0;
	rio = rst_mem_alloc(RIO_SIZE(batch->n), RM_PRIVATE);
	if (!rio)
		return -1;
	rio->nr_iovs = batch->n;
	rio->off = batch->off;
	memcpy(rio->iovs, batch->iovs, batch->n * sizeof(*batch->iovs));
	ta->vma_ios_n++;
	ta->memory.read_bytes += batch->bytes;
	batch->n = 0;
	batch->bytes = 0;
	return 0;
}

/*
 * Memory with huge pages is read block by block, each aligned. Of two threads that touch one huge page first, one waits
 * until the other has zeroed it.
 */
static int add_read(struct read_batch *batch, unsigned long addr, unsigned long len, off_t off, bool huge,
		    struct task_restore_args *ta)
{
	while (len) {
		unsigned long block = huge ? addr / THREAD_READ_BYTES : 0, part;

		if (batch->n == IOV_MAX || batch->bytes == batch->max_bytes || off != batch->off + batch->bytes ||
		    block != batch->block)
			if (flush_batch(batch, ta))
				return -1;
		if (!batch->n)
			batch->off = off;
		batch->block = block;
		part = min(len, batch->max_bytes - batch->bytes);
		if (huge)
			part = min(part, THREAD_READ_BYTES - addr % THREAD_READ_BYTES);
		batch->iovs[batch->n++] = (struct iovec){(void *)addr, part};
		batch->bytes += part;
		addr += part;
		off += part;
		len -= part;
	}
	return 0;
}

static int render_all_reads(struct task_restore_args *ta, const struct cut *cut)
{
	struct read_batch *batch;
	struct piece piece;
	int ret = -1;
	size_t i;

	batch = xzalloc(sizeof(*batch));
	if (!batch)
		return -1;
	batch->max_bytes = switches()->restore_threads > 1 ? THREAD_READ_BYTES : LONG_MAX & PAGE_MASK;

	ta->vma_ios = (struct restore_vma_io *)rst_mem_align_cpos(RM_PRIVATE);
	ta->vma_ios_n = 0;
	for (i = 0; i < task_plan.n; i++) {
		const struct page_run *run = &task_plan.runs[i];

		for_each_piece(run, piece, cut) {
			if (piece.mapped)
				continue;
			if (run->mappable)
				task_plan.aside_bytes[ASIDE_SHORT] += piece.len;
			if (add_read(batch, piece.addr, piece.len, run->off + (piece.addr - run->addr), run->huge, ta))
				goto out;
		}
	}
	ret = flush_batch(batch, ta);
out:
	xfree(batch);
	return ret;
}

int plan_render(struct task_restore_args *ta, const struct cut *cut, size_t mapped)
{
	struct memory_plan *out = &ta->memory;

	if (render_all_mapped(out, cut, mapped, ta->vma_ios_fd) || render_huge_ranges(out) ||
	    render_populated_ranges(out, cut) || render_all_reads(ta, cut))
		return -1;
	return 0;
}
