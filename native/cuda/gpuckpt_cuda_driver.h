/* SPDX-License-Identifier: GPL-2.0-only */
/* libcuda, opened at run time: the checkpoint calls, and what the context pool needs. No CRIU in here. */
#ifndef GPUCKPT_CUDA_DRIVER_H
#define GPUCKPT_CUDA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "gpuckpt_cuda_abi.h"

#define CUDA_DEVICE_MAP_MAX 64
#define CUDA_WHY_SIZE 512 /* room for a cause, in the functions below that tell one */

struct gc_driver {
	void *handle;
	int version; /* as cuDriverGetVersion: 12080 is CUDA 12.8, driver 570 */

	CUresult (*init)(unsigned int flags);
	CUresult (*driver_get_version)(int *version);
	CUresult (*get_error_name)(CUresult result, const char **name);
	CUresult (*device_get_count)(int *count);
	CUresult (*device_get)(CUdevice *device, int ordinal);
	CUresult (*primary_ctx_retain)(CUcontext *context, CUdevice device);
	CUresult (*primary_ctx_release)(CUdevice device);
	CUresult (*get_restore_tid)(int pid, int *tid);
	CUresult (*get_state)(int pid, CUprocessState *state);
	CUresult (*lock)(int pid, CUcheckpointLockArgs *args);
	CUresult (*checkpoint)(int pid, CUcheckpointCheckpointArgs *args);
	CUresult (*restore)(int pid, CUcheckpointRestoreArgs *args);
	CUresult (*unlock)(int pid, CUcheckpointUnlockArgs *args);
};

/* GPUs to restore onto, in place of those that were checkpointed. count 0: the same ones. */
struct gc_device_map {
	CUcheckpointGpuPair pairs[CUDA_DEVICE_MAP_MAX];
	unsigned int count;
};

enum gc_driver_use {
	CUDA_DRIVER_FOR_CHECKPOINT, /* cuCheckpointProcess*: driver 570 or newer */
	CUDA_DRIVER_FOR_CONTEXTS,   /* cuInit, cuDevicePrimaryCtxRetain */
};

/* Opens $GPUCKPT_LIBCUDA, or else libcuda.so.1. 0, or -1 with the cause in why. Starts no thread, opens no device. */
int gc_driver_open(struct gc_driver *driver, enum gc_driver_use use, char *why, size_t why_size);

/* The driver's name of a result ("CUDA_ERROR_INVALID_VALUE"), never NULL. */
const char *gc_driver_error(const struct gc_driver *driver, CUresult result);

/* True for results that say "the driver cannot serve anybody", not "this process has no CUDA state". */
bool gc_driver_unreachable(CUresult result);

/* "running", "locked", "checkpointed", "failed" or "unknown": the words of NVIDIA's command. */
const char *gc_state_name(CUprocessState state);

/* timeout_ms 0: no limit. */
CUresult gc_driver_lock(const struct gc_driver *driver, pid_t pid, unsigned int timeout_ms);
CUresult gc_driver_checkpoint(const struct gc_driver *driver, pid_t pid);
/* map may be NULL. Initialises the driver first where nothing else keeps the GPU initialised. */
CUresult gc_driver_restore(const struct gc_driver *driver, pid_t pid, const struct gc_device_map *map);
CUresult gc_driver_unlock(const struct gc_driver *driver, pid_t pid);

/* Parses "OLD=NEW,OLD=NEW" (UUIDs, with or without "GPU-"). 0, or -1 with the cause in why. */
int gc_device_map_parse(const char *text, struct gc_device_map *map, char *why, size_t why_size);

/* 0 if this driver can renumber devices, or -1 with the cause in why. */
int gc_device_map_supported(const struct gc_driver *driver, char *why, size_t why_size);

#endif
