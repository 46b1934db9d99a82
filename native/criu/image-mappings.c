// SPDX-License-Identifier: GPL-2.0-only
/* The dump of a process whose memory a mapped restore has mapped from the images of an earlier checkpoint. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "types.h"
#include "allocator.h"
#include "cr_options.h"
#include "image-mappings.h"
#include "image-view.h"
#include "image.h"
#include "log.h"
#include "mapped-base.h"
#include "mem.h"
#include "page.h"
#include "pstree.h"
#include "servicefd.h"
#include "switches.h"
#include "util.h"
#include "vma.h"
#include "xmalloc.h"

/* A base of this dump, found by its inode. */
struct kept_base {
	dev_t dev;
	ino_t ino;
	bool usable;
	struct base_file file;
};

struct image_mapping {
	off_t off;
	unsigned long start; /* of the mapping that `off` belongs to */
	size_t base;         /* in kept_bases; only where `delta` */
	bool delta;
	bool scanned;
	struct base_range *kept; /* what stays in the base, in order */
	size_t kept_n, cursor;
};

static struct kept_base *kept_bases;
static size_t kept_bases_n;
static bool bases_in_use;

bool image_mappings_have_bases(void)
{
	base_lists_remove_stale();
	return bases_in_use;
}

static bool skip(const char **text, const char *expected)
{
	size_t len = strlen(expected);

	if (strncmp(*text, expected, len))
		return false;
	*text += len;
	return true;
}

/* pages-<number>.img, or a base kept by a delta checkpoint; unlinked or not. */
static bool is_page_image_name(const char *name)
{
	size_t id;

	if (skip(&name, "pages-"))
		id = strspn(name, "0123456789");
	else if (skip(&name, MAPPED_BASE_PREFIX))
		id = strspn(name, "0123456789abcdef");
	else
		return false;
	name += id;
	return id && skip(&name, ".img") && (!*name || !strcmp(name, " (deleted)"));
}

static bool is_page_image(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash && is_page_image_name(slash + 1);
}

static bool delta_wanted(void)
{
	return switches()->mapped_redump == MAPPED_REDUMP_DELTA && !opts.track_mem && !opts.img_parent &&
	       !opts.stream && !opts.lazy_pages && !opts.use_page_server;
}

static bool is_same_file(int dfd, const char *path, const struct stat *st)
{
	struct stat found;

	return !fstatat(dfd, path, &found, 0) && found.st_dev == st->st_dev && found.st_ino == st->st_ino;
}

/*
 * Gives the base a name in the new image folder. The kernel links only within one mount. Where the process holds the
 * file through the executable view, its path starts at the root of that mount, and is looked up from there.
 */
static int link_base(int fd, const struct stat *st, const char *path, const char *name)
{
	int images = get_service_fd(IMG_FD_OFF);
	char from[PATH_MAX], mountpoint[PATH_MAX];

	snprintf(from, sizeof(from), "/proc/self/fd/%d", fd);
	if (!linkat(AT_FDCWD, from, images, name, AT_SYMLINK_FOLLOW))
		return 0;
	if (errno == EEXIST)
		return is_same_file(images, name, st) ? 0 : -1;
	if (errno != EXDEV || image_view_mountpoint(images, mountpoint, sizeof(mountpoint)))
		return -1;
	if (snprintf(from, sizeof(from), "%s%s", mountpoint, path) >= sizeof(from))
		return -1;
	if (!is_same_file(AT_FDCWD, from, st)) {
		errno = EXDEV;
		return -1;
	}
	return linkat(AT_FDCWD, from, images, name, 0);
}

static int keep_base(int fd, const struct stat *st, const char *path)
{
	struct kept_base base = {.dev = st->st_dev, .ino = st->st_ino};

	if (base_identify(fd, &base.file.identity))
		return -1;
	snprintf(base.file.name, sizeof(base.file.name), MAPPED_BASE_PREFIX "%016" PRIx64 ".img",
		 base.file.identity.digest);
	base.usable = !link_base(fd, st, path, base.file.name);
	if (!base.usable)
		pr_pwarn("gpuckpt: %s can't be kept as a base, its pages are dumped", path);
	if (array_grow(&kept_bases, kept_bases_n, sizeof(base)))
		return -1;
	kept_bases[kept_bases_n++] = base;
	return 0;
}

/* The place of the file in kept_bases, where it is added if it is new. */
static int kept_base_index(int fd, const char *path, size_t *index)
{
	struct stat st;

	if (fstat(fd, &st)) {
		pr_perror("Can't stat the image %s", path);
		return -1;
	}
	for (*index = 0; *index < kept_bases_n; ++*index)
		if (kept_bases[*index].dev == st.st_dev && kept_bases[*index].ino == st.st_ino)
			return 0;
	return keep_base(fd, &st, path);
}

int image_mappings_keep_replaced(int dfd, const char *path)
{
	size_t index;
	int fd, ret;

	if (!delta_wanted() || !is_page_image_name(path))
		return 0;
	fd = openat(dfd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ret = kept_base_index(fd, path, &index);
	close(fd);
	return ret;
}

/* Sets image->delta if the file behind the mapping stays as a base of this checkpoint. */
static int find_base(struct vma_area *vma, const char *path, int map_files_dfd)
{
	struct image_mapping *image = vma->image;
	char range[64];
	int fd, ret;

	snprintf(range, sizeof(range), "%" PRIx64 "-%" PRIx64, vma->e->start, vma->e->end);
	fd = openat(map_files_dfd, range, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		pr_perror("Can't open the image behind %s", range);
		return -1;
	}
	ret = kept_base_index(fd, path, &image->base);
	close(fd);
	if (!ret)
		image->delta = kept_bases[image->base].usable;
	return ret;
}

int image_mapping_claim(struct vma_area *vma, const char *path, int map_files_dfd)
{
	if (!(vma->e->flags & MAP_PRIVATE) || !is_page_image(path))
		return 0;
	vma->image = xzalloc(sizeof(*vma->image));
	if (!vma->image)
		return -1;
	vma->image->off = vma->e->pgoff;
	vma->image->start = vma->e->start;
	if (delta_wanted() && find_base(vma, path, map_files_dfd))
		return -1;

	vma->e->status = VMA_AREA_REGULAR | VMA_ANON_PRIVATE;
	vma->e->flags |= MAP_ANONYMOUS;
	vma->e->pgoff = 0;
	return 1;
}

/* CRIU appends the guard regions to the list of mappings, so the search ends at the first of another kind. */
static bool is_guard_page(const struct list_head *vmas, unsigned long vaddr)
{
	struct vma_area *guard;

	list_for_each_entry_reverse(guard, vmas, list)
	{
		if (!vma_area_is(guard, VMA_AREA_GUARD))
			return false;
		if (in_vma_area(guard, vaddr))
			return true;
	}
	return false;
}

/* What a later restore would not map must not stay in a base: see memory_plan_take(). */
static bool may_stay_in_base(const struct vma_area *vma)
{
	return vma->image->delta && !(vma->e->flags & (MAP_LOCKED | MAP_GROWSDOWN)) && !(vma->e->prot & PROT_EXEC) &&
	       !allocator_owns_mapping(vma->e);
}

static int keep_range(struct image_mapping *image, unsigned long start, unsigned long end)
{
	struct base_range range = {start, end, 0, image->off + (start - image->start)};

	/* Shorter ones would cost the restored process a mapping each. */
	if (end - start < switches()->mapped_min_bytes)
		return 0;
	if (array_grow(&image->kept, image->kept_n, sizeof(range)))
		return -1;
	image->kept[image->kept_n++] = range;
	return 0;
}

static bool is_written(uint64_t pme)
{
	return (pme & (PME_PRESENT | PME_SWAP)) && !(pme & PME_FILE);
}

/* Finds the pages that still are the image's: those of which the process has no copy of its own. */
static int scan_written_pages(struct vma_area *vma, int pagemap_fd)
{
	unsigned long from = vma->e->start, at = from;
	uint64_t pmes[512];

	while (at < vma->e->end) {
		size_t n = min_t(size_t, (vma->e->end - at) / PAGE_SIZE, ARRAY_SIZE(pmes)), i;

		if (pread(pagemap_fd, pmes, n * sizeof(*pmes), at / PAGE_SIZE * sizeof(*pmes)) != n * sizeof(*pmes)) {
			pr_perror("Can't read the pagemap at %lx", at);
			return -1;
		}
		for (i = 0; i < n; i++, at += PAGE_SIZE) {
			if (!is_written(pmes[i]))
				continue;
			if (keep_range(vma->image, from, at))
				return -1;
			from = at + PAGE_SIZE;
		}
	}
	return keep_range(vma->image, from, vma->e->end);
}

/* Failing to tell what was written is no error: all pages are dumped then. */
static void find_kept_ranges(struct vma_area *vma, int pagemap_fd)
{
	struct image_mapping *image = vma->image;

	image->scanned = true;
	if (!may_stay_in_base(vma) || !scan_written_pages(vma, pagemap_fd))
		return;
	image->kept_n = 0;
}

bool image_mapping_wants_page(struct vma_area *vma, unsigned long vaddr, const pmc_t *pmc)
{
	struct image_mapping *image = vma->image;

	if (!image->scanned)
		find_kept_ranges(vma, pmc->fd);
	while (image->cursor < image->kept_n && image->kept[image->cursor].end <= vaddr)
		image->cursor++;
	if (image->cursor < image->kept_n && image->kept[image->cursor].start <= vaddr)
		return false;
	return !is_guard_page(pmc->vma_head, vaddr);
}

static int list_kept_ranges(const struct image_mapping *image, struct base_list *list)
{
	size_t i;
	int base;

	if (!image->kept_n)
		return 0;
	base = base_list_index(list, &kept_bases[image->base].file);
	if (base < 0)
		return -1;
	for (i = 0; i < image->kept_n; i++) {
		struct base_range range = image->kept[i];

		range.base = base;
		if (base_list_add_range(list, &range))
			return -1;
	}
	return 0;
}

static int write_bases(struct pstree_item *item, const struct vm_area_list *vmas)
{
	struct base_list list = {};
	struct vma_area *vma;
	int ret = 0;

	list_for_each_entry(vma, &vmas->h, list)
		if (!ret && vma->image)
			ret = list_kept_ranges(vma->image, &list);
	if (!ret && list.ranges_n) {
		bases_in_use = true;
		ret = base_list_write(vpid(item), &list);
	}
	base_list_free(&list);
	return ret;
}

static bool joins(const struct vma_area *a, const struct vma_area *b)
{
	const unsigned anonymous = VMA_AREA_REGULAR | VMA_ANON_PRIVATE;

	return (a->image || b->image) && a->e->end == b->e->start && vma_area_is(a, anonymous) &&
	       !((a->e->status ^ b->e->status) & ~VMA_AREA_HEAP) && a->e->prot == b->e->prot &&
	       a->e->flags == b->e->flags && a->e->has_madv == b->e->has_madv && a->e->madv == b->e->madv;
}

static void free_image(struct image_mapping *image)
{
	if (image)
		xfree(image->kept);
	xfree(image);
}

static void join_next(struct vma_area *vma, struct vm_area_list *vmas)
{
	struct vma_area *next = vma_next(vma);

	vma->e->status |= next->e->status & VMA_AREA_HEAP;
	vma->e->end = next->e->end;
	if (!vma->image) {
		vma->image = next->image;
		next->image = NULL;
	}
	free_image(next->image);
	list_del(&next->list);
	xfree(next);
	vmas->nr--;
}

int image_mappings_finish(struct pstree_item *item, struct vm_area_list *vmas)
{
	struct vma_area *vma;

	if (write_bases(item, vmas))
		return -1;
	list_for_each_entry(vma, &vmas->h, list)
		while (vma->list.next != &vmas->h && joins(vma, vma_next(vma)))
			join_next(vma, vmas);
	list_for_each_entry(vma, &vmas->h, list) {
		free_image(vma->image);
		vma->image = NULL;
	}
	return 0;
}
