/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * GPU memory to a file and back, at the speed of the bus.
 *
 * Threads carry pieces. The bus is fast only from pinned memory, and to pin the pages of the file takes longer than to
 * copy them. So each thread has two small pinned buffers: while one is on the bus, it reads or writes the other.
 */
#ifndef GPUCKPT_STAGING_TRANSFER_H
#define GPUCKPT_STAGING_TRANSFER_H

#include <stdbool.h>

#include "cuda_types.h"

#define GS_PIECE (4UL << 20) /* bytes; larger ones take longer to pin and travel no faster */
#define GS_WHY 256

struct gs_piece {
	CUdeviceptr address;
	uint64_t offset; /* in the file */
	uint64_t digest; /* XXH3 of the contents; not used for zeros */
	uint32_t bytes;
	uint32_t region; /* its index */
	CUdevice device;
	bool zeros; /* has nothing in the file */
};

struct gs_transfer {
	struct gs_piece *pieces; /* in the order of their regions */
	size_t count;
	int file;
	bool to_gpu;
	/* Called by the threads before a piece of a region is written to the GPU. NULL: all are there. */
	bool (*await_region)(void *context, uint32_t region);
	void *context;
};

/* The context that a GPU's pieces travel in. */
struct gs_lane {
	CUdevice device;
	CUcontext context;
};

/* Carries all pieces, and returns when none is under way any more. False, and why, when one could not be carried. */
bool gs_transfer(const struct gs_transfer *transfer, const struct gs_lane *lanes, size_t nr_lanes, unsigned int threads,
		 char why[GS_WHY]);

#endif
