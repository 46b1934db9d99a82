/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ours in the place of the driver's. Memory is given and taken. What programs ask about it is answered as the driver
 * would for its own. Everything here passes the gate.
 */
#include "entries.h"
#include "gate.h"
#include "regions.h"
#include "service.h"
#include "settings.h"
#include "stage.h"

#define PITCH_BYTES 512 /* what the driver aligns rows to */

static bool is_taken(size_t bytes)
{
	return gs_settings()->on && bytes >= gs_settings()->min_bytes && gs_driver_can_stage();
}

/* What cannot be ours is the driver's: the program notices nothing. */
static bool allocate(size_t bytes, CUdeviceptr *address)
{
	static bool is_told;
	CUresult result;

	if (!is_taken(bytes))
		return false;
	result = gs_region_create(bytes, address);
	if (result == CUDA_SUCCESS)
		gs_service_start();
	else if (result != CUDA_ERROR_OUT_OF_MEMORY && !__atomic_exchange_n(&is_told, true, __ATOMIC_RELAXED))
		gs_say("memory cannot be mapped (%s); the driver keeps what it gives itself", gs_driver_error(result));
	return result == CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes)
{
	CUresult result = CUDA_SUCCESS;

	gs_gate_enter();
	if (!address || !allocate(bytes, address))
		result = gs_driver()->cuMemAlloc_v2(address, bytes);
	gs_gate_leave();
	return result;
}

CUresult cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width, size_t height, unsigned int element)
{
	size_t row = (width + PITCH_BYTES - 1) / PITCH_BYTES * PITCH_BYTES, bytes = 0;
	CUresult result = CUDA_SUCCESS;
	bool is_valid = address && pitch && width && height && row >= width &&
			(element == 4 || element == 8 || element == 16) && !__builtin_mul_overflow(row, height, &bytes);

	gs_gate_enter();
	if (is_valid && allocate(bytes, address))
		*pitch = row;
	else
		result = gs_driver()->cuMemAllocPitch_v2(address, pitch, width, height, element);
	gs_gate_leave();
	return result;
}

CUresult cuMemFree_v2(CUdeviceptr address)
{
	CUresult result;

	gs_gate_enter();
	if (!gs_region_free(address, &result))
		result = gs_driver()->cuMemFree_v2(address);
	gs_gate_leave();
	return result;
}

/* Waits for all work, where the driver's own would only wait for that of the stream. */
#define FREE_ASYNC(_name)                                                                                              \
	CUresult _name(CUdeviceptr address, CUstream stream)                                                           \
	{                                                                                                              \
		CUresult result;                                                                                       \
                                                                                                                       \
		gs_gate_enter();                                                                                       \
		if (!gs_region_free(address, &result))                                                                 \
			result = gs_driver()->_name(address, stream);                                                  \
		gs_gate_leave();                                                                                       \
		return result;                                                                                         \
	}

FREE_ASYNC(cuMemFreeAsync)
FREE_ASYNC(cuMemFreeAsync_ptsz)

/* --- what programs ask --- */

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr address)
{
	CUresult result = CUDA_SUCCESS;
	struct gs_region region;

	gs_gate_enter();
	if (gs_region_around(address, &region)) {
		if (base)
			*base = region.address;
		if (bytes)
			*bytes = region.bytes;
	} else {
		result = gs_driver()->cuMemGetAddressRange_v2(base, bytes, address);
	}
	gs_gate_leave();
	return result;
}

/* What the driver would not say of mapped memory, or would say of what is mapped and not of what was asked for. */
static bool answer_attribute(void *value, int attribute, const struct gs_region *region)
{
	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		*(CUcontext *)value = region->context;
		return true;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		*(CUdeviceptr *)value = region->address;
		return true;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		*(size_t *)value = region->bytes;
		return true;
	default:
		return false;
	}
}

CUresult cuPointerGetAttribute(void *value, int attribute, CUdeviceptr address)
{
	CUresult result = CUDA_SUCCESS;
	struct gs_region region;

	gs_gate_enter();
	if (!value || !gs_region_around(address, &region) || !answer_attribute(value, attribute, &region))
		result = gs_driver()->cuPointerGetAttribute(value, attribute, address);
	gs_gate_leave();
	return result;
}

CUresult cuPointerGetAttributes(unsigned int count, const int *attributes, void **values, CUdeviceptr address)
{
	struct gs_region region;
	CUresult result;

	gs_gate_enter();
	result = gs_driver()->cuPointerGetAttributes(count, attributes, values, address);
	if (result == CUDA_SUCCESS && gs_region_around(address, &region))
		for (unsigned int n = 0; n < count; n++)
			answer_attribute(values[n], attributes[n], &region);
	gs_gate_leave();
	return result;
}

/* CUDA IPC shares only what the driver allocated itself, and a program that uses it cannot be checkpointed anyway. */
CUresult cuIpcGetMemHandle(void *handle, CUdeviceptr address)
{
	static bool is_told;
	struct gs_region region;
	CUresult result;

	gs_gate_enter();
	if (!gs_region_around(address, &region)) {
		result = gs_driver()->cuIpcGetMemHandle(handle, address);
	} else {
		result = CUDA_ERROR_NOT_SUPPORTED;
		if (!__atomic_exchange_n(&is_told, true, __ATOMIC_RELAXED))
			gs_say("memory that is staged cannot be shared by CUDA IPC; start the program with "
			       "GPUCKPT_STAGING=0");
	}
	gs_gate_leave();
	return result;
}

/* --- GPUs that read one another --- */

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags)
{
	const struct gs_driver *real = gs_driver();
	CUdevice owner, reader;
	CUcontext own, popped;
	CUresult result;

	gs_gate_enter();
	result = real->cuCtxEnablePeerAccess(peer, flags);
	if (result == CUDA_SUCCESS && real->cuCtxGetCurrent(&own) == CUDA_SUCCESS &&
	    real->cuCtxGetDevice(&reader) == CUDA_SUCCESS && real->cuCtxPushCurrent_v2(peer) == CUDA_SUCCESS) {
		if (real->cuCtxGetDevice(&owner) == CUDA_SUCCESS)
			result = gs_regions_share(owner, reader, own);
		real->cuCtxPopCurrent_v2(&popped);
	}
	gs_gate_leave();
	return result;
}

/* --- contexts end, and their memory with them --- */

CUresult cuCtxDestroy_v2(CUcontext context)
{
	CUresult result;

	gs_gate_enter();
	result = gs_driver()->cuCtxDestroy_v2(context);
	if (result == CUDA_SUCCESS)
		gs_regions_forget(context);
	gs_gate_leave();
	return result;
}

/* The primary context of a GPU, or NULL where there is none. */
static CUcontext primary_of(CUdevice device)
{
	const struct gs_driver *real = gs_driver();
	CUcontext context = NULL;
	unsigned int flags;
	int active = 0;

	if (real->cuDevicePrimaryCtxGetState(device, &flags, &active) != CUDA_SUCCESS || !active ||
	    real->cuDevicePrimaryCtxRetain(&context, device) != CUDA_SUCCESS)
		return NULL;
	real->cuDevicePrimaryCtxRelease_v2(device);
	return context;
}

/* Ends the primary context with a call of the driver, or lets go of it: then others may hold it still. */
static CUresult end_primary(CUdevice device, CUresult (*end)(CUdevice))
{
	CUcontext before;
	CUresult result;

	gs_gate_enter();
	before = primary_of(device);
	result = end(device);
	if (result == CUDA_SUCCESS && before && !primary_of(device))
		gs_regions_forget(before);
	gs_gate_leave();
	return result;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	return end_primary(device, gs_driver()->cuDevicePrimaryCtxRelease_v2);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	return end_primary(device, gs_driver()->cuDevicePrimaryCtxReset_v2);
}

/* --- what a program that knows of us may say --- */

/* The contents of an allocation need not outlive a checkpoint (1), or must (0). -1 where it is not ours. */
GS_EXPORT int gpuckpt_staging_drop(CUdeviceptr address, int dropped);
int gpuckpt_staging_drop(CUdeviceptr address, int dropped)
{
	bool is_known;

	gs_gate_enter();
	is_known = gs_region_set_dropped(address, dropped);
	gs_gate_leave();
	return is_known ? 0 : -1;
}
