/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static struct gs_driver driver;
static pthread_once_t once = PTHREAD_ONCE_INIT;

void *gs_real_dlsym(void *handle, const char *name)
{
	static void *(*real)(void *, const char *);

	if (!__atomic_load_n(&real, __ATOMIC_RELAXED)) {
		/* glibc 2.34 gave it a new version when it moved to libc; older ones have that of their architecture.
		 */
		void *found = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34") ?: dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");

		__atomic_store_n(&real,
				 (void *(*)(void *, const char *))(found ?: dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.17")),
				 __ATOMIC_RELAXED);
	}
	return real(handle, name);
}

static void open_driver(void)
{
	const char *path = getenv("GPUCKPT_LIBCUDA");

	/* The name by which programs open it, so that all have the same copy. */
	driver.handle = dlopen(path && *path ? path : "libcuda.so.1", RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
	if (!driver.handle)
		return;
#define RESOLVE(_name, _parameters)                                                                                    \
	do {                                                                                                           \
		void *address = gs_real_dlsym(driver.handle, #_name);                                                  \
		memcpy(&driver._name, &address, sizeof(address));                                                      \
	} while (0);
	GS_DRIVER_FUNCTIONS(RESOLVE)
#undef RESOLVE
}

const struct gs_driver *gs_driver(void)
{
	pthread_once(&once, open_driver);
	return &driver;
}

bool gs_driver_can_stage(void)
{
	const struct gs_driver *real = gs_driver();

	return real->cuMemAddressReserve && real->cuMemAddressFree && real->cuMemCreate && real->cuMemRelease &&
	       real->cuMemMap && real->cuMemUnmap && real->cuMemSetAccess && real->cuMemGetAllocationGranularity &&
	       real->cuDeviceGetAttribute && real->cuCtxGetCurrent && real->cuCtxGetDevice &&
	       real->cuCtxPushCurrent_v2 && real->cuCtxPopCurrent_v2 && real->cuCtxSetCurrent &&
	       real->cuCtxSynchronize && real->cuMemHostRegister_v2 && real->cuMemHostUnregister &&
	       real->cuMemcpyDtoHAsync_v2 && real->cuMemcpyHtoDAsync_v2 && real->cuMemsetD8Async &&
	       real->cuStreamCreate && real->cuStreamDestroy_v2 && real->cuStreamSynchronize;
}

const char *gs_driver_error(CUresult result)
{
	const char *name = NULL;

	if (!gs_driver()->cuGetErrorName || gs_driver()->cuGetErrorName(result, &name) != CUDA_SUCCESS || !name)
		return "CUDA_ERROR_UNKNOWN";
	return name;
}
