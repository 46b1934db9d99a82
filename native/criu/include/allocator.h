/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_ALLOCATOR_H
#define GPUCKPT_ALLOCATOR_H

#include <stdbool.h>

#include "images/vma.pb-c.h"

struct pstree_item;

/* Whether an allocator that may rely on zeros owns all memory of a task that is being restored. */
extern bool allocator_owns_process(struct pstree_item *t);

/*
 * Whether such an allocator may own this mapping. Those that keep address space and give back its pages ask for it
 * with MAP_NORESERVE: jemalloc, mimalloc, snmalloc, Java, V8. jemalloc may also be inside another library, or linked
 * into the program.
 */
extern bool allocator_owns_mapping(const VmaEntry *e);

#endif
