/* SPDX-License-Identifier: GPL-2.0-only */
#include "gpuckpt_cuda_driver.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct symbol {
	const char *name;
	size_t offset; /* of the pointer in struct gc_driver */
};

#define SYMBOL(_name, _member)                                                                                         \
	{                                                                                                              \
		.name = _name, .offset = offsetof(struct gc_driver, _member)                                           \
	}

static const struct symbol common_symbols[] = {
	SYMBOL("cuInit", init),
	SYMBOL("cuDriverGetVersion", driver_get_version),
	SYMBOL("cuGetErrorName", get_error_name),
	{},
};

static const struct symbol checkpoint_symbols[] = {
	SYMBOL("cuCheckpointProcessGetRestoreThreadId", get_restore_tid),
	SYMBOL("cuCheckpointProcessGetState", get_state),
	SYMBOL("cuCheckpointProcessLock", lock),
	SYMBOL("cuCheckpointProcessCheckpoint", checkpoint),
	SYMBOL("cuCheckpointProcessRestore", restore),
	SYMBOL("cuCheckpointProcessUnlock", unlock),
	{},
};

static const struct symbol context_symbols[] = {
	SYMBOL("cuDeviceGetCount", device_get_count),
	SYMBOL("cuDeviceGet", device_get),
	SYMBOL("cuDevicePrimaryCtxRetain", primary_ctx_retain),
	SYMBOL("cuDevicePrimaryCtxRelease_v2", primary_ctx_release),
	{},
};

/* The name of the first symbol that the library lacks, or NULL. */
static const char *resolve(struct gc_driver *driver, const struct symbol *symbols)
{
	for (; symbols->name; symbols++) {
		void *address = dlsym(driver->handle, symbols->name);

		if (!address)
			return symbols->name;
		memcpy((char *)driver + symbols->offset, &address, sizeof(address));
	}
	return NULL;
}

int gc_driver_open(struct gc_driver *driver, enum gc_driver_use use, char *why, size_t why_size)
{
	const char *path = getenv("GPUCKPT_LIBCUDA");
	const char *missing;

	memset(driver, 0, sizeof(*driver));
	if (!path || !*path)
		path = "libcuda.so.1";

	/* Lazily bound and never closed: the library is large, and its own threads may outlive us. */
	driver->handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
	if (!driver->handle) {
		snprintf(why, why_size, "cannot open the NVIDIA driver library: %s", dlerror());
		return -1;
	}

	missing = resolve(driver, common_symbols);
	if (!missing)
		missing = resolve(driver, use == CUDA_DRIVER_FOR_CHECKPOINT ? checkpoint_symbols : context_symbols);
	if (missing) {
		snprintf(why, why_size, "%s has no %s%s", path, missing,
			 use == CUDA_DRIVER_FOR_CHECKPOINT ? " (needs driver 570 or newer)" : "");
		dlclose(driver->handle);
		driver->handle = NULL;
		return -1;
	}

	if (driver->driver_get_version(&driver->version) != CUDA_SUCCESS)
		driver->version = 0;
	return 0;
}

const char *gc_driver_error(const struct gc_driver *driver, CUresult result)
{
	const char *name = NULL;

	if (driver->get_error_name(result, &name) != CUDA_SUCCESS || !name)
		return "CUDA_ERROR_UNKNOWN";
	return name;
}

bool gc_driver_unreachable(CUresult result)
{
	switch (result) {
	case CUDA_ERROR_STUB_LIBRARY:
	case CUDA_ERROR_NO_DEVICE:
	case CUDA_ERROR_NOT_PERMITTED:
	case CUDA_ERROR_NOT_SUPPORTED:
	case CUDA_ERROR_SYSTEM_NOT_READY:
	case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
	case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
		return true;
	default:
		return false;
	}
}

const char *gc_state_name(CUprocessState state)
{
	static const char *const names[] = {"running", "locked", "checkpointed", "failed"};

	return (unsigned int)state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown";
}

CUresult gc_driver_lock(const struct gc_driver *driver, pid_t pid, unsigned int timeout_ms)
{
	CUcheckpointLockArgs args = {.timeoutMs = timeout_ms};

	return driver->lock(pid, &args);
}

CUresult gc_driver_checkpoint(const struct gc_driver *driver, pid_t pid)
{
	CUcheckpointCheckpointArgs args = {};

	return driver->checkpoint(pid, &args);
}

CUresult gc_driver_restore(const struct gc_driver *driver, pid_t pid, const struct gc_device_map *map)
{
	CUcheckpointRestoreArgs args = {};
	CUresult result;

	if (map && map->count) {
		args.gpuPairs = (CUcheckpointGpuPair *)map->pairs;
		args.gpuPairsCount = map->count;
	}

	result = driver->restore(pid, &args);
	/* Without persistence mode somebody must hold the GPU: then it is us, for as long as this process lives. */
	if (result == CUDA_ERROR_NOT_INITIALIZED && driver->init(0) == CUDA_SUCCESS)
		result = driver->restore(pid, &args);
	return result;
}

CUresult gc_driver_unlock(const struct gc_driver *driver, pid_t pid)
{
	CUcheckpointUnlockArgs args = {};

	return driver->unlock(pid, &args);
}

static int hex_digit(char c)
{
	if (!isxdigit((unsigned char)c))
		return -1;
	return isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10;
}

/* Reads one UUID and returns what follows it, or NULL. */
static const char *parse_uuid(const char *text, CUuuid *uuid)
{
	size_t n;

	if (!strncmp(text, "GPU-", 4))
		text += 4;

	for (n = 0; n < sizeof(uuid->bytes); n++) {
		int high, low;

		/* The four dashes of 8-4-4-4-12 digits. */
		if ((n == 4 || n == 6 || n == 8 || n == 10) && *text++ != '-')
			return NULL;
		high = hex_digit(text[0]);
		low = high < 0 ? -1 : hex_digit(text[1]);
		if (low < 0)
			return NULL;
		uuid->bytes[n] = high << 4 | low;
		text += 2;
	}
	return text;
}

int gc_device_map_parse(const char *text, struct gc_device_map *map, char *why, size_t why_size)
{
	const char *rest = text;

	map->count = 0;
	for (;;) {
		CUcheckpointGpuPair *pair = &map->pairs[map->count];

		if (map->count == CUDA_DEVICE_MAP_MAX) {
			snprintf(why, why_size, "the device map names more than %d GPUs", CUDA_DEVICE_MAP_MAX);
			return -1;
		}
		rest = parse_uuid(rest, &pair->oldUuid);
		if (rest && *rest == '=')
			rest = parse_uuid(rest + 1, &pair->newUuid);
		else
			rest = NULL;
		if (!rest || (*rest && *rest != ',')) {
			snprintf(why, why_size,
				 "device map '%s' is not of the form OLDUUID=NEWUUID,... (UUIDs as nvidia-smi -L "
				 "prints them)",
				 text);
			return -1;
		}
		map->count++;
		if (!*rest)
			return 0;
		rest++;
	}
}

int gc_device_map_supported(const struct gc_driver *driver, char *why, size_t why_size)
{
	if (driver->version >= CUDA_VERSION_GPU_PAIRS)
		return 0;
	snprintf(why, why_size, "a device map needs driver 580 or newer (CUDA 13.0), this one has CUDA %d.%d",
		 driver->version / 1000, driver->version % 1000 / 10);
	return -1;
}
