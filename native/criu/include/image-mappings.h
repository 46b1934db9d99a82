/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_IMAGE_MAPPINGS_H
#define GPUCKPT_IMAGE_MAPPINGS_H

#include <stdbool.h>

#include "pagemap-cache.h"

struct pstree_item;
struct vma_area;
struct vm_area_list;

/* What is known of a mapping that a mapped restore made, while it is dumped. */
struct image_mapping;

/*
 * 1: the private mapping of this path is memory that a mapped restore made, and anonymous memory to CRIU from now on.
 * 0: it is not. -1: error. map_files_dfd is the folder map_files of the process.
 */
extern int image_mapping_claim(struct vma_area *vma, const char *path, int map_files_dfd);

/*
 * To be called before an image of this dump replaces one of the same name. A task whose turn comes later may be mapped
 * from it, so a delta keeps it as a base. -1: error.
 */
extern int image_mappings_keep_replaced(int dfd, const char *path);

/* Whether the page of a claimed mapping is dumped; the others stay in the base images. */
extern bool image_mapping_wants_page(struct vma_area *vma, unsigned long vaddr, const pmc_t *pmc);

/*
 * To be called when the pages are dumped. Writes the list of bases, and joins what the mapped restore split, so that
 * generations of checkpoints do not fragment.
 */
extern int image_mappings_finish(struct pstree_item *item, struct vm_area_list *vmas);

/* The image version of such a dump: stock CRIU, which would leave that memory empty, refuses it. */
#define CRTOOLS_IMAGES_WITH_BASES 0x67700001

/*
 * Whether this dump refers to base images, without which it cannot be restored. To be called when all tasks are dumped:
 * what an older checkpoint left in the folder and this one does not refer to is removed.
 */
extern bool image_mappings_have_bases(void);

#endif
