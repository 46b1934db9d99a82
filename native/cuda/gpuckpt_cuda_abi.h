/* SPDX-License-Identifier: GPL-2.0-only OR LGPL-2.1-or-later */
/*
 * The part of the CUDA driver's binary interface that checkpointing needs.
 * Declared here, so that no CUDA toolkit is needed to build; libcuda is opened at run time.
 */
#ifndef GPUCKPT_CUDA_ABI_H
#define GPUCKPT_CUDA_ABI_H

#include <stdint.h>

typedef int CUresult;
typedef int CUdevice;
typedef struct CUctx_st *CUcontext;

/* The results that we tell apart; every other one is only named in a message. */
enum {
	CUDA_SUCCESS = 0,
	CUDA_ERROR_INVALID_VALUE = 1,
	CUDA_ERROR_OUT_OF_MEMORY = 2,
	CUDA_ERROR_NOT_INITIALIZED = 3,
	CUDA_ERROR_STUB_LIBRARY = 34,
	CUDA_ERROR_NO_DEVICE = 100,
	CUDA_ERROR_INVALID_CONTEXT = 201,
	CUDA_ERROR_OPERATING_SYSTEM = 304,
	CUDA_ERROR_NOT_FOUND = 500,
	CUDA_ERROR_NOT_READY = 600,
	CUDA_ERROR_ILLEGAL_ADDRESS = 700,
	CUDA_ERROR_NOT_PERMITTED = 800,
	CUDA_ERROR_NOT_SUPPORTED = 801,
	CUDA_ERROR_SYSTEM_NOT_READY = 802,
	CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803,
	CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE = 804,
};

typedef enum {
	CU_PROCESS_STATE_RUNNING = 0,
	CU_PROCESS_STATE_LOCKED = 1,
	CU_PROCESS_STATE_CHECKPOINTED = 2,
	CU_PROCESS_STATE_FAILED = 3,
} CUprocessState;

typedef struct {
	unsigned char bytes[16];
} CUuuid;

typedef struct {
	unsigned int timeoutMs; /* 0: wait without limit */
	unsigned int reserved0;
	uint64_t reserved1[7];
} CUcheckpointLockArgs;

typedef struct {
	uint64_t reserved[8];
} CUcheckpointCheckpointArgs;

typedef struct {
	CUuuid oldUuid;
	CUuuid newUuid;
} CUcheckpointGpuPair;

/* Before CUDA 13.0 (driver 580) all 64 bytes were reserved: a null gpuPairs fits both. */
typedef struct {
	CUcheckpointGpuPair *gpuPairs;
	unsigned int gpuPairsCount;
	char reserved[64 - sizeof(CUcheckpointGpuPair *) - sizeof(unsigned int)];
} CUcheckpointRestoreArgs;

typedef struct {
	uint64_t reserved[8];
} CUcheckpointUnlockArgs;

_Static_assert(sizeof(CUcheckpointLockArgs) == 64, "lock arguments");
_Static_assert(sizeof(CUcheckpointCheckpointArgs) == 64, "checkpoint arguments");
_Static_assert(sizeof(CUcheckpointRestoreArgs) == 64, "restore arguments");
_Static_assert(sizeof(CUcheckpointUnlockArgs) == 64, "unlock arguments");
_Static_assert(sizeof(CUcheckpointGpuPair) == 32, "GPU pair");

/* Version numbers as cuDriverGetVersion gives them. */
#define CUDA_VERSION_GPU_PAIRS 13000 /* driver 580 */

#endif
