/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_IMAGE_MAPPINGS_H
#define GPUCKPT_IMAGE_MAPPINGS_H

#include <stdbool.h>

struct vma_area;
struct vm_area_list;
struct list_head;

/* True if the private mapping of this path is memory that a mapped restore made: it is then anonymous memory to CRIU.
 */
extern bool image_mapping_claim(struct vma_area *vma, const char *path);

/* True if the page must be dumped although the kernel does not call it anonymous. */
extern bool image_mapping_wants_page(const struct vma_area *vma, unsigned long vaddr, const struct list_head *vmas);

/* Joins what a mapped restore split, so that generations of checkpoints do not fragment. Call when pages are dumped. */
extern void image_mappings_join(struct vm_area_list *vmas);

#endif
