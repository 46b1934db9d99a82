// SPDX-License-Identifier: GPL-2.0-only
/* Shared memory is read into its place by several threads, because it cannot be mapped from a page image. */
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "types.h"
#include "copy-team.h"
#include "cr_options.h"
#include "image.h"
#include "log.h"
#include "page.h"
#include "pagemap.h"
#include "parallel-read.h"
#include "pid.h"
#include "pstree.h"
#include "span.h"
#include "switches.h"
#include "xmalloc.h"

#define READ_BYTES (4UL << 20)

/* Below this, starting threads costs more than it saves. */
#define WORTHWHILE_BYTES (8UL << 20)

/* Ids of 32-bit kernels and of small containers end here, so it is a stretch that every kernel has. */
#define SMALLEST_PID_MAX 32768

static int read_pid_max(void)
{
	FILE *f = fopen("/proc/sys/kernel/pid_max", "re");
	int pid_max;

	if (!f)
		return SMALLEST_PID_MAX;
	if (fscanf(f, "%d", &pid_max) != 1)
		pid_max = SMALLEST_PID_MAX;
	fclose(f);
	return pid_max;
}

int copy_team_spare_tid(unsigned threads)
{
	int wanted = threads + COPY_TEAM_TID_ATTEMPTS, top, tid;

	if (threads < 2)
		return 0;
	/* Tasks that are filled at the same time start apart, to spare them each other's ids. */
	top = read_pid_max() - 1 - vpid(current) % 64 * wanted;
	for (tid = top; tid > top - wanted && tid > wanted; tid--)
		if (pstree_pid_by_virt(tid))
			top = tid - 1;
	return top > wanted ? top : 0;
}

struct read_item {
	unsigned long off;
	struct iovec iov;
};

struct shmem_job {
	int fd;
	struct read_item *items;
	unsigned n;
	unsigned long bytes;
};

static int read_shmem_item(struct copy_team *team, unsigned item)
{
	struct shmem_job *job = team->data;

	return team_read(job->fd, &job->items[item].iov, 1, job->items[item].off);
}

/* Counts the items, and writes them where there is room for them. */
static void collect_items(const struct page_read *pr, char *addr, unsigned long size, struct shmem_job *job)
{
	unsigned long off = 0;
	int i;

	job->n = 0;
	job->bytes = 0;
	for (i = 0; i < pr->nr_pmes; i++) {
		unsigned long at = pr->pmes[i]->vaddr, end = at + pagemap_len(pr->pmes[i]), part;

		if (end > size)
			return; /* as stock does: what lies behind the end has no place */
		for (; at < end; at += part, off += part) {
			part = min(end - at, READ_BYTES);
			if (job->items)
				job->items[job->n] = (struct read_item){off, {addr + at, part}};
			job->n++;
			job->bytes += part;
		}
	}
}

static int run_shmem_job(struct shmem_job *job, unsigned long shmid)
{
	struct copy_team team = {
		.work = read_shmem_item,
		.items = job->n,
		.data = job,
	};
	unsigned long start = span_now_us();
	unsigned used;
	char note[32];
	int ret;

	team.spare_tid = copy_team_spare_tid(switches()->restore_threads);
	ret = copy_team_run(&team, switches()->restore_threads, &used);
	if (ret) {
		pr_err("Can't read shared memory %lx: %d\n", shmid, ret);
		return -1;
	}
	snprintf(note, sizeof(note), "threads-%u", used);
	span_log("shmem-read", vpid(current), start, span_now_us(), job->bytes, note);
	return 0;
}

int shmem_read_in_parallel(struct page_read *pr, void *addr, unsigned long size, unsigned long shmid)
{
	struct shmem_job job = {};
	int ret = -1;

	if (switches()->restore_threads < 2 || !pr->pieok || opts.auto_dedup || size < WORTHWHILE_BYTES)
		return 0;
	collect_items(pr, addr, size, &job);
	if (!job.n)
		return 1;
	job.fd = img_raw_fd(pr->pi);
	job.items = xmalloc(job.n * sizeof(*job.items));
	if (!job.items)
		return -1;
	/* Only a hint, on a mapping that is dropped right after; kernels without huge pages for it refuse. */
	madvise(addr, size, MADV_HUGEPAGE);
	collect_items(pr, addr, size, &job);
	if (!run_shmem_job(&job, shmid))
		ret = 1;
	xfree(job.items);
	return ret;
}
