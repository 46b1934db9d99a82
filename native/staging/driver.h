/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The driver's own functions, as opposed to ours of the same names. Opened when the program first asks for one. */
#ifndef GPUCKPT_STAGING_DRIVER_H
#define GPUCKPT_STAGING_DRIVER_H

#include <stdbool.h>

#include "cuda_types.h"

/* What we call ourselves: name and parameters. */
#define GS_DRIVER_FUNCTIONS(FUNCTION)                                                                                  \
	FUNCTION(cuGetErrorName, (CUresult, const char **))                                                            \
	FUNCTION(cuGetProcAddress, (const char *, void **, int, uint64_t))                                             \
	FUNCTION(cuGetProcAddress_v2, (const char *, void **, int, uint64_t, int *))                                   \
	FUNCTION(cuDeviceGetAttribute, (int *, int, CUdevice))                                                         \
	FUNCTION(cuDeviceGetDefaultMemPool, (CUmemoryPool *, CUdevice))                                                \
	FUNCTION(cuDevicePrimaryCtxGetState, (CUdevice, unsigned int *, int *))                                        \
	FUNCTION(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                    \
	FUNCTION(cuDevicePrimaryCtxRelease_v2, (CUdevice))                                                             \
	FUNCTION(cuDevicePrimaryCtxReset_v2, (CUdevice))                                                               \
	FUNCTION(cuCtxDestroy_v2, (CUcontext))                                                                         \
	FUNCTION(cuCtxGetCurrent, (CUcontext *))                                                                       \
	FUNCTION(cuCtxGetDevice, (CUdevice *))                                                                         \
	FUNCTION(cuCtxPushCurrent_v2, (CUcontext))                                                                     \
	FUNCTION(cuCtxPopCurrent_v2, (CUcontext *))                                                                    \
	FUNCTION(cuCtxSetCurrent, (CUcontext))                                                                         \
	FUNCTION(cuCtxSynchronize, (void))                                                                             \
	FUNCTION(cuCtxEnablePeerAccess, (CUcontext, unsigned int))                                                     \
	FUNCTION(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                               \
	FUNCTION(cuMemAllocPitch_v2, (CUdeviceptr *, size_t *, size_t, size_t, unsigned int))                          \
	FUNCTION(cuMemFree_v2, (CUdeviceptr))                                                                          \
	FUNCTION(cuMemFreeAsync, (CUdeviceptr, CUstream))                                                              \
	FUNCTION(cuMemFreeAsync_ptsz, (CUdeviceptr, CUstream))                                                         \
	FUNCTION(cuMemGetAddressRange_v2, (CUdeviceptr *, size_t *, CUdeviceptr))                                      \
	FUNCTION(cuMemPoolTrimTo, (CUmemoryPool, size_t))                                                              \
	FUNCTION(cuPointerGetAttribute, (void *, int, CUdeviceptr))                                                    \
	FUNCTION(cuPointerGetAttributes, (unsigned int, const int *, void **, CUdeviceptr))                            \
	FUNCTION(cuIpcGetMemHandle, (void *, CUdeviceptr))                                                             \
	FUNCTION(cuMemAddressReserve, (CUdeviceptr *, size_t, size_t, CUdeviceptr, uint64_t))                          \
	FUNCTION(cuMemAddressFree, (CUdeviceptr, size_t))                                                              \
	FUNCTION(cuMemCreate, (CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, uint64_t))         \
	FUNCTION(cuMemRelease, (CUmemGenericAllocationHandle))                                                         \
	FUNCTION(cuMemMap, (CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, uint64_t))                      \
	FUNCTION(cuMemUnmap, (CUdeviceptr, size_t))                                                                    \
	FUNCTION(cuMemSetAccess, (CUdeviceptr, size_t, const CUmemAccessDesc *, size_t))                               \
	FUNCTION(cuMemGetAllocationGranularity, (size_t *, const CUmemAllocationProp *, int))                          \
	FUNCTION(cuMemHostRegister_v2, (void *, size_t, unsigned int))                                                 \
	FUNCTION(cuMemHostUnregister, (void *))                                                                        \
	FUNCTION(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream))                                        \
	FUNCTION(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream))                                  \
	FUNCTION(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                      \
	FUNCTION(cuStreamCreate, (CUstream *, unsigned int))                                                           \
	FUNCTION(cuStreamDestroy_v2, (CUstream))                                                                       \
	FUNCTION(cuStreamSynchronize, (CUstream))

#define GS_MEMBER(_name, _parameters) CUresult(*_name) _parameters;
struct gs_driver {
	void *handle;
	GS_DRIVER_FUNCTIONS(GS_MEMBER)
};
#undef GS_MEMBER

/* A member is NULL where the driver lacks the function, all are where there is no driver. */
const struct gs_driver *gs_driver(void);

/* The C library's dlsym, which ours hides. */
void *gs_real_dlsym(void *handle, const char *name);

/* Whether the driver has all that staging cannot do without. */
bool gs_driver_can_stage(void);

/* The driver's name of a result ("CUDA_ERROR_INVALID_VALUE"), never NULL. */
const char *gs_driver_error(CUresult result);

#endif
