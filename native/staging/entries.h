/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where programs meet us. Those that link libcuda find our functions first, since the loader knows us before it. Those
 * that look functions up, by dlsym or cuGetProcAddress, get ours in the place of the driver's.
 */
#ifndef GPUCKPT_STAGING_ENTRIES_H
#define GPUCKPT_STAGING_ENTRIES_H

#include <stdbool.h>

#include "driver.h"

#define GS_EXPORT __attribute__((visibility("default")))

/* Functions of the driver that we have our own version of (memory.c, entries.c). */
#define GS_OWN_FUNCTIONS(FUNCTION)                                                                                     \
	FUNCTION(cuGetProcAddress)                                                                                     \
	FUNCTION(cuGetProcAddress_v2)                                                                                  \
	FUNCTION(cuMemAlloc_v2)                                                                                        \
	FUNCTION(cuMemAllocPitch_v2)                                                                                   \
	FUNCTION(cuMemFree_v2)                                                                                         \
	FUNCTION(cuMemFreeAsync)                                                                                       \
	FUNCTION(cuMemFreeAsync_ptsz)                                                                                  \
	FUNCTION(cuMemGetAddressRange_v2)                                                                              \
	FUNCTION(cuPointerGetAttribute)                                                                                \
	FUNCTION(cuPointerGetAttributes)                                                                               \
	FUNCTION(cuIpcGetMemHandle)                                                                                    \
	FUNCTION(cuCtxEnablePeerAccess)                                                                                \
	FUNCTION(cuCtxDestroy_v2)                                                                                      \
	FUNCTION(cuDevicePrimaryCtxRelease_v2)                                                                         \
	FUNCTION(cuDevicePrimaryCtxReset_v2)

/* Ours have the types of the driver's. */
#define GS_DECLARE(_name) GS_EXPORT extern __typeof__(*((struct gs_driver *)0)->_name) _name;
GS_OWN_FUNCTIONS(GS_DECLARE)
#undef GS_DECLARE

/* Ours in the place of a function of the driver, else NULL. By address: which variant a name means is its matter. */
void *gs_ours_for(const void *real);

/* Whether one of our functions has this whole name; or else this name and perhaps a variant's ending (_v2, _ptsz). */
bool gs_is_name_of_ours(const char *name, bool whole);

#endif
