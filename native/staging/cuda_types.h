/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The part of the CUDA driver's binary interface that staging needs, next to that of gpuckpt_cuda_abi.h.
 * Declared here, so that no CUDA toolkit is needed to build. Names and numbers are those of cuda.h.
 */
#ifndef GPUCKPT_STAGING_CUDA_TYPES_H
#define GPUCKPT_STAGING_CUDA_TYPES_H

#include <stddef.h>
#include <stdint.h>

#include "gpuckpt_cuda_abi.h"

typedef uint64_t CUdeviceptr;
typedef uint64_t CUmemGenericAllocationHandle;
typedef struct CUstream_st *CUstream;
typedef struct CUmemPoolHandle_st *CUmemoryPool;

enum {
	CU_MEM_ALLOCATION_TYPE_PINNED = 1,
	CU_MEM_LOCATION_TYPE_DEVICE = 1,
	CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3,
	CU_MEM_ALLOC_GRANULARITY_MINIMUM = 0,
	CU_MEMHOSTREGISTER_PORTABLE = 1,
	CU_STREAM_NON_BLOCKING = 1,
	CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102,
	CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED = 110,
	CU_POINTER_ATTRIBUTE_CONTEXT = 1,
	CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
	CU_POINTER_ATTRIBUTE_RANGE_START_ADDR = 11,
	CU_POINTER_ATTRIBUTE_RANGE_SIZE = 12,
};

typedef struct {
	int type;
	int id;
} CUmemLocation;

typedef struct {
	int type;
	int requestedHandleTypes;
	CUmemLocation location;
	void *win32HandleMetaData;
	struct {
		unsigned char compressionType;
		unsigned char gpuDirectRDMACapable;
		unsigned short usage;
		unsigned char reserved[4];
	} allocFlags;
} CUmemAllocationProp;

typedef struct {
	CUmemLocation location;
	int flags;
} CUmemAccessDesc;

_Static_assert(sizeof(CUmemAllocationProp) == 32, "allocation properties");
_Static_assert(sizeof(CUmemAccessDesc) == 12, "access description");

#endif
