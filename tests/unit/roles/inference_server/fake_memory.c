/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A FAKE libcuda.so.1 for staged weights: no GPU is behind it. Physical "GPU memory" is a memfd, so it can really be handed
 * to another process; "device addresses" are addresses of this one. As under the
 * real driver, an access where nothing is mapped ends the process, and a copy from memory that is not pinned is refused.
 *
 * Environment:
 *   GPUCKPT_FAKE_UUID    32 hexadecimal digits: the UUID of the only GPU
 *   GPUCKPT_FAKE_REFUSE  name of a call that fails with 719
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define OK 0
#define INVALID 1
#define NO_CONTEXT 201
#define REFUSED 719
#define MAX_PINNED 64
#define CONTEXT ((void *)0xc0ffee)

static struct {
	uintptr_t start;
	size_t size;
} pinned[MAX_PINNED];
static size_t stack_bytes = 1024;
static _Thread_local void *current;

#define ENTER(name)                                                                                                    \
	do {                                                                                                           \
		const char *refused = getenv("GPUCKPT_FAKE_REFUSE");                                                   \
		if (refused && !strcmp(refused, name))                                                                 \
			return REFUSED;                                                                                \
	} while (0)

int cuGetErrorName(int status, const char **name)
{
	*name = status == REFUSED ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR_OF_THE_FAKE";
	return OK;
}

int cuInit(unsigned int flags)
{
	ENTER("cuInit");
	return flags;
}

int cuDeviceGetCount(int *count)
{
	*count = 1;
	return OK;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device)
{
	const char *text = getenv("GPUCKPT_FAKE_UUID");

	if (device || !text)
		return INVALID;
	for (int n = 0; n < 16; n++)
		if (sscanf(text + 2 * n, "%2hhx", &uuid[n]) != 1)
			return INVALID;
	return OK;
}

int cuDevicePrimaryCtxRetain(void **context, int device)
{
	ENTER("cuDevicePrimaryCtxRetain");
	*context = CONTEXT;
	return device;
}

int cuCtxSetCurrent(void *context)
{
	current = context;
	return OK;
}

int cuCtxGetCurrent(void **context)
{
	*context = current;
	return OK;
}

int cuCtxGetDevice(int *device)
{
	*device = 0;
	return current ? OK : NO_CONTEXT;
}

int cuCtxGetLimit(size_t *value, int which)
{
	*value = stack_bytes;
	return which || !current ? INVALID : OK;
}

int cuCtxSetLimit(int which, size_t value)
{
	ENTER("cuCtxSetLimit");
	stack_bytes = value;
	return which || !current ? INVALID : OK;
}

int cuStreamCreate(void **stream, unsigned int flags)
{
	*stream = (void *)1;
	return current && flags == 1 ? OK : INVALID;
}

int cuStreamSynchronize(void *stream)
{
	return stream ? OK : INVALID;
}

int cuMemHostRegister_v2(void *address, size_t size, unsigned int flags)
{
	for (int n = 0; n < MAX_PINNED; n++)
		if (!pinned[n].size) {
			pinned[n].start = (uintptr_t)address;
			pinned[n].size = size;
			return flags;
		}
	return INVALID;
}

int cuMemHostUnregister(void *address)
{
	for (int n = 0; n < MAX_PINNED; n++)
		if (pinned[n].size && pinned[n].start == (uintptr_t)address) {
			pinned[n].size = 0;
			return OK;
		}
	return INVALID;
}

static bool is_pinned(const void *address, size_t size)
{
	uintptr_t start = (uintptr_t)address;

	for (int n = 0; n < MAX_PINNED; n++)
		if (start >= pinned[n].start && start + size <= pinned[n].start + pinned[n].size)
			return true;
	return false;
}

/* How many ranges are pinned: for tests, no call of the driver's. */
int fake_pinned(void)
{
	int count = 0;

	for (int n = 0; n < MAX_PINNED; n++)
		count += pinned[n].size > 0;
	return count;
}

int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size)
{
	ENTER("cuMemcpyHtoD_v2");
	memcpy((void *)to, from, size);
	return current ? OK : NO_CONTEXT;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream)
{
	ENTER("cuMemcpyHtoDAsync_v2");
	if (!current || !stream || !is_pinned(from, size))
		return INVALID;
	memcpy((void *)to, from, size);
	return OK;
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream)
{
	if (!current || !stream || !is_pinned(to, size))
		return INVALID;
	memcpy(to, (void *)from, size);
	return OK;
}

int cuMemGetAllocationGranularity(size_t *size, const void *properties, int which)
{
	*size = 4096;
	return properties && !which ? OK : INVALID;
}

int cuMemsetD8_v2(uint64_t pointer, unsigned char value, size_t size)
{
	ENTER("cuMemsetD8_v2");
	memset((void *)pointer, value, size);
	return current ? OK : NO_CONTEXT;
}

int cuCtxSynchronize(void)
{
	return current ? OK : NO_CONTEXT;
}

int cuMemCreate(uint64_t *handle, size_t size, const void *properties, uint64_t flags)
{
	int fd = memfd_create("fake GPU memory", 0);

	ENTER("cuMemCreate");
	if (!properties || flags || fd < 0 || ftruncate(fd, size))
		return INVALID;
	*handle = fd;
	return OK;
}

int cuMemRelease(uint64_t handle)
{
	return close(handle) ? INVALID : OK;
}

int cuMemAddressReserve(uint64_t *pointer, size_t size, size_t alignment, uint64_t address, uint64_t flags)
{
	void *range = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	*pointer = (uint64_t)range;
	return range == MAP_FAILED || alignment || address || flags ? INVALID : OK;
}

/* Usable only after cuMemSetAccess, as with the driver. */
int cuMemMap(uint64_t pointer, size_t size, size_t offset, uint64_t handle, uint64_t flags)
{
	ENTER("cuMemMap");
	if (offset || flags)
		return INVALID;
	return mmap((void *)pointer, size, PROT_NONE, MAP_SHARED | MAP_FIXED, handle, 0) == MAP_FAILED ? INVALID : OK;
}

int cuMemSetAccess(uint64_t pointer, size_t size, const int *access, size_t count)
{
	/* location {type device, id 0}, read and write */
	if (count != 1 || access[0] != 1 || access[1] != 0 || access[2] != 3)
		return INVALID;
	return mprotect((void *)pointer, size, PROT_READ | PROT_WRITE) ? INVALID : OK;
}

int cuMemUnmap(uint64_t pointer, size_t size)
{
	void *range = (void *)pointer;

	return mmap(range, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == range ? OK : INVALID;
}

int cuMemExportToShareableHandle(int *descriptor, uint64_t handle, int type, uint64_t flags)
{
	ENTER("cuMemExportToShareableHandle");
	*descriptor = dup(handle);
	return *descriptor < 0 || type != 1 || flags ? INVALID : OK;
}

int cuMemImportFromShareableHandle(uint64_t *handle, void *descriptor, int type)
{
	int fd = dup((int)(uintptr_t)descriptor);

	ENTER("cuMemImportFromShareableHandle");
	*handle = fd;
	return fd < 0 || type != 1 ? INVALID : OK;
}
