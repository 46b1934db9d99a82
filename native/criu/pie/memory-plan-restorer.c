// SPDX-License-Identifier: GPL-2.0-only
/* The restorer's half of the memory plan: no libc, every address is the restored task's. */
#include <errno.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/uio.h>

#include "types.h"
#include <compel/plugins/std/log.h>
#include <compel/plugins/std/syscall.h>
#include "copy-team.h"
#include "log.h"
#include "memory-plan-restorer.h"
#include "restorer.h"
#include "span.h"

long span_clock_offset_us;

static int memory_plan_map(const struct memory_plan *plan)
{
	unsigned long start = span_now_us();
	unsigned i;

	for (i = 0; i < plan->runs_n; i++) {
		const struct mapped_run *run = &plan->runs[i];
		unsigned long at = sys_mmap((void *)run->addr, run->len, run->prot, run->flags, run->fd, run->off);

		if (at != run->addr) {
			pr_err("Can't map %lx-%lx from the page image: %ld\n", run->addr, run->addr + run->len,
			       (long)at);
			return -1;
		}
		if (run->closes_fd)
			sys_close(run->fd);
	}
	span_log("mapped", plan->pid, start, span_now_us(), plan->mapped_bytes, "private");
	return 0;
}

/* Only a hint: memory that gets no huge pages is filled all the same. */
static void memory_plan_ask_for_huge_pages(const struct memory_plan *plan)
{
	unsigned long bytes = 0;
	unsigned i;

	for (i = 0; i < plan->huge_n; i++) {
		const struct driver_range *range = &plan->huge[i];
		long ret = sys_madvise(range->start, range->end - range->start, MADV_HUGEPAGE);

		if (ret)
			pr_info("gpuckpt: the kernel gives no huge pages for %lx-%lx: %ld\n", range->start, range->end,
				ret);
		else
			bytes += range->end - range->start;
	}
	if (bytes)
		pr_info("gpuckpt: huge pages pid=%d bytes=%lu\n", plan->pid, bytes);
}

static int memory_plan_populate_item(struct copy_team *team, unsigned item)
{
	const struct memory_plan *plan = team->data;
	const struct driver_range *range = &plan->populate[item];

	/* Only a hint, and unknown to kernels before 5.14: what is not populated is faulted in when it is touched. */
	team_madvise(range->start, range->end - range->start, TEAM_MADV_POPULATE_READ);
	return 0;
}

/* The driver copies with one thread, which would take a fault for every few pages of a mapped image. */
static void memory_plan_populate(struct memory_plan *plan)
{
	struct copy_team team = {
		.work = memory_plan_populate_item,
		.items = plan->populate_n,
		.data = plan,
		.spare_tid = plan->spare_tid,
	};
	unsigned long start = span_now_us(), bytes = 0;
	unsigned i, used;

	if (!plan->populate_n)
		return;
	for (i = 0; i < plan->populate_n; i++)
		bytes += plan->populate[i].end - plan->populate[i].start;
	copy_team_run(&team, plan->threads, &used);
	span_log("populate", plan->pid, start, span_now_us(), bytes, "driver");
}

/* Reads differ in size, so they form a list; each worker walks it forward to the item that it drew. */
static struct restore_vma_io *memory_plan_io(struct task_restore_args *args, unsigned item)
{
	struct restore_vma_io *rio = args->vma_ios;

	while (item--)
		rio = (void *)rio + RIO_SIZE(rio->nr_iovs);
	return rio;
}

static int memory_plan_read_item(struct copy_team *team, unsigned item)
{
	struct task_restore_args *args = team->data;
	struct restore_vma_io *rio = memory_plan_io(args, item);

	return team_read(args->vma_ios_fd, rio->iovs, rio->nr_iovs, rio->off);
}

static int memory_plan_read_in_parallel(struct task_restore_args *args)
{
	struct copy_team team = {
		.work = memory_plan_read_item,
		.items = args->vma_ios_n,
		.data = args,
		.spare_tid = args->memory.spare_tid,
	};
	unsigned used;
	int ret;

	ret = copy_team_run(&team, args->memory.threads, &used);
	if (ret) {
		pr_err("Can't read pages data (%d)\n", ret);
		return -1;
	}
	if (team.short_handed)
		pr_info("gpuckpt: %u of %u threads read memory of %d\n", used, args->memory.threads, args->memory.pid);
	args->memory.threads = used;
	args->vma_ios_n = 0;
	return 0;
}

int memory_plan_restore(struct task_restore_args *args)
{
	struct memory_plan *plan = &args->memory;

	if (!plan->active)
		return 0;
	span_clock_offset_us = plan->clock_offset_us;
	memory_plan_ask_for_huge_pages(plan);
	if (plan->runs_n && memory_plan_map(plan))
		return -1;
	memory_plan_populate(plan);
	plan->read_start_us = span_now_us();
	if (plan->threads > 1 && args->vma_ios_n)
		return memory_plan_read_in_parallel(args);
	return 0;
}

void memory_plan_report(const struct memory_plan *plan)
{
	if (!plan->active)
		return;
	span_log("read", plan->pid, plan->read_start_us, span_now_us(), plan->read_bytes, "private");
	pr_info("gpuckpt: memory pid=%d mapped_bytes=%lu read_bytes=%lu maps=%u threads=%u\n", plan->pid,
		plan->mapped_bytes, plan->read_bytes, plan->runs_n, plan->threads);
}
