// SPDX-License-Identifier: GPL-2.0-only
/* The dump of a process whose memory a mapped restore has mapped from the images of an earlier checkpoint. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "types.h"
#include "image-mappings.h"
#include "image.h"
#include "log.h"
#include "page.h"
#include "vma.h"
#include "xmalloc.h"

static bool is_page_image(const char *path)
{
	static const char prefix[] = "pages-", suffix[] = ".img", deleted[] = " (deleted)";
	const char *name = strrchr(path, '/');

	if (!name || strncmp(++name, prefix, sizeof(prefix) - 1))
		return false;
	name += sizeof(prefix) - 1;
	if (!isdigit(*name))
		return false;
	while (isdigit(*name))
		name++;
	if (strncmp(name, suffix, sizeof(suffix) - 1))
		return false;
	name += sizeof(suffix) - 1;
	return !*name || !strcmp(name, deleted);
}

bool image_mapping_claim(struct vma_area *vma, const char *path)
{
	if (!(vma->e->flags & MAP_PRIVATE) || !is_page_image(path))
		return false;
	vma->image_backed = true;
	vma->e->status = VMA_AREA_REGULAR | VMA_ANON_PRIVATE;
	vma->e->flags |= MAP_ANONYMOUS;
	vma->e->pgoff = 0;
	return true;
}

/* CRIU appends the guard regions to the list of mappings, so the search ends at the first that is none. */
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

bool image_mapping_wants_page(const struct vma_area *vma, unsigned long vaddr, const struct list_head *vmas)
{
	return vma->image_backed && !is_guard_page(vmas, vaddr);
}

static bool joins(const struct vma_area *a, const struct vma_area *b)
{
	const unsigned anonymous = VMA_AREA_REGULAR | VMA_ANON_PRIVATE;

	return (a->image_backed || b->image_backed) && a->e->end == b->e->start && vma_area_is(a, anonymous) &&
	       !((a->e->status ^ b->e->status) & ~VMA_AREA_HEAP) && a->e->prot == b->e->prot &&
	       a->e->flags == b->e->flags && a->e->has_madv == b->e->has_madv && a->e->madv == b->e->madv;
}

void image_mappings_join(struct vm_area_list *vmas)
{
	struct vma_area *vma, *next;

	list_for_each_entry_safe(vma, next, &vmas->h, list)
	{
		while (&next->list != &vmas->h && joins(vma, next)) {
			struct vma_area *joined = next;

			next = vma_next(next);
			vma->image_backed |= joined->image_backed;
			vma->e->status |= joined->e->status & VMA_AREA_HEAP;
			vma->e->end = joined->e->end;
			list_del(&joined->list);
			xfree(joined);
			vmas->nr--;
		}
	}
}
