/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The memory that we gave the program: ranges of addresses, each with physical memory of its own behind it.
 *
 * The addresses stay the program's until it frees them. What is behind them can be taken away and put back. All
 * functions are called by a thread that is inside of the gate, or by the one that has closed it.
 */
#ifndef GPUCKPT_STAGING_REGIONS_H
#define GPUCKPT_STAGING_REGIONS_H

#include <stdatomic.h>
#include <stdbool.h>

#include "cuda_types.h"

struct gs_region {
	CUdeviceptr address;
	size_t bytes;  /* as the program asked */
	size_t mapped; /* as the driver maps, a multiple of its granularity */
	CUdevice device;
	CUcontext context;
	CUmemGenericAllocationHandle handle;
	bool present; /* physical memory is mapped */
	bool dropped; /* its contents need not outlive a checkpoint */
};

/* The driver refuses what it cannot map; the result is then that of the call which failed. */
CUresult gs_region_create(size_t bytes, CUdeviceptr *address);

/* False when no region begins there: the address is the driver's own. Waits for the work of its context first. */
bool gs_region_free(CUdeviceptr address, CUresult *result);

/* Copies the region around an address to found. False when there is none. */
bool gs_region_around(CUdeviceptr address, struct gs_region *found);

/* False when there is no region that begins there. */
bool gs_region_set_dropped(CUdeviceptr address, bool dropped);

/* The regions of a context end with it. */
void gs_regions_forget(CUcontext context);

/* A GPU, in a context, may read and write the regions of another GPU from now on. */
CUresult gs_regions_share(CUdevice owner, CUdevice reader, CUcontext context);

/* What waited for the end of a capture. */
void gs_regions_settle(void);

/* Waits for the work of every context that may use a region. */
CUresult gs_regions_synchronize(void);

/* Takes the physical memory away, or makes new one and maps it at the same addresses. */
CUresult gs_region_take(struct gs_region *region);
CUresult gs_region_put(struct gs_region *region);

/* All regions, sorted by address, as long as the gate is closed. */
struct gs_region *gs_regions(size_t *count);

/* Adds what they hold. Whoever calls it, wherever the gate stands. */
void gs_regions_count(uint64_t *bytes, uint64_t *dropped_bytes);

/* How many streams are being captured: meanwhile nothing may wait for a context. */
extern atomic_int gs_captures;

#endif
