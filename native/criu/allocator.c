// SPDX-License-Identifier: GPL-2.0-only
/*
 * Allocators give unused pages back with madvise(MADV_DONTNEED), and some rely on finding zeros there. Memory that is
 * mapped from an image shows the image again. So what such an allocator may own is read.
 */
#include <string.h>

#include "types.h"
#include "allocator.h"
#include "files.h"
#include "files-reg.h"
#include "image.h"
#include "log.h"
#include "pstree.h"
#include "rst_info.h"
#include "switches.h"
#include "vma.h"

/* Allocators of the whole process, by the name of their library. */
static const char *const libraries[] = {"libjemalloc", "libtcmalloc"};

static const char *mapped_file_name(const struct vma_area *vma)
{
	const char *path, *slash;

	if (!vma_area_is(vma, VMA_FILE_PRIVATE) || !vma->vmfd || vma->vmfd->ops->type != FD_TYPES__REG)
		return NULL;
	path = container_of(vma->vmfd, struct reg_file_info, d)->path;
	slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

static bool is_allocator(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(libraries); i++)
		if (!strncmp(name, libraries[i], strlen(libraries[i])))
			return true;
	return false;
}

bool allocator_owns_process(struct pstree_item *t)
{
	struct vma_area *vma;

	if (switches()->mapped_allocators == MAPPED_ALLOCATORS_TRUST)
		return false;
	if (!switches()->noreserve_is_kept) {
		pr_info("gpuckpt: pid %d: with vm.overcommit_memory=2 nothing marks the memory of allocators\n",
			vpid(t));
		return true;
	}
	list_for_each_entry(vma, &rsti(t)->vmas.h, list) {
		const char *name = mapped_file_name(vma);

		if (name && is_allocator(name)) {
			pr_info("gpuckpt: pid %d: %s may rely on zeros after MADV_DONTNEED\n", vpid(t), name);
			return true;
		}
	}
	return false;
}

bool allocator_owns_mapping(const VmaEntry *e)
{
	return switches()->mapped_allocators != MAPPED_ALLOCATORS_TRUST && e->flags & MAP_NORESERVE;
}
