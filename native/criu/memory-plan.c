// SPDX-License-Identifier: GPL-2.0-only
/*
 * Plans how a task's private memory is filled on restore: mapped from the page image where that cannot be told from
 * anonymous memory, and read, by one or several threads, everywhere else.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "types.h"
#include "allocator.h"
#include "cr_options.h"
#include "copy-team.h"
#include "image.h"
#include "image-view.h"
#include "log.h"
#include "mapped-base.h"
#include "mem.h"
#include "memory-plan.h"
#include "page.h"
#include "pagemap.h"
#include "parallel-read.h"
#include "pstree.h"
#include "restorer.h"
#include "rst-malloc.h"
#include "rst_info.h"
#include "servicefd.h"
#include "span.h"
#include "switches.h"
#include "vma.h"
#include "xmalloc.h"

/* glibc gives each further arena heaps of this size and alignment, writable in front, inaccessible behind. */
#define ARENA_HEAP_SIZE (64UL << 20)

/* A mapped range longer than this holds an anonymous page: see anchored(). */
#define ANCHOR_PERIOD (1UL << 20)

/* So many bytes per read let several threads share the work evenly. A multiple of a huge page: see add_read(). */
#define THREAD_READ_BYTES (4UL << 20)

/* So many bytes are populated at once by one thread. */
#define POPULATE_BYTES (32UL << 20)

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

static const char *const standaside_notes[ASIDE_N] = {
	[ASIDE_HUGETLB] = "hugetlb",       [ASIDE_LOCKED] = "locked",   [ASIDE_GROWSDOWN] = "growsdown",
	[ASIDE_EXECUTABLE] = "executable", [ASIDE_ADVICE] = "advice",   [ASIDE_GUARD] = "guard",
	[ASIDE_ARENA] = "arena",           [ASIDE_SPECIAL] = "special", [ASIDE_INHERITED] = "inherited",
	[ASIDE_ALLOCATOR] = "allocator",   [ASIDE_SCOPE] = "scope",     [ASIDE_SHORT] = "short",
};

/* The plan of the task that this process is about to become. A forked child starts its own in memory_plan_begin(). */
static struct {
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
} plan;

static void stand_aside(struct pstree_item *t, const char *note)
{
	unsigned long now = span_now_us();

	span_log("standaside", vpid(t), now, now, 0, note);
}

/* The reason why no page of this restore can go through the plan, or NULL. */
static const char *restore_standaside(const struct page_read *pr)
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

static int open_page_image(unsigned long id)
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

/* The reason why nothing can be mapped from this image, or NULL. */
static const char *mapping_standaside(struct page_read *pr)
{
	int fd = open_page_image(pr->pages_img_id);
	const char *note = NULL;

	if (fd < 0 || !can_be_mapped(fd))
		note = "no-mmap";
	else if (switches()->mapped_scope == MAPPED_SCOPE_ALL && !image_view_is_executable(fd))
		note = "noexec";
	close_safe(&fd);
	return note;
}

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

	snprintf(name, sizeof(name), "cuda-ranges-%d.txt", vpid(t));
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

		if (sscanf(line, "%lx-%lx", &range.start, &range.end) != 2 || range.start >= range.end) {
			pr_err("%s holds a line that is no range: %s", name, line);
			fclose(f);
			return -1;
		}
		if (add_range(&plan.driver, range)) {
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

	list_for_each_entry(vma, &rsti(plan.task)->vmas.h, list)
	{
		struct range range = {vma->e->start, vma->e->end};

		if (vma_area_is(vma, VMA_AREA_GUARD) && add_range(&plan.guards, range))
			return -1;
	}
	return 0;
}

int memory_plan_begin(struct pstree_item *t, struct page_read *pr)
{
	const struct switches *sw = switches();
	const char *aside;

	xfree(plan.runs);
	xfree(plan.driver.ranges);
	xfree(plan.guards.ranges);
	base_list_free(&plan.bases);
	memset(&plan, 0, sizeof(plan));
	plan.task = t;

	if (base_list_read(vpid(t), &plan.bases))
		return -1;
	if (!sw->mapped_restore && sw->restore_threads == 1 && !sw->driver_huge_pages && !plan.bases.ranges_n)
		return 0;
	aside = restore_standaside(pr);
	if (aside && plan.bases.ranges_n) {
		pr_err("A delta checkpoint can't be restored with %s; restore it without\n", aside);
		return -1;
	}
	if (aside) {
		stand_aside(t, aside);
		return 0;
	}
	plan.active = true;
	if (sw->mapped_restore) {
		aside = mapping_standaside(pr);
		if (aside)
			stand_aside(t, aside);
		plan.maps = !aside;
	}
	if (plan.maps && find_guards())
		return -1;
	if (plan.maps && sw->mapped_scope == MAPPED_SCOPE_ALL)
		plan.allocator_owns_all = allocator_owns_process(t);
	if (sw->driver_huge_pages || plan.maps)
		return read_driver_ranges(t);
	return 0;
}

static bool covered_by_guard(const struct vma_area *vma)
{
	size_t i;

	for (i = 0; i < plan.guards.n; i++)
		if (plan.guards.ranges[i].start < vma->e->end && plan.guards.ranges[i].end > vma->e->start)
			return true;
	return false;
}

static bool is_arena_heap(struct vma_area *vma)
{
	unsigned long heap_end = vma->e->start + ARENA_HEAP_SIZE;
	struct vma_area *next;

	if (vma->e->start % ARENA_HEAP_SIZE || vma->e->end >= heap_end)
		return false;
	if (vma->list.next == &rsti(plan.task)->vmas.h)
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
static enum standaside vma_standaside(struct vma_area *vma)
{
	if (plan.judged != vma) {
		plan.judged = vma;
		plan.verdict = judge_vma(vma);
	}
	return plan.verdict;
}

/* Whether this memory of the driver's may ask for huge pages: advice that the process gave itself is kept. */
static bool may_be_huge(const struct vma_area *vma)
{
	const VmaEntry *e = vma->e;

	return switches()->driver_huge_pages && vma_area_is(vma, VMA_AREA_REGULAR | VMA_ANON_PRIVATE) &&
	       !(e->flags & MAP_HUGETLB) && !(e->has_madv && e->madv & 1UL << MADV_NOHUGEPAGE);
}

/* CRIU writes its pagemap in pieces of a pipe's size; neighbours are joined again, to be one mapping. */
static bool continues_last_run(const struct page_run *run)
{
	const struct page_run *last = &plan.runs[plan.n - 1];

	return plan.n && last->vma == run->vma && last->mappable == run->mappable && last->driver == run->driver &&
	       last->huge == run->huge && last->addr + last->len == run->addr && last->off + last->len == run->off;
}

static int add_run(struct page_run run)
{
	if (continues_last_run(&run)) {
		plan.runs[plan.n - 1].len += run.len;
		return 0;
	}
	if (array_grow(&plan.runs, plan.n, sizeof(*plan.runs)))
		return -1;
	plan.runs[plan.n++] = run;
	return 0;
}

/* The length of the longest head of [addr, addr + len) that lies wholly inside or wholly outside the driver's ranges.
 */
static unsigned long split_at_driver_range(unsigned long addr, unsigned long len, bool *inside)
{
	unsigned long end = addr + len;
	size_t i;

	*inside = false;
	for (i = 0; i < plan.driver.n; i++) {
		const struct range *r = &plan.driver.ranges[i];

		if (r->start <= addr && addr < r->end) {
			*inside = true;
			return min(end, r->end) - addr;
		}
		if (r->start > addr && r->start < end)
			end = r->start;
	}
	return end - addr;
}

/* Why this memory, which is not the driver's, is read although it could be mapped. */
static enum standaside judge_ordinary_memory(const struct vma_area *vma)
{
	if (switches()->mapped_scope != MAPPED_SCOPE_ALL)
		return ASIDE_SCOPE;
	if (plan.allocator_owns_all || allocator_owns_mapping(vma->e))
		return ASIDE_ALLOCATOR;
	return MAPPABLE;
}

static int add_runs(struct vma_area *vma, unsigned long addr, unsigned long len, off_t off, bool mappable)
{
	while (len) {
		struct page_run run = {.vma = vma, .addr = addr, .off = off};
		enum standaside aside;
		bool inside;

		run.len = split_at_driver_range(addr, len, &inside);
		run.driver = inside;
		aside = inside ? MAPPABLE : judge_ordinary_memory(vma);
		run.mappable = mappable && aside == MAPPABLE;
		run.huge = inside && !run.mappable && may_be_huge(vma);
		if (mappable && !run.mappable)
			plan.aside_bytes[aside] += run.len;
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

	if (!plan.active)
		return 0;
	aside = plan.maps ? vma_standaside(vma) : MAPPABLE;
	/* CRIU compares the pages of forked relatives and shares them; mapped, each would hold an image of its own. */
	if (vma_area_is(vma, VMA_PREMMAPED)) {
		if (plan.maps)
			plan.aside_bytes[aside == MAPPABLE ? ASIDE_INHERITED : aside] += len;
		return 0;
	}
	if (plan.maps && aside != MAPPABLE)
		plan.aside_bytes[aside] += len;
	return add_runs(vma, addr, len, pr->pi_off, plan.maps && aside == MAPPABLE) ? -1 : 1;
}

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

/* The piece of the run that starts at addr. */
static struct piece piece_at(const struct page_run *run, unsigned long addr, const struct cut *cut)
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

#define for_each_piece(run, piece, cut)                                                                                \
	for (piece = piece_at(run, (run)->addr, cut); piece.addr < (run)->addr + (run)->len;                           \
	     piece = piece_at(run, piece.addr + piece.len, cut))

static size_t count_mapped(const struct cut *cut)
{
	struct piece piece;
	size_t i, n = 0;

	for (i = 0; i < plan.n; i++)
		for_each_piece(&plan.runs[i], piece, cut) n += piece.mapped;
	return n;
}

/* Each mapped piece can cost two mappings, its own and what it splits off; a quarter is left to the program. */
static size_t mapped_limit(void)
{
	size_t limit = switches()->max_map_count / 4 * 3;
	size_t taken = rsti(plan.task)->vmas.nr + 2 * plan.bases.ranges_n;

	return limit > taken ? (limit - taken) / 2 : 0;
}

static size_t choose_cut(struct cut *cut)
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
			vpid(plan.task), cut->min_bytes >> 10);
	return n;
}

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

	for (i = 0; i < plan.n; i++) {
		const struct page_run *run = &plan.runs[i];

		for_each_piece(run, piece, cut) if (piece.mapped) *to++ =
			mapped_run(run->vma->e, piece.addr, piece.len, fd, run->off + (piece.addr - run->addr));
	}
	return to;
}

static const VmaEntry *vma_around(const struct base_range *range)
{
	struct vma_area *vma;

	list_for_each_entry(vma, &rsti(plan.task)->vmas.h,
			    list) if (vma->e->start <= range->start && range->end <= vma->e->end &&
				      vma_area_is(vma, VMA_AREA_REGULAR | VMA_ANON_PRIVATE)) return vma->e;
	pr_err("The list of base images names %lx-%lx, which is no private memory of this process\n", range->start,
	       range->end);
	return NULL;
}

/* The runs of one base; the last of them closes its file. */
static struct mapped_run *render_base_runs(struct mapped_run *to, unsigned base)
{
	struct mapped_run *last = NULL;
	int fd = base_open(&plan.bases.files[base]);
	size_t i;

	if (fd < 0)
		return NULL;
	for (i = 0; i < plan.bases.ranges_n; i++) {
		const struct base_range *range = &plan.bases.ranges[i];
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

	n += plan.bases.ranges_n;
	out->runs = (struct mapped_run *)rst_mem_align_cpos(RM_PRIVATE);
	first = to = rst_mem_alloc(n * sizeof(*first), RM_PRIVATE);
	if (!first)
		return -1;
	to = render_own_runs(to, cut, fd);
	for (base = 0; base < plan.bases.files_n; base++) {
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

	while (run->addr < plan.driver.ranges[i].start || run->addr >= plan.driver.ranges[i].end)
		i++; /* one of them is around: see add_runs() */
	return (struct driver_range){
		.start = max(plan.driver.ranges[i].start, (unsigned long)e->start),
		.end = min(plan.driver.ranges[i].end, (unsigned long)e->end),
	};
}

static int render_huge_ranges(struct memory_plan *out)
{
	struct driver_range *last = NULL;
	size_t i;

	out->huge = (struct driver_range *)rst_mem_align_cpos(RM_PRIVATE);
	for (i = 0; i < plan.n; i++) {
		struct driver_range range;

		if (!plan.runs[i].huge)
			continue;
		range = driver_range_around(&plan.runs[i]);
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
	for (i = 0; switches()->driver_populate && i < plan.n; i++) {
		if (!plan.runs[i].driver)
			continue;
		for_each_piece(&plan.runs[i], piece, cut)
		{
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
 * Memory with huge pages is read block by block, each aligned: of two threads that touch one huge page first, one waits
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
	for (i = 0; i < plan.n; i++) {
		const struct page_run *run = &plan.runs[i];

		for_each_piece(run, piece, cut)
		{
			if (piece.mapped)
				continue;
			if (run->mappable)
				plan.aside_bytes[ASIDE_SHORT] += piece.len;
			if (add_read(batch, piece.addr, piece.len, run->off + (piece.addr - run->addr), run->huge, ta))
				goto out;
		}
	}
	ret = flush_batch(batch, ta);
out:
	xfree(batch);
	return ret;
}

/* A short image would be found out by the program, as SIGBUS, long after the restore. */
static int check_image_size(int fd)
{
	const struct page_run *last;
	struct stat st;

	if (!plan.n)
		return 0;
	last = &plan.runs[plan.n - 1];
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

static void report_aside(int pid)
{
	unsigned long now = span_now_us();
	unsigned i;

	for (i = 0; i < ASIDE_N; i++)
		if (plan.aside_bytes[i])
			span_log("standaside", pid, now, now, plan.aside_bytes[i], standaside_notes[i]);
}

int memory_plan_render(struct pstree_item *t, struct task_restore_args *ta)
{
	struct memory_plan *out = &ta->memory;
	struct cut cut;
	size_t mapped;

	memset(out, 0, sizeof(*out));
	if (plan.task != t || !plan.active)
		return 0;
	if (!plan.n && !plan.bases.ranges_n) {
		report_aside(vpid(t));
		return 0;
	}

	ta->vma_ios_fd = open_page_image(rsti(t)->pages_img_id);
	if (ta->vma_ios_fd < 0 || check_image_size(ta->vma_ios_fd))
		return -1;

	out->active = true;
	out->pid = vpid(t);
	out->clock_offset_us = span_clock_offset_us;
	out->threads = switches()->restore_threads;
	out->spare_tid = copy_team_spare_tid(out->threads);
	mapped = choose_cut(&cut);
	if (render_all_mapped(out, &cut, mapped, ta->vma_ios_fd) || render_huge_ranges(out) ||
	    render_populated_ranges(out, &cut) || render_all_reads(ta, &cut))
		return -1;
	report_aside(out->pid);
	return 1;
}
