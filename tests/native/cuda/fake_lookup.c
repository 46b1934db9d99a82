/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Functions of the fake driver by name, as the CUDA runtime looks them up. */
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define NOT_FOUND 500
#define PER_THREAD_DEFAULT_STREAM 2 /* a flag */

#define FUNCTIONS(FUNCTION)                                                                                            \
	FUNCTION(cuInit)                                                                                               \
	FUNCTION(cuDriverGetVersion)                                                                                   \
	FUNCTION(cuGetErrorName)                                                                                       \
	FUNCTION(cuDeviceGetCount)                                                                                     \
	FUNCTION(cuDeviceGet)                                                                                          \
	FUNCTION(cuDeviceGetUuid_v2)                                                                                   \
	FUNCTION(cuDeviceGetAttribute)                                                                                 \
	FUNCTION(cuDeviceGetDefaultMemPool)                                                                            \
	FUNCTION(cuDevicePrimaryCtxRetain)                                                                             \
	FUNCTION(cuDevicePrimaryCtxRelease_v2)                                                                         \
	FUNCTION(cuDevicePrimaryCtxGetState)                                                                           \
	FUNCTION(cuCtxSetCurrent)                                                                                      \
	FUNCTION(cuCtxGetCurrent)                                                                                      \
	FUNCTION(cuCtxPushCurrent_v2)                                                                                  \
	FUNCTION(cuCtxPopCurrent_v2)                                                                                   \
	FUNCTION(cuCtxGetDevice)                                                                                       \
	FUNCTION(cuCtxSynchronize)                                                                                     \
	FUNCTION(cuCtxEnablePeerAccess)                                                                                \
	FUNCTION(cuMemGetInfo_v2)                                                                                      \
	FUNCTION(cuMemAlloc_v2)                                                                                        \
	FUNCTION(cuMemAllocPitch_v2)                                                                                   \
	FUNCTION(cuMemFree_v2)                                                                                         \
	FUNCTION(cuMemAllocAsync)                                                                                      \
	FUNCTION(cuMemFreeAsync)                                                                                       \
	FUNCTION(cuMemPoolSetAttribute)                                                                                \
	FUNCTION(cuMemPoolTrimTo)                                                                                      \
	FUNCTION(cuMemGetAllocationGranularity)                                                                        \
	FUNCTION(cuMemAddressReserve)                                                                                  \
	FUNCTION(cuMemAddressFree)                                                                                     \
	FUNCTION(cuMemCreate)                                                                                          \
	FUNCTION(cuMemRelease)                                                                                         \
	FUNCTION(cuMemMap)                                                                                             \
	FUNCTION(cuMemSetAccess)                                                                                       \
	FUNCTION(cuMemUnmap)                                                                                           \
	FUNCTION(cuMemExportToShareableHandle)                                                                         \
	FUNCTION(cuMemImportFromShareableHandle)                                                                       \
	FUNCTION(cuMemGetAddressRange_v2)                                                                              \
	FUNCTION(cuPointerGetAttribute)                                                                                \
	FUNCTION(cuPointerGetAttributes)                                                                               \
	FUNCTION(cuIpcGetMemHandle)                                                                                    \
	FUNCTION(cuMemAllocHost_v2)                                                                                    \
	FUNCTION(cuMemFreeHost)                                                                                        \
	FUNCTION(cuMemHostRegister_v2)                                                                                 \
	FUNCTION(cuMemHostUnregister)                                                                                  \
	FUNCTION(cuStreamCreate)                                                                                       \
	FUNCTION(cuStreamDestroy_v2)                                                                                   \
	FUNCTION(cuStreamSynchronize)                                                                                  \
	FUNCTION(cuStreamQuery)                                                                                        \
	FUNCTION(cuStreamBeginCapture_v2)                                                                              \
	FUNCTION(cuStreamEndCapture)                                                                                   \
	FUNCTION(cuMemcpyHtoD_v2)                                                                                      \
	FUNCTION(cuMemcpyHtoD_v2_ptds)                                                                                 \
	FUNCTION(cuMemcpyDtoH_v2)                                                                                      \
	FUNCTION(cuMemcpyDtoH_v2_ptds)                                                                                 \
	FUNCTION(cuMemcpyDtoD_v2)                                                                                      \
	FUNCTION(cuMemcpyDtoD_v2_ptds)                                                                                 \
	FUNCTION(cuMemcpyHtoDAsync_v2)                                                                                 \
	FUNCTION(cuMemcpyHtoDAsync_v2_ptsz)                                                                            \
	FUNCTION(cuMemcpyDtoHAsync_v2)                                                                                 \
	FUNCTION(cuMemcpyDtoHAsync_v2_ptsz)                                                                            \
	FUNCTION(cuMemcpyDtoDAsync_v2)                                                                                 \
	FUNCTION(cuMemcpyDtoDAsync_v2_ptsz)                                                                            \
	FUNCTION(cuMemsetD8_v2)                                                                                        \
	FUNCTION(cuMemsetD8_v2_ptds)                                                                                   \
	FUNCTION(cuMemsetD8Async)                                                                                      \
	FUNCTION(cuMemsetD8Async_ptsz)                                                                                 \
	FUNCTION(cuLaunchKernel)

/* Their types lie elsewhere; here they are addresses. */
#define DECLARE(_name) extern int _name();
FUNCTIONS(DECLARE)
EXPORT int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status);

static void *find(const char *name, const char *ending)
{
	size_t length = strlen(name);

#define RETURN_IF_IT_IS(_name)                                                                                         \
	if (!strncmp(#_name, name, length) && !strcmp(#_name + length, ending))                                        \
		return (void *)_name;
	FUNCTIONS(RETURN_IF_IT_IS)
	return NULL;
}

/* A name stands for its newest variant; what a program asks for by a whole name is not found by that of a variant. */
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
	static const char *const endings[] = {"_v2_ptsz", "_v2_ptds", "_ptsz", "_ptds", "_v2", ""};
	size_t first = flags & PER_THREAD_DEFAULT_STREAM ? 0 : 4;

	(void)version;
	*function = !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2 : NULL;
	for (size_t n = first; n < sizeof(endings) / sizeof(endings[0]) && !*function; n++)
		*function = find(name, endings[n]);
	if (status)
		*status = *function ? 0 : 1;
	return *function ? 0 : NOT_FOUND;
}
