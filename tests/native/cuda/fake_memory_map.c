/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Memory of the fake GPUs: physical memory, addresses, and what the driver says about them. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_libcuda.h"

#define GRANULARITY (2UL << 20)
#define OFFSET_BITS 40
#define CONTEXT_BYTES (512UL << 20)
#define PITCH_BYTES 512
#define MEMORY_TYPE_DEVICE 2
#define POSIX_FILE 1
#define MAX_REGISTERED 256
#define POOL_RELEASE_THRESHOLD 4

pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;

/* --- files --- */

static const char *fake_folder(void)
{
	return block && block->folder[0] ? block->folder : getenv("GPUCKPT_FAKE_DIR");
}

/* Of the first GPU without its number, so that tests of one GPU need not know it. */
static void numbered_path(char *path, size_t size, const char *what, CUdevice device)
{
	int length = snprintf(path, size, "%s/%s", fake_folder(), what);

	if (device)
		snprintf(path + length, size - length, ".%d", device);
}

static void allocation_path(char *path, size_t size, int index)
{
	char name[64];

	snprintf(name, sizeof(name), "memory.%d.%d", block->pid, index);
	numbered_path(path, size, name, block->allocations[index].device);
}

void context_path(char *path, size_t size, CUdevice device)
{
	char name[64];

	snprintf(name, sizeof(name), "context.%d", getpid());
	numbered_path(path, size, name, device);
}

/* What one file means: whose, on which GPU, and how much it takes. */
static uint64_t bytes_of(const char *name, const struct stat *file, int *pid, int *device)
{
	int index;

	*device = 0;
	if (sscanf(name, "context.%d.%d", pid, device) >= 1)
		return CONTEXT_BYTES;
	/* Memory that is shared has a name of each of its owners. */
	if (sscanf(name, "memory.%d.%d.%d", pid, &index, device) >= 2)
		return file->st_size / (file->st_nlink ?: 1);
	*pid = 0;
	return 0;
}

/* The real driver frees the memory of the dead, so do we. */
uint64_t used_bytes(CUdevice device)
{
	const char *folder = fake_folder();
	DIR *files = folder ? opendir(folder) : NULL;
	struct dirent *entry;
	uint64_t used = 0, bytes;
	char path[800];
	struct stat file;
	int pid, where;

	while (files && (entry = readdir(files))) {
		snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
		if (stat(path, &file))
			continue;
		bytes = bytes_of(entry->d_name, &file, &pid, &where);
		if (pid && kill(pid, 0) && errno == ESRCH)
			unlink(path);
		else if (pid && where == device)
			used += bytes;
	}
	if (files)
		closedir(files);
	return used;
}

uint64_t total_bytes(void)
{
	const char *text = getenv("GPUCKPT_FAKE_TOTAL_MB");

	return block ? block->total_bytes : (text ? strtoull(text, NULL, 10) : 8192) << 20;
}

static bool transfer(int index, void *memory, uint64_t offset, size_t bytes, bool to_gpu)
{
	char path[700];
	ssize_t done = -1;
	int fd;

	allocation_path(path, sizeof(path), index);
	fd = open(path, to_gpu ? O_WRONLY | O_CREAT | O_CLOEXEC : O_RDONLY | O_CLOEXEC, 0600);
	if (fd >= 0) {
		done = to_gpu ? pwrite(fd, memory, bytes, offset) : pread(fd, memory, bytes, offset);
		close(fd);
	}
	return done == (ssize_t)bytes;
}

/* --- checkpoint and restore --- */

static CUresult park_one(int index)
{
	struct allocation *allocation = &block->allocations[index];
	struct stat file;
	char path[700];

	allocation->parked = mmap(NULL, allocation->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (allocation->parked == MAP_FAILED || !transfer(index, allocation->parked, 0, allocation->bytes, false))
		return CUDA_ERROR_OUT_OF_MEMORY;
	allocation_path(path, sizeof(path), index);
	if (!stat(path, &file) && file.st_nlink > 1)
		allocation->is_shared = true;
	unlink(path);
	return CUDA_SUCCESS;
}

static CUresult unpark_one(int index)
{
	struct allocation *allocation = &block->allocations[index];

	if (allocation->is_shared)
		return CUDA_ERROR_NOT_SUPPORTED;
	if (used_bytes(allocation->device) + allocation->bytes > block->total_bytes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (!transfer(index, allocation->parked, 0, allocation->bytes, true))
		return CUDA_ERROR_OPERATING_SYSTEM;
	munmap(allocation->parked, allocation->bytes);
	allocation->parked = NULL;
	return CUDA_SUCCESS;
}

CUresult park_all(void)
{
	CUresult result = CUDA_SUCCESS;

	for (int n = 0; n < MAX_ALLOCATIONS && result == CUDA_SUCCESS; n++)
		if (block->allocations[n].bytes && !block->allocations[n].parked)
			result = park_one(n);
	return result;
}

CUresult unpark_all(void)
{
	CUresult result = CUDA_SUCCESS;

	for (int n = 0; n < MAX_ALLOCATIONS && result == CUDA_SUCCESS; n++)
		if (block->allocations[n].bytes && block->allocations[n].parked)
			result = unpark_one(n);
	return result;
}

/* --- physical memory --- */

static CUresult make_allocation(uint64_t bytes, CUdevice device, int kind, int *index)
{
	struct allocation *allocation;
	char path[700];
	int n = 0, fd;
	bool grown;

	while (n < MAX_ALLOCATIONS && block->allocations[n].bytes)
		n++;
	if (n == MAX_ALLOCATIONS || used_bytes(device) + bytes > block->total_bytes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	allocation = &block->allocations[n];
	*allocation = (struct allocation){
		.generation = allocation->generation + 1,
		.handles = 1,
		.device = device,
		.kind = kind,
	};
	allocation_path(path, sizeof(path), n);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	grown = !ftruncate(fd, bytes);
	close(fd);
	if (!grown)
		return CUDA_ERROR_OPERATING_SYSTEM;
	allocation->bytes = bytes;
	*index = n;
	return CUDA_SUCCESS;
}

static void release_if_unused(int index)
{
	struct allocation *allocation = &block->allocations[index];
	char path[700];

	if (allocation->handles || allocation->mappings)
		return;
	allocation_path(path, sizeof(path), index);
	unlink(path);
	allocation->bytes = 0;
}

static uint64_t handle_of(int index)
{
	return (uint64_t)block->allocations[index].generation << 32 | (index + 1);
}

/* The allocation that a handle holds, or -1. */
static int behind_handle(uint64_t handle)
{
	int index = (int)(handle & 0xffffffff) - 1;
	bool is_one = index >= 0 && index < MAX_ALLOCATIONS && block->allocations[index].bytes &&
		      block->allocations[index].kind == KIND_PHYSICAL && block->allocations[index].handles &&
		      handle_of(index) == handle;

	return is_one ? index : -1;
}

static bool is_aligned(uint64_t number)
{
	return number && number % GRANULARITY == 0;
}

static bool is_place(const CUmemLocation *location)
{
	return location->type == CU_MEM_LOCATION_TYPE_DEVICE && location->id >= 0 && location->id < gpu_count();
}

EXPORT CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *properties, int option)
{
	CUresult result = enter_call("cuMemGetAllocationGranularity");

	*bytes = GRANULARITY;
	return result
		       ?: (!is_place(&properties->location) || option < 0 || option > 1 ? CUDA_ERROR_INVALID_VALUE
											: CUDA_SUCCESS);
}

EXPORT CUresult cuMemCreate(uint64_t *handle, size_t bytes, const CUmemAllocationProp *properties, uint64_t flags)
{
	CUresult result = enter_call("cuMemCreate");
	int index;

	if (result != CUDA_SUCCESS || !is_aligned(bytes) || flags || !is_place(&properties->location) ||
	    properties->type != CU_MEM_ALLOCATION_TYPE_PINNED || properties->requestedHandleTypes & ~POSIX_FILE)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	begin_change();
	result = make_allocation(bytes, properties->location.id, KIND_PHYSICAL, &index);
	if (result == CUDA_SUCCESS) {
		block->allocations[index].is_exportable = properties->requestedHandleTypes == POSIX_FILE;
		*handle = handle_of(index);
	}
	end_change();
	return result;
}

EXPORT CUresult cuMemRelease(uint64_t handle)
{
	CUresult result = enter_call("cuMemRelease");
	int index;

	if (result != CUDA_SUCCESS)
		return result;
	begin_change();
	index = behind_handle(handle);
	if (index >= 0) {
		block->allocations[index].handles--;
		release_if_unused(index);
	}
	end_change();
	return index < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

EXPORT CUresult cuMemExportToShareableHandle(void *shareable, uint64_t handle, int type, uint64_t flags)
{
	CUresult result = enter_call("cuMemExportToShareableHandle");
	char path[700];
	int index;

	if (result != CUDA_SUCCESS || type != POSIX_FILE || flags)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	begin_change();
	index = behind_handle(handle);
	if (index < 0 || !block->allocations[index].is_exportable) {
		result = CUDA_ERROR_INVALID_VALUE;
	} else {
		allocation_path(path, sizeof(path), index);
		*(int *)shareable = open(path, O_RDWR | O_CLOEXEC);
		result = *(int *)shareable < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
	}
	end_change();
	return result;
}

/* The file gets another name: both processes see the same contents. */
static CUresult import_file(int fd, uint64_t *handle)
{
	char link_path[64], path[700], own_path[700];
	int index, pid, device;
	struct stat file;
	CUresult result;
	ssize_t length;

	snprintf(link_path, sizeof(link_path), "/proc/self/fd/%d", fd);
	length = readlink(link_path, path, sizeof(path) - 1);
	path[length < 0 ? 0 : length] = 0;
	if (length < 0 || fstat(fd, &file) || !bytes_of(strrchr(path, '/') + 1, &file, &pid, &device))
		return CUDA_ERROR_INVALID_VALUE;
	result = make_allocation(file.st_size, device, KIND_PHYSICAL, &index);
	if (result != CUDA_SUCCESS)
		return result;
	allocation_path(own_path, sizeof(own_path), index);
	unlink(own_path);
	if (link(path, own_path)) {
		block->allocations[index].bytes = 0;
		return CUDA_ERROR_OPERATING_SYSTEM;
	}
	block->allocations[index].is_shared = true;
	*handle = handle_of(index);
	return CUDA_SUCCESS;
}

EXPORT CUresult cuMemImportFromShareableHandle(uint64_t *handle, void *shareable, int type)
{
	CUresult result = enter_call("cuMemImportFromShareableHandle");

	if (result != CUDA_SUCCESS || type != POSIX_FILE)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	begin_change();
	result = import_file((int)(uintptr_t)shareable, handle);
	end_change();
	return result;
}

/* --- addresses --- */

/* Of cuMemAlloc: index + 1. Of cuMemAddressReserve: those behind. The offset is below. */
static uint64_t address_of(int index)
{
	return (uint64_t)(index + 1) << OFFSET_BITS;
}

static int index_of(uint64_t address)
{
	return (int)(address >> OFFSET_BITS) - 1;
}

static uint64_t offset_of(uint64_t address)
{
	return address & ((1UL << OFFSET_BITS) - 1);
}

/* Whether a range is aligned and in one reservation. */
static bool is_reserved(uint64_t address, uint64_t bytes)
{
	int index = index_of(address) - MAX_ALLOCATIONS;

	return index >= 0 && index < MAX_RESERVATIONS && is_aligned(bytes) && address % GRANULARITY == 0 &&
	       offset_of(address) + bytes <= block->reserved_bytes[index];
}

static bool overlaps(const struct mapping *mapping, uint64_t address, uint64_t bytes)
{
	return mapping->bytes && address < mapping->address + mapping->bytes && mapping->address < address + bytes;
}

/* Whether mappings fill a range, each of them wholly inside. */
static bool is_mapped_wholly(uint64_t address, uint64_t bytes)
{
	uint64_t mapped = 0;

	for (int n = 0; n < MAX_MAPPINGS; n++) {
		const struct mapping *mapping = &block->mappings[n];

		if (!overlaps(mapping, address, bytes))
			continue;
		if (mapping->address < address || mapping->address + mapping->bytes > address + bytes)
			return false;
		mapped += mapping->bytes;
	}
	return mapped == bytes;
}

static bool is_mapped_anywhere(uint64_t address, uint64_t bytes)
{
	for (int n = 0; n < MAX_MAPPINGS; n++)
		if (overlaps(&block->mappings[n], address, bytes))
			return true;
	return false;
}

EXPORT CUresult cuMemAddressReserve(uint64_t *address, size_t bytes, size_t alignment, uint64_t wish, uint64_t flags)
{
	CUresult result = enter_call("cuMemAddressReserve");
	int n = 0;

	(void)wish;
	if (result != CUDA_SUCCESS || !is_aligned(bytes) || flags || (alignment & (alignment - 1)))
		return result ?: CUDA_ERROR_INVALID_VALUE;
	if (bytes > 1UL << OFFSET_BITS)
		return CUDA_ERROR_OUT_OF_MEMORY;
	begin_change();
	while (n < MAX_RESERVATIONS && block->reserved_bytes[n])
		n++;
	if (n < MAX_RESERVATIONS) {
		block->reserved_bytes[n] = bytes;
		*address = address_of(MAX_ALLOCATIONS + n);
	}
	end_change();
	return n < MAX_RESERVATIONS ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuMemAddressFree(uint64_t address, size_t bytes)
{
	CUresult result = enter_call("cuMemAddressFree");

	if (result != CUDA_SUCCESS)
		return result;
	begin_change();
	if (offset_of(address) || !is_reserved(address, bytes) || is_mapped_anywhere(address, bytes) ||
	    block->reserved_bytes[index_of(address) - MAX_ALLOCATIONS] != bytes)
		result = CUDA_ERROR_INVALID_VALUE;
	else
		block->reserved_bytes[index_of(address) - MAX_ALLOCATIONS] = 0;
	end_change();
	return result;
}

static CUresult map(uint64_t address, size_t bytes, int index)
{
	int n = 0;

	while (n < MAX_MAPPINGS && block->mappings[n].bytes)
		n++;
	if (n == MAX_MAPPINGS)
		return CUDA_ERROR_OUT_OF_MEMORY;
	block->mappings[n] = (struct mapping){.address = address, .bytes = bytes, .index = index};
	block->allocations[index].mappings++;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuMemMap(uint64_t address, size_t bytes, size_t offset, uint64_t handle, uint64_t flags)
{
	CUresult result = enter_call("cuMemMap");
	int index;

	if (result != CUDA_SUCCESS || offset || flags)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	begin_change();
	index = behind_handle(handle);
	if (index < 0 || !is_reserved(address, bytes) || is_mapped_anywhere(address, bytes) ||
	    bytes > block->allocations[index].bytes)
		result = CUDA_ERROR_INVALID_VALUE;
	else
		result = map(address, bytes, index);
	end_change();
	return result;
}

static bool bits_of(const CUmemAccessDesc *access, size_t count, uint32_t *given, uint32_t *taken)
{
	*given = *taken = 0;
	for (size_t n = 0; n < count; n++) {
		if (!is_place(&access[n].location) ||
		    (access[n].flags && access[n].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE))
			return false;
		*(access[n].flags ? given : taken) |= 1U << access[n].location.id;
	}
	return count;
}

EXPORT CUresult cuMemSetAccess(uint64_t address, size_t bytes, const CUmemAccessDesc *access, size_t count)
{
	CUresult result = enter_call("cuMemSetAccess");
	uint32_t given, taken;

	if (result != CUDA_SUCCESS || !bits_of(access, count, &given, &taken))
		return result ?: CUDA_ERROR_INVALID_VALUE;
	begin_change();
	if (!is_reserved(address, bytes) || !is_mapped_wholly(address, bytes))
		result = CUDA_ERROR_INVALID_VALUE;
	for (int n = 0; n < MAX_MAPPINGS && result == CUDA_SUCCESS; n++)
		if (overlaps(&block->mappings[n], address, bytes))
			block->mappings[n].devices = (block->mappings[n].devices & ~taken) | given;
	end_change();
	return result;
}

/* Does not wait for work that uses it, as the real one. */
EXPORT CUresult cuMemUnmap(uint64_t address, size_t bytes)
{
	CUresult result = enter_call("cuMemUnmap");

	if (result != CUDA_SUCCESS)
		return result;
	begin_change();
	if (!is_reserved(address, bytes) || !is_mapped_wholly(address, bytes))
		result = CUDA_ERROR_INVALID_VALUE;
	for (int n = 0; n < MAX_MAPPINGS && result == CUDA_SUCCESS; n++) {
		struct mapping *mapping = &block->mappings[n];

		if (!overlaps(mapping, address, bytes))
			continue;
		mapping->bytes = 0;
		block->allocations[mapping->index].mappings--;
		release_if_unused(mapping->index);
	}
	end_change();
	return result;
}

/* --- what lies at an address --- */

/* Memory that is used as one piece. */
struct piece {
	uint64_t start, bytes;    /* its addresses */
	int index;                /* of the allocation; its memory begins at the start */
	const struct mapping *in; /* NULL: an address of cuMemAlloc or cuMemAllocAsync */
};

static bool piece_at(uint64_t address, struct piece *piece)
{
	int index = index_of(address);

	if (index >= MAX_ALLOCATIONS) {
		for (int n = 0; n < MAX_MAPPINGS; n++) {
			const struct mapping *mapping = &block->mappings[n];

			if (!overlaps(mapping, address, 1))
				continue;
			*piece = (struct piece){mapping->address, mapping->bytes, mapping->index, mapping};
			return true;
		}
		return false;
	}
	if (index < 0 || block->allocations[index].kind == KIND_PHYSICAL || block->allocations[index].is_pooled ||
	    offset_of(address) >= block->allocations[index].bytes)
		return false;
	*piece = (struct piece){address_of(index), block->allocations[index].bytes, index, NULL};
	return true;
}

static bool may_use(const struct piece *piece, CUdevice device, bool is_copy)
{
	CUdevice owner = block->allocations[piece->index].device;
	uint32_t users = 1U << device | (is_copy ? 1U << owner : 0);

	if (piece->in)
		return piece->in->devices & users;
	return users & 1U << owner || block->peers[device] & 1U << owner;
}

bool use_memory(uint64_t address, void *memory, size_t bytes, bool to_gpu, CUdevice device, bool is_copy)
{
	struct piece piece;
	size_t part;

	for (size_t done = 0; done < bytes; done += part) {
		uint64_t at = address + done;

		if (!piece_at(at, &piece) || !may_use(&piece, device, is_copy))
			return false;
		part = piece.start + piece.bytes - at;
		part = part < bytes - done ? part : bytes - done;
		if (!transfer(piece.index, (char *)memory + done, at - piece.start, part, to_gpu))
			return false;
	}
	return true;
}

static CUresult look_at_address(uint64_t address, struct piece *piece)
{
	bool is_there;

	begin_change();
	is_there = piece_at(address, piece);
	end_change();
	return is_there ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuMemGetAddressRange_v2(uint64_t *base, size_t *bytes, uint64_t address)
{
	struct piece piece;
	CUresult result = enter_call("cuMemGetAddressRange") ?: look_at_address(address, &piece);

	if (result != CUDA_SUCCESS)
		return result;
	if (base)
		*base = piece.start;
	if (bytes)
		*bytes = piece.bytes;
	return CUDA_SUCCESS;
}

static CUresult tell(void *value, int attribute, uint64_t address, const struct piece *piece)
{
	CUdevice device = block->allocations[piece->index].device;

	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		*(CUcontext *)value = piece->in ? NULL : context_of(device);
		break;
	case 2: /* memory type */
		*(unsigned int *)value = MEMORY_TYPE_DEVICE;
		break;
	case 3: /* address for the GPU */
		*(uint64_t *)value = address;
		break;
	case 8: /* managed */
		*(unsigned int *)value = 0;
		break;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		*(int *)value = device;
		break;
	case 10: /* fit for cuIpcGetMemHandle */
		*(int *)value = !piece->in && block->allocations[piece->index].kind == KIND_OWN;
		break;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		*(uint64_t *)value = piece->start;
		break;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		*(size_t *)value = piece->bytes;
		break;
	case 13: /* mapped */
		*(int *)value = 1;
		break;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

EXPORT CUresult cuPointerGetAttribute(void *value, int attribute, uint64_t address)
{
	struct piece piece;
	CUresult result = enter_call("cuPointerGetAttribute") ?: look_at_address(address, &piece);

	return result ?: tell(value, attribute, address, &piece);
}

/* Knows no wrong address: what is asked of it is zero then. */
EXPORT CUresult cuPointerGetAttributes(unsigned int count, const int *attributes, void **values, uint64_t address)
{
	CUresult result = enter_call("cuPointerGetAttributes");
	struct piece piece;
	bool is_there;

	if (result != CUDA_SUCCESS)
		return result;
	is_there = look_at_address(address, &piece) == CUDA_SUCCESS;
	for (unsigned int n = 0; n < count && result == CUDA_SUCCESS; n++)
		if (is_there)
			result = tell(values[n], attributes[n], address, &piece);
		else
			*(unsigned int *)values[n] = 0;
	return result;
}

EXPORT CUresult cuIpcGetMemHandle(void *handle, uint64_t address)
{
	struct piece piece;
	CUresult result = enter_call("cuIpcGetMemHandle") ?: look_at_address(address, &piece);

	if (result == CUDA_SUCCESS && (piece.in || block->allocations[piece.index].kind != KIND_OWN))
		result = CUDA_ERROR_INVALID_VALUE;
	if (result == CUDA_SUCCESS)
		memset(handle, 0, 64);
	return result;
}

/* --- memory of the driver's own --- */

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
	CUresult result = enter_call("cuMemGetInfo");
	CUdevice device = device_of(current_context());
	uint64_t used;

	begin_change();
	used = used_bytes(device < 0 ? 0 : device);
	end_change();
	*total = total_bytes();
	*free_bytes = used < *total ? *total - used : 0;
	return result;
}

static CUresult allocate(uint64_t *address, size_t bytes, int kind)
{
	CUdevice device = device_of(current_context());
	CUresult result;
	int index;

	if (!address || !bytes)
		return CUDA_ERROR_INVALID_VALUE;
	begin_change();
	result = make_allocation(bytes, device, kind, &index);
	end_change();
	if (result == CUDA_SUCCESS)
		*address = address_of(index);
	return result;
}

EXPORT CUresult cuMemAlloc_v2(uint64_t *address, size_t bytes)
{
	return need_context("cuMemAlloc") ?: allocate(address, bytes, KIND_OWN);
}

EXPORT CUresult cuMemAllocPitch_v2(uint64_t *address, size_t *pitch, size_t width, size_t height, unsigned int element)
{
	CUresult result = need_context("cuMemAllocPitch");

	if (result != CUDA_SUCCESS || !width || !height || (element != 4 && element != 8 && element != 16))
		return result ?: CUDA_ERROR_INVALID_VALUE;
	*pitch = (width + PITCH_BYTES - 1) / PITCH_BYTES * PITCH_BYTES;
	return allocate(address, *pitch * height, KIND_OWN);
}

/* With the memory's lock held: work frees, too. */
bool free_allocation(uint64_t address)
{
	struct piece piece;

	if (!piece_at(address, &piece) || piece.in || piece.start != address)
		return false;
	block->allocations[piece.index].handles = 0;
	if (block->allocations[piece.index].kind == KIND_ORDERED)
		block->allocations[piece.index].is_pooled = true;
	else
		release_if_unused(piece.index);
	return true;
}

EXPORT CUresult cuMemFree_v2(uint64_t address)
{
	CUresult result = enter_call("cuMemFree");
	bool is_freed;

	if (result != CUDA_SUCCESS || !address)
		return result; /* nothing to free is no error */
	drain();
	begin_change();
	is_freed = free_allocation(address);
	end_change();
	return is_freed ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* One that was freed before and has the same size, or a new one. */
static CUresult allocate_ordered(uint64_t *address, size_t bytes)
{
	CUdevice device = device_of(current_context());
	struct allocation *allocation;
	int n = 0;

	begin_change();
	for (; n < MAX_ALLOCATIONS; n++) {
		allocation = &block->allocations[n];
		if (allocation->bytes != bytes || !allocation->is_pooled || allocation->device != device)
			continue;
		allocation->is_pooled = false;
		allocation->handles = 1;
		break;
	}
	end_change();
	if (n == MAX_ALLOCATIONS)
		return allocate(address, bytes, KIND_ORDERED);
	*address = address_of(n);
	return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAllocAsync(uint64_t *address, size_t bytes, CUstream stream)
{
	(void)stream;
	return need_context("cuMemAllocAsync")
		       ?: (address && bytes ? allocate_ordered(address, bytes) : CUDA_ERROR_INVALID_VALUE);
}

EXPORT CUresult cuMemFreeAsync(uint64_t address, CUstream stream)
{
	struct piece piece;
	CUresult result = need_context("cuMemFreeAsync") ?: look_at_address(address, &piece);

	if (result == CUDA_SUCCESS && (piece.in || piece.start != address))
		result = CUDA_ERROR_INVALID_VALUE;
	return result ?: submit_free(address, stream);
}

void release_pooled(CUdevice device, uint64_t bytes_to_keep)
{
	uint64_t kept = 0;

	for (int n = 0; n < MAX_ALLOCATIONS; n++) {
		struct allocation *allocation = &block->allocations[n];

		if (!allocation->bytes || !allocation->is_pooled || allocation->device != device)
			continue;
		kept += allocation->bytes;
		if (kept > bytes_to_keep)
			release_if_unused(n);
	}
}

void forget_memory_of(CUdevice device)
{
	for (int n = 0; n < MAX_ALLOCATIONS; n++)
		if (block->allocations[n].bytes && block->allocations[n].device == device &&
		    block->allocations[n].kind != KIND_PHYSICAL) {
			block->allocations[n].handles = 0;
			release_if_unused(n);
		}
}

/* A pool is an address in the block, that tells the GPU. */
EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device)
{
	CUresult result = enter_call("cuDeviceGetDefaultMemPool");

	*pool = (CUmemoryPool)&block->peers[device];
	return result ?: (device < 0 || device >= gpu_count() ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS);
}

static CUdevice device_of_pool(CUmemoryPool pool)
{
	return (uint32_t *)pool - block->peers;
}

EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void *value)
{
	CUresult result = enter_call("cuMemPoolSetAttribute");

	if (result != CUDA_SUCCESS || attribute != POOL_RELEASE_THRESHOLD)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	begin_change();
	block->pool_keeps[device_of_pool(pool)] = *(uint64_t *)value;
	end_change();
	return CUDA_SUCCESS;
}

EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t bytes_to_keep)
{
	CUresult result = enter_call("cuMemPoolTrimTo");

	if (result != CUDA_SUCCESS)
		return result;
	begin_change();
	release_pooled(device_of_pool(pool), bytes_to_keep);
	end_change();
	return CUDA_SUCCESS;
}

/* --- memory of the host --- */

static void *registered[MAX_REGISTERED];

/* Replaces an entry of the list. False where there is none. */
static bool replace_registered(void *old, void *new)
{
	bool is_there = false;

	pthread_mutex_lock(&memory_lock);
	for (int n = 0; n < MAX_REGISTERED && !is_there; n++)
		if (registered[n] == old) {
			registered[n] = new;
			is_there = true;
		}
	pthread_mutex_unlock(&memory_lock);
	return is_there;
}

EXPORT CUresult cuMemAllocHost_v2(void **memory, size_t bytes)
{
	CUresult result = enter_call("cuMemAllocHost");

	if (result != CUDA_SUCCESS)
		return result;
	*memory = malloc(bytes);
	return *memory ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuMemFreeHost(void *memory)
{
	CUresult result = enter();

	if (result == CUDA_SUCCESS)
		free(memory);
	return result;
}

EXPORT CUresult cuMemHostRegister_v2(void *memory, size_t bytes, unsigned int flags)
{
	CUresult result = need_context("cuMemHostRegister");

	(void)flags;
	if (result != CUDA_SUCCESS || !memory || !bytes)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	if (replace_registered(memory, memory))
		return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
	return replace_registered(NULL, memory) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuMemHostUnregister(void *memory)
{
	CUresult result = enter_call("cuMemHostUnregister");

	if (result != CUDA_SUCCESS || !memory)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	return replace_registered(memory, NULL) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}
