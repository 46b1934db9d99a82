/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "regions.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

#define MAX_DEVICES 64
#define MAX_CONTEXTS 256

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct gs_region *regions;
static size_t nr_regions, room;
/* What the program freed during a capture. Nothing may wait for the GPU then, so it is unmapped after it. */
static struct gs_region *waiting;
static size_t nr_waiting, waiting_room;
/* A bit for each GPU that may use the memory of a GPU, besides itself */
static uint64_t readers[MAX_DEVICES];

atomic_int gs_captures;

/* Contexts whose work may use a region */
static pthread_mutex_t contexts_lock = PTHREAD_MUTEX_INITIALIZER;
static CUcontext contexts[MAX_CONTEXTS];
static size_t nr_contexts;

static bool make_room(struct gs_region **list, size_t count, size_t *list_room)
{
	size_t wanted = *list_room ? *list_room * 2 : 64;
	struct gs_region *grown;

	if (count < *list_room)
		return true;
	grown = realloc(*list, wanted * sizeof(*grown));
	if (!grown)
		return false;
	*list = grown;
	*list_room = wanted;
	return true;
}

/* The index of the first region that begins behind an address. */
static size_t index_behind(CUdeviceptr address)
{
	size_t low = 0, high = nr_regions;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (regions[middle].address <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static struct gs_region *region_at(CUdeviceptr address)
{
	size_t behind = index_behind(address);

	return behind && regions[behind - 1].address == address ? &regions[behind - 1] : NULL;
}

static bool insert(const struct gs_region *region)
{
	size_t at = index_behind(region->address);

	if (!make_room(&regions, nr_regions, &room))
		return false;
	memmove(&regions[at + 1], &regions[at], (nr_regions - at) * sizeof(*regions));
	regions[at] = *region;
	nr_regions++;
	return true;
}

static void remove_region(struct gs_region *region)
{
	size_t at = region - regions;

	nr_regions--;
	memmove(region, region + 1, (nr_regions - at) * sizeof(*regions));
}

/* --- physical memory --- */

static CUmemAllocationProp properties_of(CUdevice device)
{
	CUmemAllocationProp properties = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
	};
	int capable = 0;

	/* As the driver's own allocations are: network cards may read them. */
	if (gs_driver()->cuDeviceGetAttribute(&capable, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
					      device) == CUDA_SUCCESS)
		properties.allocFlags.gpuDirectRDMACapable = !!capable;
	return properties;
}

static CUresult allow(const struct gs_region *region)
{
	CUmemAccessDesc access[MAX_DEVICES];
	size_t count = 0;

	for (int device = 0; device < MAX_DEVICES; device++)
		if (device == region->device || readers[region->device] >> device & 1)
			access[count++] = (CUmemAccessDesc){
				.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
				.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
			};
	return gs_driver()->cuMemSetAccess(region->address, region->mapped, access, count);
}

CUresult gs_region_take(struct gs_region *region)
{
	CUresult result = gs_driver()->cuMemUnmap(region->address, region->mapped);

	if (result != CUDA_SUCCESS)
		return result;
	region->present = false;
	return gs_driver()->cuMemRelease(region->handle);
}

CUresult gs_region_put(struct gs_region *region)
{
	const struct gs_driver *real = gs_driver();
	CUmemAllocationProp properties = properties_of(region->device);
	CUresult result = real->cuMemCreate(&region->handle, region->mapped, &properties, 0);

	if (result != CUDA_SUCCESS)
		return result;
	result = real->cuMemMap(region->address, region->mapped, 0, region->handle, 0);
	if (result != CUDA_SUCCESS) {
		real->cuMemRelease(region->handle);
		return result;
	}
	region->present = true;
	result = allow(region);
	if (result != CUDA_SUCCESS)
		gs_region_take(region);
	return result;
}

/* --- contexts --- */

static bool note_context(CUcontext context)
{
	bool is_known = false;

	pthread_mutex_lock(&contexts_lock);
	for (size_t n = 0; n < nr_contexts; n++)
		is_known = is_known || contexts[n] == context;
	if (!is_known && nr_contexts < MAX_CONTEXTS) {
		contexts[nr_contexts++] = context;
		is_known = true;
	}
	pthread_mutex_unlock(&contexts_lock);
	return is_known;
}

static void forget_context(CUcontext context)
{
	pthread_mutex_lock(&contexts_lock);
	for (size_t n = nr_contexts; n-- > 0;)
		if (contexts[n] == context)
			contexts[n] = contexts[--nr_contexts];
	pthread_mutex_unlock(&contexts_lock);
}

/* Waits for a context. The calling thread keeps its own. */
static CUresult synchronize(CUcontext context)
{
	const struct gs_driver *real = gs_driver();
	CUresult result = real->cuCtxPushCurrent_v2(context);
	CUcontext popped;

	if (result != CUDA_SUCCESS)
		return result;
	result = real->cuCtxSynchronize();
	real->cuCtxPopCurrent_v2(&popped);
	return result;
}

CUresult gs_regions_synchronize(void)
{
	CUcontext known[MAX_CONTEXTS];
	CUresult result = CUDA_SUCCESS;
	size_t count;

	pthread_mutex_lock(&contexts_lock);
	count = nr_contexts;
	memcpy(known, contexts, count * sizeof(*known));
	pthread_mutex_unlock(&contexts_lock);
	for (size_t n = 0; n < count && result == CUDA_SUCCESS; n++)
		result = synchronize(known[n]);
	return result;
}

/* --- what the program asks for --- */

static CUresult granularity_of(CUdevice device, size_t *bytes)
{
	static size_t known[MAX_DEVICES];
	CUmemAllocationProp properties;
	CUresult result;
	int capable = 0;

	if (device < 0 || device >= MAX_DEVICES)
		return CUDA_ERROR_NOT_SUPPORTED;
	*bytes = __atomic_load_n(&known[device], __ATOMIC_RELAXED);
	if (*bytes)
		return CUDA_SUCCESS;
	result = gs_driver()->cuDeviceGetAttribute(&capable, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
						   device);
	if (result != CUDA_SUCCESS || !capable)
		return result ?: CUDA_ERROR_NOT_SUPPORTED;
	properties = properties_of(device);
	result = gs_driver()->cuMemGetAllocationGranularity(bytes, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
	if (result == CUDA_SUCCESS)
		__atomic_store_n(&known[device], *bytes, __ATOMIC_RELAXED);
	return result;
}

static CUresult give_back(struct gs_region *region)
{
	/* Other GPUs may still read it. */
	CUresult result = readers[region->device] ? gs_regions_synchronize() : synchronize(region->context);

	if (result != CUDA_SUCCESS)
		return result;
	result = gs_region_take(region);
	return result ?: gs_driver()->cuMemAddressFree(region->address, region->mapped);
}

static bool being_captured(void)
{
	return atomic_load(&gs_captures) > 0;
}

static void give_back_waiting(void)
{
	if (being_captured())
		return;
	for (size_t n = 0; n < nr_waiting; n++)
		give_back(&waiting[n]);
	nr_waiting = 0;
}

CUresult gs_region_create(size_t bytes, CUdeviceptr *address)
{
	const struct gs_driver *real = gs_driver();
	struct gs_region region = {.bytes = bytes};
	size_t granularity;
	CUresult result = real->cuCtxGetCurrent(&region.context) ?: real->cuCtxGetDevice(&region.device);

	result = result ?: granularity_of(region.device, &granularity);
	if (result != CUDA_SUCCESS)
		return result;
	region.mapped = (bytes + granularity - 1) / granularity * granularity;
	if (region.mapped < bytes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	result = real->cuMemAddressReserve(&region.address, region.mapped, 0, 0, 0);
	if (result != CUDA_SUCCESS)
		return result;

	pthread_mutex_lock(&lock);
	give_back_waiting();
	result = gs_region_put(&region);
	if (result == CUDA_SUCCESS && (!note_context(region.context) || !insert(&region))) {
		gs_region_take(&region);
		result = CUDA_ERROR_OUT_OF_MEMORY;
	}
	pthread_mutex_unlock(&lock);

	if (result != CUDA_SUCCESS)
		real->cuMemAddressFree(region.address, region.mapped);
	else
		*address = region.address;
	return result;
}

bool gs_region_free(CUdeviceptr address, CUresult *result)
{
	struct gs_region *region, gone;

	pthread_mutex_lock(&lock);
	region = region_at(address);
	if (!region) {
		pthread_mutex_unlock(&lock);
		return false;
	}
	gone = *region;
	if (!being_captured()) {
		remove_region(region);
		give_back_waiting();
		pthread_mutex_unlock(&lock);
		*result = give_back(&gone);
		return true;
	}
	*result = make_room(&waiting, nr_waiting, &waiting_room) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
	if (*result == CUDA_SUCCESS) {
		remove_region(region);
		waiting[nr_waiting++] = gone;
	}
	pthread_mutex_unlock(&lock);
	return true;
}

void gs_regions_settle(void)
{
	pthread_mutex_lock(&lock);
	give_back_waiting();
	pthread_mutex_unlock(&lock);
}

bool gs_region_around(CUdeviceptr address, struct gs_region *found)
{
	size_t behind;
	bool inside;

	pthread_mutex_lock(&lock);
	behind = index_behind(address);
	inside = behind && address - regions[behind - 1].address < regions[behind - 1].bytes;
	if (inside)
		*found = regions[behind - 1];
	pthread_mutex_unlock(&lock);
	return inside;
}

bool gs_region_set_dropped(CUdeviceptr address, bool dropped)
{
	struct gs_region *region;

	pthread_mutex_lock(&lock);
	region = region_at(address);
	if (region)
		region->dropped = dropped;
	pthread_mutex_unlock(&lock);
	return region;
}

void gs_regions_forget(CUcontext context)
{
	pthread_mutex_lock(&lock);
	forget_context(context);
	for (size_t n = nr_regions; n-- > 0;) {
		struct gs_region gone = regions[n];

		if (gone.context != context)
			continue;
		remove_region(&regions[n]);
		gs_region_take(&gone);
		gs_driver()->cuMemAddressFree(gone.address, gone.mapped);
	}
	pthread_mutex_unlock(&lock);
}

CUresult gs_regions_share(CUdevice owner, CUdevice reader, CUcontext context)
{
	CUresult result = CUDA_SUCCESS;

	if (owner < 0 || owner >= MAX_DEVICES || reader < 0 || reader >= MAX_DEVICES)
		return CUDA_SUCCESS;
	pthread_mutex_lock(&lock);
	readers[owner] |= 1UL << reader;
	note_context(context);
	for (size_t n = 0; n < nr_regions && result == CUDA_SUCCESS; n++)
		if (regions[n].device == owner)
			result = allow(&regions[n]);
	pthread_mutex_unlock(&lock);
	return result;
}

struct gs_region *gs_regions(size_t *count)
{
	*count = nr_regions;
	return regions;
}

void gs_regions_count(uint64_t *bytes, uint64_t *dropped_bytes)
{
	pthread_mutex_lock(&lock);
	for (size_t n = 0; n < nr_regions; n++) {
		*bytes += regions[n].bytes;
		*dropped_bytes += regions[n].dropped ? regions[n].bytes : 0;
	}
	pthread_mutex_unlock(&lock);
}
