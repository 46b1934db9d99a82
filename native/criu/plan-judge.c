// SPDX-License-Identifier: GPL-2.0-only
/* The part of the memory plan that judges which memory can be mapped without the program noticing. */
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "types.h"
#include "allocator.h"
#include "cr_options.h"
#include "image.h"
#include "image-view.h"
#include "log.h"
#include "mem.h"
#include "page.h"
#include "pagemap.h"
#include "plan.h"
#include "pstree.h"
#include "rst_info.h"
#include "span.h"
#include "switches.h"
#include "util.h"
#include "vma.h"

/* glibc gives each further arena heaps of this size and alignment, writable in front, inaccessible behind. */
#define ARENA_HEAP_SIZE (64UL << 20)

static const char *const standaside_notes[ASIDE_N] = {
	[ASIDE_HUGETLB] = "hugetlb",       [ASIDE_LOCKED] = "locked",   [ASIDE_GROWSDOWN] = "growsdown",
	[ASIDE_EXECUTABLE] = "executable", [ASIDE_ADVICE] = "advice",   [ASIDE_GUARD] = "guard",
	[ASIDE_ARENA] = "arena",           [ASIDE_SPECIAL] = "special", [ASIDE_INHERITED] = "inherited",
	[ASIDE_ALLOCATOR] = "allocator",   [ASIDE_SCOPE] = "scope",     [ASIDE_SHORT] = "short",
};

void plan_stand_aside(struct pstree_item *t, const char *note)
{
	unsigned long now = span_now_us();

	span_log("standaside", vpid(t), now, now, 0, note);
}

const char *plan_restore_standaside(const struct page_read *pr)
{
	if (opts.auto_dedup)
		return "auto-dedup";
	if (opts.lazy_pages)
		return "lazy-pages";
	if (opts.stream)
		return "streamed-images";
	if (opts.use_page_server)
		return "page-server";
	if (pr->parent)
		return "parent-images";
	return NULL;
}

int plan_open_page_image(unsigned long id)
{
	char name[64];
	int fd;

	snprintf(name, sizeof(name), "pages-%lu.img", id);
	fd = image_view_open_file(name);
	if (fd < 0)
		pr_perror("Can't open %s", name);
	return fd;
}

static bool can_be_mapped(int fd)
{
	void *page = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_PRIVATE, fd, 0);

	if (page == MAP_FAILED)
		return false;
	munmap(page, PAGE_SIZE);
	return true;
}

const char *plan_mapping_standaside(struct page_read *pr)
{
	int fd = plan_open_page_image(pr->pages_img_id);
	const char *note = NULL;

	if (fd < 0 || !can_be_mapped(fd))
		note = "no-mmap";
	else if (switches()->mapped_scope == MAPPED_SCOPE_ALL && !image_view_is_executable(fd))
		note = "noexec";
	close_safe(&fd);
	return note;
}

static bool covered_by_guard(const struct vma_area *vma)
{
	size_t i;

	for (i = 0; i < task_plan.guards.n; i++)
		if (task_plan.guards.ranges[i].start < vma->e->end && task_plan.guards.ranges[i].end > vma->e->start)
			return true;
	return false;
}

static bool is_arena_heap(struct vma_area *vma)
{
	unsigned long heap_end = vma->e->start + ARENA_HEAP_SIZE;
	struct vma_area *next;

	if (vma->e->start % ARENA_HEAP_SIZE || vma->e->end >= heap_end)
		return false;
	if (vma->list.next == &rsti(task_plan.task)->vmas.h)
		return false;
	next = vma_next(vma);
	return next->e->start == vma->e->end && next->e->end == heap_end && next->e->prot == PROT_NONE;
}

/* Advice that a private file mapping takes as well as anonymous memory does. */
static bool advice_is_harmless(const VmaEntry *e)
{
	const unsigned long harmless = 1UL << MADV_DONTFORK | 1UL << MADV_HUGEPAGE | 1UL << MADV_NOHUGEPAGE |
				       1UL << MADV_DONTDUMP | 1UL << MADV_MERGEABLE;

	return !e->has_madv || !(e->madv & ~harmless);
}

static enum standaside judge_vma(struct vma_area *vma)
{
	const unsigned special = VMA_AREA_STACK | VMA_AREA_VSYSCALL | VMA_AREA_VDSO | VMA_AREA_VVAR | VMA_AREA_SYSVIPC |
				 VMA_AREA_SOCKET | VMA_AREA_AIORING | VMA_AREA_SHSTK | VMA_AREA_UPROBES |
				 VMA_EXT_PLUGIN;
	VmaEntry *e = vma->e;

	if (e->flags & MAP_HUGETLB)
		return ASIDE_HUGETLB;
	if (!vma_area_is(vma, VMA_AREA_REGULAR | VMA_ANON_PRIVATE) || e->status & special)
		return ASIDE_SPECIAL;
	if (e->flags & MAP_LOCKED)
		return ASIDE_LOCKED; /* it must be resident, and private: a mapping would be copied at once */
	if (e->flags & MAP_GROWSDOWN)
		return ASIDE_GROWSDOWN;
	if (e->prot & PROT_EXEC)
		return ASIDE_EXECUTABLE; /* code is little, and a driver's scope may lie on a noexec mount */
	if (!advice_is_harmless(e))
		return ASIDE_ADVICE;
	if (covered_by_guard(vma))
		return ASIDE_GUARD;
	if (switches()->mapped_scope == MAPPED_SCOPE_ALL && is_arena_heap(vma))
		return ASIDE_ARENA;
	return MAPPABLE;
}

/* A process has thousands of mappings, and many runs of pages in some of them: each mapping is judged once. */
enum standaside plan_vma_standaside(struct vma_area *vma)
{
	if (task_plan.judged != vma) {
		task_plan.judged = vma;
		task_plan.verdict = judge_vma(vma);
	}
	return task_plan.verdict;
}

bool plan_may_be_huge(const struct vma_area *vma)
{
	const VmaEntry *e = vma->e;

	return switches()->driver_huge_pages && vma_area_is(vma, VMA_AREA_REGULAR | VMA_ANON_PRIVATE) &&
	       !(e->flags & MAP_HUGETLB) && !(e->has_madv && e->madv & 1UL << MADV_NOHUGEPAGE);
}

enum standaside plan_ordinary_standaside(const struct vma_area *vma)
{
	if (switches()->mapped_scope != MAPPED_SCOPE_ALL)
		return ASIDE_SCOPE;
	if (task_plan.allocator_owns_all || allocator_owns_mapping(vma->e))
		return ASIDE_ALLOCATOR;
	return MAPPABLE;
}

void plan_report_aside(int pid)
{
	unsigned long now = span_now_us();
	unsigned i;

	for (i = 0; i < ASIDE_N; i++)
		if (task_plan.aside_bytes[i])
			span_log("standaside", pid, now, now, task_plan.aside_bytes[i], standaside_notes[i]);
}
