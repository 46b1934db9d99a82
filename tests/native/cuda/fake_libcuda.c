/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A FAKE libcuda.so.1: no GPU is behind it. It serves tests of the CUDA plugin, the cuda-checkpoint command and the
 * context pool on machines without one.
 *
 * A target that calls cuInit gets a restore thread and a control block at a fixed address. Whoever checkpoints it finds
 * that block by process_vm_readv, as the real driver finds its own by other means; CRIU carries it in the images. "GPU
 * memory" is a file per allocation. A checkpoint makes the restore thread read the files into fresh anonymous memory
 * and delete them. A restore writes them again. So the target's address space grows and shrinks as under the real
 * driver.
 *
 * Environment:
 *   GPUCKPT_FAKE_DIR         folder of the "GPU memory" (required in the target)
 *   GPUCKPT_FAKE_DEVICE      a file that the target holds open, as it would /dev/nvidia0, except while checkpointed
 *   GPUCKPT_FAKE_TOTAL_MB    size of the "GPU" (default 8192)
 *   GPUCKPT_FAKE_FAULTS      scripted faults, separated by spaces: CALL:PID:RESULT[:TIMES], CALL:PID:delay=MS or
 *                            CALL:PID:meet=COUNT, which waits until so many calls are under way and then goes on,
 *                            CALL one of init retain copy tid state lock checkpoint restore unlock, or the name of a
 *                            call of memory (cuMemCreate), PID a number or *
 *   GPUCKPT_FAKE_NEEDS_INIT  if set, a restore fails with CUDA_ERROR_NOT_INITIALIZED unless the caller called cuInit
 *   GPUCKPT_FAKE_VERSION     what cuDriverGetVersion answers (default 13000)
 *   GPUCKPT_FAKE_GPUS        how many GPUs there are (default 1); their UUIDs are all 0x11, all 0x22, …
 *   GPUCKPT_FAKE_ANYWHERE    if set, the control block lies where the kernel puts it: nobody can checkpoint the target
 *   GPUCKPT_FAKE_WORK_MS     how long each piece of asynchronous work takes (default 0)
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "cuda_types.h"
#include "gpuckpt_cuda_abi.h"

#define BLOCK_ADDRESS 0x7e5700000000UL
#define BLOCK_MAGIC 0x66616b6563756461UL
#define MAX_ALLOCATIONS 4096
#define MAX_RESERVATIONS 4096
#define GRANULARITY (2UL << 20)
#define OFFSET_BITS 40
#define CONTEXT_BYTES (512UL << 20)
#define CALL_LIMIT_MS 60000
#define MEET_LIMIT_MS 10000
#define EXPORT __attribute__((visibility("default")))

enum command { COMMAND_NONE, COMMAND_CHECKPOINT, COMMAND_RESTORE };

/* Physical memory: a file, or what a checkpoint made of it. */
struct allocation {
	uint64_t bytes; /* 0: free */
	void *parked;
	uint32_t users; /* one that holds it, and one for each mapping */
	int32_t device;
};

/* Addresses of the virtual memory interface. */
struct reservation {
	uint64_t bytes; /* 0: free */
	int32_t index;  /* of the allocation that is mapped, or -1 */
	bool is_accessible;
};

/* Lives in the target; the caller reads and writes it from outside. */
struct block {
	uint64_t magic;
	int32_t pid; /* as the target sees it */
	int32_t tid;
	int32_t state;
	int32_t command;
	uint32_t asked;    /* number of commands so far */
	uint32_t answered; /* number of answers so far */
	int32_t result;
	int32_t device_fd;
	char folder[512];
	char device[128];
	uint64_t total_bytes;
	struct allocation allocations[MAX_ALLOCATIONS];
	struct reservation reservations[MAX_RESERVATIONS];
};

static struct block *block;
static bool initialised;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void sleep_ms(long ms)
{
	struct timespec wait = {ms / 1000, ms % 1000 * 1000000};

	while (nanosleep(&wait, &wait) && errno == EINTR)
		;
}

/* --- scripted faults --- */

#define MAX_CALLS 16

/* How often the fault of an index has been used up in this process. */
static int faults_used[MAX_CALLS];

static bool names_pid(const char *word, pid_t pid)
{
	return !strcmp(word, "*") || atoi(word) == pid;
}

/* As ranks that can only go on together. Calls that never meet are an error, so that a test ends. */
static CUresult meet(int count)
{
	static int arrived;

	__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL);
	for (int waited_ms = 0; waited_ms < MEET_LIMIT_MS; waited_ms++) {
		if (__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) >= count)
			return CUDA_SUCCESS;
		sleep_ms(1);
	}
	return CUDA_ERROR_NOT_READY;
}

static CUresult one_fault(char *entry, int index, const char *call, pid_t pid)
{
	char *rest = entry, *name = strsep(&rest, ":"), *who = strsep(&rest, ":"), *what = strsep(&rest, ":");

	if (!what || strcmp(name, call) || !names_pid(who, pid))
		return CUDA_SUCCESS;
	if (!strncmp(what, "delay=", 6)) {
		sleep_ms(atol(what + 6));
		return CUDA_SUCCESS;
	}
	if (!strncmp(what, "meet=", 5))
		return meet(atoi(what + 5));
	if (rest && faults_used[index]++ >= atoi(rest))
		return CUDA_SUCCESS;
	return atoi(what);
}

static CUresult fault(const char *call, pid_t pid)
{
	const char *script = getenv("GPUCKPT_FAKE_FAULTS");
	char *copy = strdup(script ? script : ""), *rest = copy, *entry;
	CUresult result = CUDA_SUCCESS;

	for (int index = 0; index < MAX_CALLS && (entry = strsep(&rest, " ")); index++)
		if (result == CUDA_SUCCESS && *entry)
			result = one_fault(entry, index, call, pid);
	free(copy);
	return result;
}

/* --- "GPU memory" --- */

static const char *fake_folder(void)
{
	return block && block->folder[0] ? block->folder : getenv("GPUCKPT_FAKE_DIR");
}

static void allocation_path(char *path, size_t size, int index)
{
	snprintf(path, size, "%s/memory.%d.%d", block->folder, block->pid, index);
}

/* What live processes hold. The real driver frees the memory of the dead, so do we. */
static uint64_t used_bytes(void)
{
	const char *folder = fake_folder();
	DIR *files = folder ? opendir(folder) : NULL;
	struct dirent *entry;
	uint64_t used = 0;
	char path[800];
	struct stat file;
	int pid;

	while (files && (entry = readdir(files))) {
		bool context = sscanf(entry->d_name, "context.%d", &pid) == 1;

		if (!context && sscanf(entry->d_name, "memory.%d.", &pid) != 1)
			continue;
		snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
		if (kill(pid, 0) && errno == ESRCH)
			unlink(path);
		else if (!stat(path, &file))
			used += context ? CONTEXT_BYTES : (uint64_t)file.st_size;
	}
	if (files)
		closedir(files);
	return used;
}

static uint64_t total_bytes(void)
{
	const char *text = getenv("GPUCKPT_FAKE_TOTAL_MB");

	return block ? block->total_bytes : (text ? strtoull(text, NULL, 10) : 8192) << 20;
}

static int transfer(int index, void *memory, uint64_t offset, size_t bytes, bool to_gpu)
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
	return done == (ssize_t)bytes ? 0 : -1;
}

static CUresult park_one(int index)
{
	struct allocation *allocation = &block->allocations[index];
	char path[700];

	allocation->parked = mmap(NULL, allocation->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (allocation->parked == MAP_FAILED || transfer(index, allocation->parked, 0, allocation->bytes, false))
		return CUDA_ERROR_OUT_OF_MEMORY;
	allocation_path(path, sizeof(path), index);
	unlink(path);
	return CUDA_SUCCESS;
}

static CUresult unpark_one(int index)
{
	struct allocation *allocation = &block->allocations[index];

	if (used_bytes() + allocation->bytes > block->total_bytes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (transfer(index, allocation->parked, 0, allocation->bytes, true))
		return CUDA_ERROR_OPERATING_SYSTEM;
	munmap(allocation->parked, allocation->bytes);
	allocation->parked = NULL;
	return CUDA_SUCCESS;
}

/* --- the target's restore thread --- */

static CUresult open_device(void)
{
	if (!block->device[0])
		return CUDA_SUCCESS;
	block->device_fd = open(block->device, O_RDONLY | O_CLOEXEC);
	return block->device_fd < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}

static CUresult close_device(void)
{
	if (block->device[0])
		close(block->device_fd);
	return CUDA_SUCCESS;
}

static CUresult obey(int command)
{
	CUresult result = command == COMMAND_CHECKPOINT ? close_device() : open_device();

	for (int n = 0; n < MAX_ALLOCATIONS && result == CUDA_SUCCESS; n++) {
		struct allocation *allocation = &block->allocations[n];

		if (!allocation->bytes || (command == COMMAND_CHECKPOINT) == !!allocation->parked)
			continue;
		result = command == COMMAND_CHECKPOINT ? park_one(n) : unpark_one(n);
	}
	if (result == CUDA_SUCCESS)
		block->state = command == COMMAND_CHECKPOINT ? CU_PROCESS_STATE_CHECKPOINTED : CU_PROCESS_STATE_LOCKED;
	return result;
}

static void *restore_thread(void *unused)
{
	block->tid = syscall(SYS_gettid);
	for (;;) {
		if (__atomic_load_n(&block->asked, __ATOMIC_ACQUIRE) != block->answered) {
			block->result = obey(block->command);
			__atomic_store_n(&block->answered, block->asked, __ATOMIC_RELEASE);
		}
		sleep_ms(2);
	}
	return unused;
}

/* Makes this process a target. Callers of the checkpoint API that only call cuInit become one too, as with CUDA. */
static CUresult become_target(void)
{
	const char *folder = getenv("GPUCKPT_FAKE_DIR"), *device = getenv("GPUCKPT_FAKE_DEVICE");
	bool anywhere = getenv("GPUCKPT_FAKE_ANYWHERE");
	uint64_t total = total_bytes();
	pthread_t thread;
	void *memory;

	memory = mmap(anywhere ? NULL : (void *)BLOCK_ADDRESS, sizeof(*block), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | (anywhere ? 0 : MAP_FIXED_NOREPLACE), -1, 0);
	if (memory == MAP_FAILED)
		return CUDA_ERROR_OPERATING_SYSTEM;
	block = memory;
	block->pid = getpid();
	block->total_bytes = total;
	snprintf(block->folder, sizeof(block->folder), "%s", folder ? folder : "");
	snprintf(block->device, sizeof(block->device), "%s", device ? device : "");
	if (open_device() || pthread_create(&thread, NULL, restore_thread, NULL))
		return CUDA_ERROR_OPERATING_SYSTEM;
	while (!__atomic_load_n(&block->tid, __ATOMIC_ACQUIRE))
		sleep_ms(1);
	block->magic = BLOCK_MAGIC;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuInit(unsigned int flags)
{
	CUresult result = fault("init", getpid());

	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&lock);
	if (result == CUDA_SUCCESS && !initialised) {
		result = become_target();
		initialised = result == CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

EXPORT CUresult cuDriverGetVersion(int *version)
{
	const char *text = getenv("GPUCKPT_FAKE_VERSION");

	*version = text ? atoi(text) : 13000;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorName(CUresult result, const char **name)
{
	static const struct {
		CUresult result;
		const char *name;
	} names[] = {
		{CUDA_SUCCESS, "CUDA_SUCCESS"},
		{CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
		{CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
		{CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
		{CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
		{CUDA_ERROR_OPERATING_SYSTEM, "CUDA_ERROR_OPERATING_SYSTEM"},
		{CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY"},
		{CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
	};

	for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++)
		if (names[n].result == result) {
			*name = names[n].name;
			return CUDA_SUCCESS;
		}
	return CUDA_ERROR_INVALID_VALUE;
}

/* --- devices and contexts --- */

static CUresult sticky; /* after an access to what is not mapped, as the real driver has it */

/* CUDA calls of a locked process block until it is unlocked. */
static CUresult enter(void)
{
	if (!initialised)
		return CUDA_ERROR_NOT_INITIALIZED;
	while (__atomic_load_n(&block->state, __ATOMIC_ACQUIRE) != CU_PROCESS_STATE_RUNNING)
		sleep_ms(1);
	return __atomic_load_n(&sticky, __ATOMIC_ACQUIRE);
}

static CUresult enter_call(const char *name)
{
	return enter() ?: fault(name, getpid());
}

static int gpu_count(void)
{
	const char *text = getenv("GPUCKPT_FAKE_GPUS");

	return text ? atoi(text) : 1;
}

EXPORT CUresult cuDeviceGetCount(int *count)
{
	*count = gpu_count();
	return enter();
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	*device = ordinal;
	return ordinal < 0 || ordinal >= gpu_count() ? CUDA_ERROR_INVALID_VALUE : enter();
}

EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
	memset(uuid->bytes, 0x11 * (device + 1), sizeof(uuid->bytes));
	return enter();
}

EXPORT CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
	(void)device;
	*value = attribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
	return enter();
}

/* The contexts of GPUs 0, 1, … are the addresses block + 1, block + 2, … */
static _Thread_local CUcontext current_contexts[8];
static _Thread_local int nr_current;

static int device_of(CUcontext context)
{
	return context ? (char *)context - (char *)block - 1 : -1;
}

static CUcontext current_context(void)
{
	return nr_current ? current_contexts[nr_current - 1] : NULL;
}

static void context_path(char *path, size_t size)
{
	snprintf(path, size, "%s/context.%d", fake_folder(), getpid());
}

static int context_users[64];

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	CUresult result = enter() ?: fault("retain", getpid());
	char path[700];
	int fd;

	if (result != CUDA_SUCCESS || device < 0 || device >= gpu_count())
		return result ?: CUDA_ERROR_INVALID_VALUE;
	context_path(path, sizeof(path));
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	close(fd);
	context_users[device]++;
	*context = (CUcontext)((char *)block + 1 + device);
	return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	char path[700];

	if (device < 0 || device >= gpu_count())
		return CUDA_ERROR_INVALID_VALUE;
	context_path(path, sizeof(path));
	if (!--context_users[device])
		unlink(path);
	return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
	*flags = 0;
	*active = device >= 0 && device < gpu_count() && context_users[device] > 0;
	return enter();
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context)
{
	nr_current = nr_current ?: 1;
	current_contexts[nr_current - 1] = context;
	return enter();
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context)
{
	*context = current_context();
	return enter();
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context)
{
	if (nr_current == 8)
		return CUDA_ERROR_INVALID_VALUE;
	current_contexts[nr_current++] = context;
	return enter();
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
	if (!nr_current)
		return CUDA_ERROR_INVALID_CONTEXT;
	*context = current_contexts[--nr_current];
	return enter();
}

EXPORT CUresult cuCtxGetDevice(CUdevice *device)
{
	*device = device_of(current_context());
	return *device < 0 ? CUDA_ERROR_INVALID_CONTEXT : enter();
}

EXPORT CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags)
{
	return flags || peer == current_context() ? CUDA_ERROR_INVALID_VALUE : enter();
}

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
	CUresult result = enter();
	uint64_t used = used_bytes();

	*total = total_bytes();
	*free_bytes = used < *total ? *total - used : 0;
	return result;
}

/* --- physical memory and addresses --- */

static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;

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

static struct reservation *reservation_at(uint64_t address)
{
	int index = index_of(address) - MAX_ALLOCATIONS;

	return index >= 0 && index < MAX_RESERVATIONS && block->reservations[index].bytes ? &block->reservations[index]
											  : NULL;
}

/* The allocation behind some addresses, or -1 where there is none that may be used. */
static int behind(uint64_t address, uint64_t bytes)
{
	struct reservation *reservation = reservation_at(address);
	int index = reservation ? (reservation->is_accessible ? reservation->index : -1) : index_of(address);
	bool is_there = index >= 0 && index < MAX_ALLOCATIONS && block->allocations[index].bytes &&
			offset_of(address) + bytes <= block->allocations[index].bytes;

	return is_there ? index : -1;
}

static CUresult make_allocation(uint64_t bytes, int device, int *index)
{
	char path[700];
	int n = 0, fd;

	while (n < MAX_ALLOCATIONS && block->allocations[n].bytes)
		n++;
	if (n == MAX_ALLOCATIONS || used_bytes() + bytes > block->total_bytes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	allocation_path(path, sizeof(path), n);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	if (ftruncate(fd, bytes)) {
		close(fd);
		return CUDA_ERROR_OPERATING_SYSTEM;
	}
	close(fd);
	block->allocations[n] = (struct allocation){.bytes = bytes, .users = 1, .device = device};
	*index = n;
	return CUDA_SUCCESS;
}

static void drop_user(int index)
{
	char path[700];

	if (--block->allocations[index].users)
		return;
	allocation_path(path, sizeof(path), index);
	unlink(path);
	block->allocations[index].bytes = 0;
}

EXPORT CUresult cuMemAlloc_v2(uint64_t *pointer, size_t bytes)
{
	CUresult result = enter_call("cuMemAlloc");
	int index;

	if (result != CUDA_SUCCESS || !bytes)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&memory_lock);
	result = make_allocation(bytes, device_of(current_context()), &index);
	pthread_mutex_unlock(&memory_lock);
	if (result == CUDA_SUCCESS)
		*pointer = address_of(index);
	return result;
}

EXPORT CUresult cuMemAllocPitch_v2(uint64_t *pointer, size_t *pitch, size_t width, size_t height, unsigned int element)
{
	(void)element;
	*pitch = (width + 511) / 512 * 512;
	return cuMemAlloc_v2(pointer, *pitch * height);
}

/* The index of an allocation that begins at an address of cuMemAlloc, or -1. */
static int own_allocation_at(uint64_t pointer)
{
	int index = index_of(pointer);

	return offset_of(pointer) || index < 0 || index >= MAX_ALLOCATIONS || !block->allocations[index].bytes ? -1
													       : index;
}

static void drain(void);

EXPORT CUresult cuMemFree_v2(uint64_t pointer)
{
	CUresult result = enter_call("cuMemFree");
	int index;

	if (result != CUDA_SUCCESS)
		return result;
	drain();
	pthread_mutex_lock(&memory_lock);
	index = own_allocation_at(pointer);
	if (index >= 0)
		drop_user(index);
	pthread_mutex_unlock(&memory_lock);
	return index < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static bool is_aligned(uint64_t number)
{
	return number && number % GRANULARITY == 0;
}

EXPORT CUresult cuMemGetAllocationGranularity(size_t *bytes, const void *properties, int option)
{
	(void)properties;
	(void)option;
	*bytes = GRANULARITY;
	return enter();
}

EXPORT CUresult cuMemAddressReserve(uint64_t *pointer, size_t bytes, size_t alignment, uint64_t wish, uint64_t flags)
{
	CUresult result = enter_call("cuMemAddressReserve");
	int n = 0;

	(void)wish;
	if (result != CUDA_SUCCESS || !is_aligned(bytes) || flags || (alignment & (alignment - 1)))
		return result ?: CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&memory_lock);
	while (n < MAX_RESERVATIONS && block->reservations[n].bytes)
		n++;
	if (n < MAX_RESERVATIONS)
		block->reservations[n] = (struct reservation){.bytes = bytes, .index = -1};
	pthread_mutex_unlock(&memory_lock);
	*pointer = address_of(MAX_ALLOCATIONS + n);
	return n < MAX_RESERVATIONS ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuMemAddressFree(uint64_t pointer, size_t bytes)
{
	CUresult result = enter_call("cuMemAddressFree");
	struct reservation *reservation;

	if (result != CUDA_SUCCESS)
		return result;
	pthread_mutex_lock(&memory_lock);
	reservation = reservation_at(pointer);
	if (!reservation || reservation->bytes != bytes || offset_of(pointer) || reservation->index >= 0)
		result = CUDA_ERROR_INVALID_VALUE;
	else
		reservation->bytes = 0;
	pthread_mutex_unlock(&memory_lock);
	return result;
}

/* As CUmemAllocationProp begins: type, handle types, type and number of the place. */
EXPORT CUresult cuMemCreate(uint64_t *handle, size_t bytes, const int *properties, uint64_t flags)
{
	CUresult result = enter_call("cuMemCreate");
	int index;

	if (result != CUDA_SUCCESS || !is_aligned(bytes) || flags || properties[3] < 0 || properties[3] >= gpu_count())
		return result ?: CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&memory_lock);
	result = make_allocation(bytes, properties[3], &index);
	pthread_mutex_unlock(&memory_lock);
	if (result == CUDA_SUCCESS)
		*handle = index + 1;
	return result;
}

EXPORT CUresult cuMemRelease(uint64_t handle)
{
	CUresult result = enter_call("cuMemRelease");

	if (result != CUDA_SUCCESS)
		return result;
	pthread_mutex_lock(&memory_lock);
	if (!handle || handle > MAX_ALLOCATIONS || !block->allocations[handle - 1].bytes)
		result = CUDA_ERROR_INVALID_VALUE;
	else
		drop_user(handle - 1);
	pthread_mutex_unlock(&memory_lock);
	return result;
}

EXPORT CUresult cuMemMap(uint64_t pointer, size_t bytes, size_t offset, uint64_t handle, uint64_t flags)
{
	CUresult result = enter_call("cuMemMap");
	struct reservation *reservation;

	if (result != CUDA_SUCCESS)
		return result;
	pthread_mutex_lock(&memory_lock);
	reservation = reservation_at(pointer);
	if (!reservation || reservation->bytes != bytes || offset || flags || reservation->index >= 0 || !handle ||
	    handle > MAX_ALLOCATIONS || block->allocations[handle - 1].bytes != bytes) {
		result = CUDA_ERROR_INVALID_VALUE;
	} else {
		reservation->index = handle - 1;
		reservation->is_accessible = false;
		block->allocations[handle - 1].users++;
	}
	pthread_mutex_unlock(&memory_lock);
	return result;
}

EXPORT CUresult cuMemSetAccess(uint64_t pointer, size_t bytes, const int *access, size_t count)
{
	CUresult result = enter_call("cuMemSetAccess");
	struct reservation *reservation;

	if (result != CUDA_SUCCESS)
		return result;
	pthread_mutex_lock(&memory_lock);
	reservation = reservation_at(pointer);
	if (!reservation || reservation->bytes != bytes || reservation->index < 0 || !count || access[2] != 3)
		result = CUDA_ERROR_INVALID_VALUE;
	else
		reservation->is_accessible = true;
	pthread_mutex_unlock(&memory_lock);
	return result;
}

EXPORT CUresult cuMemUnmap(uint64_t pointer, size_t bytes)
{
	CUresult result = enter_call("cuMemUnmap");
	struct reservation *reservation;

	if (result != CUDA_SUCCESS)
		return result;
	pthread_mutex_lock(&memory_lock);
	reservation = reservation_at(pointer);
	if (!reservation || reservation->bytes != bytes || reservation->index < 0) {
		result = CUDA_ERROR_INVALID_VALUE;
	} else {
		drop_user(reservation->index);
		reservation->index = -1;
		reservation->is_accessible = false;
	}
	pthread_mutex_unlock(&memory_lock);
	return result;
}

EXPORT CUresult cuMemGetAddressRange_v2(uint64_t *base, size_t *bytes, uint64_t pointer)
{
	CUresult result = enter();
	int index = behind(pointer, 1);

	if (result != CUDA_SUCCESS || index < 0)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	*base = pointer - offset_of(pointer);
	*bytes = block->allocations[index].bytes;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuPointerGetAttribute(void *value, int attribute, uint64_t pointer)
{
	CUresult result = enter();
	int index = behind(pointer, 1);

	if (result != CUDA_SUCCESS || index < 0)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		*(void **)value = reservation_at(pointer) ? NULL : block;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		*(uint64_t *)value = pointer - offset_of(pointer);
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		*(size_t *)value = block->allocations[index].bytes;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		*(int *)value = block->allocations[index].device;
		return CUDA_SUCCESS;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
}

EXPORT CUresult cuPointerGetAttributes(unsigned int count, const int *attributes, void **values, uint64_t pointer)
{
	CUresult result = enter();

	for (unsigned int n = 0; n < count && result == CUDA_SUCCESS; n++)
		result = cuPointerGetAttribute(values[n], attributes[n], pointer);
	return result;
}

EXPORT CUresult cuIpcGetMemHandle(void *handle, uint64_t pointer)
{
	memset(handle, 0, 64);
	return enter() ?: (own_allocation_at(pointer) < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS);
}

EXPORT CUresult cuMemAllocHost_v2(void **memory, size_t bytes)
{
	*memory = malloc(bytes);
	return *memory ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuMemFreeHost(void *memory)
{
	free(memory);
	return CUDA_SUCCESS;
}

EXPORT CUresult cuMemHostRegister_v2(void *memory, size_t bytes, unsigned int flags)
{
	(void)flags;
	return enter_call("cuMemHostRegister") ?: (memory && bytes ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

EXPORT CUresult cuMemHostUnregister(void *memory)
{
	return enter() ?: (memory ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

/* --- work: one queue for all streams, worked off by a thread --- */

enum work_kind { WORK_TO_GPU, WORK_TO_HOST, WORK_SET, WORK_ADD };

struct work {
	struct work *next;
	enum work_kind kind;
	uint64_t pointer;
	void *memory;
	size_t bytes;
	unsigned char byte;
};

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_changed = PTHREAD_COND_INITIALIZER;
static struct work *first_work, **last_work = &first_work;
static int nr_work; /* waiting or under way */

static bool do_work(const struct work *work)
{
	unsigned char *copy = NULL;
	int index;
	bool done;

	pthread_mutex_lock(&memory_lock);
	index = behind(work->pointer, work->bytes);
	if (work->kind == WORK_SET || work->kind == WORK_ADD)
		copy = malloc(work->bytes);
	if (copy && work->kind == WORK_SET)
		memset(copy, work->byte, work->bytes);
	done = index >= 0;
	if (done && work->kind == WORK_ADD) {
		done = !transfer(index, copy, offset_of(work->pointer), work->bytes, false);
		for (size_t n = 0; n < work->bytes; n++)
			copy[n] += work->byte;
	}
	done = done && !transfer(index, copy ?: work->memory, offset_of(work->pointer), work->bytes,
				 work->kind != WORK_TO_HOST);
	free(copy);
	pthread_mutex_unlock(&memory_lock);
	return done;
}

static void *work_off(void *unused)
{
	const char *text = getenv("GPUCKPT_FAKE_WORK_MS");
	long delay_ms = text ? atol(text) : 0;

	for (;;) {
		struct work *work;

		pthread_mutex_lock(&queue_lock);
		while (!first_work)
			pthread_cond_wait(&queue_changed, &queue_lock);
		work = first_work;
		first_work = work->next;
		if (!first_work)
			last_work = &first_work;
		pthread_mutex_unlock(&queue_lock);

		if (delay_ms)
			sleep_ms(delay_ms);
		if (!do_work(work))
			__atomic_store_n(&sticky, CUDA_ERROR_ILLEGAL_ADDRESS, __ATOMIC_RELEASE);
		free(work);

		pthread_mutex_lock(&queue_lock);
		nr_work--;
		pthread_cond_broadcast(&queue_changed);
		pthread_mutex_unlock(&queue_lock);
	}
	return unused;
}

static void start_working(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, work_off, NULL);
}

static CUresult submit(enum work_kind kind, uint64_t pointer, void *memory, size_t bytes, unsigned char byte)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct work *work = malloc(sizeof(*work));

	if (!work)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_once(&once, start_working);
	*work = (struct work){NULL, kind, pointer, memory, bytes, byte};
	pthread_mutex_lock(&queue_lock);
	*last_work = work;
	last_work = &work->next;
	nr_work++;
	pthread_cond_broadcast(&queue_changed);
	pthread_mutex_unlock(&queue_lock);
	return CUDA_SUCCESS;
}

static void drain(void)
{
	pthread_mutex_lock(&queue_lock);
	while (nr_work)
		pthread_cond_wait(&queue_changed, &queue_lock);
	pthread_mutex_unlock(&queue_lock);
}

static CUresult finish(CUresult result)
{
	if (result == CUDA_SUCCESS)
		drain();
	return result ?: __atomic_load_n(&sticky, __ATOMIC_ACQUIRE);
}

EXPORT CUresult cuStreamCreate(void **stream, unsigned int flags)
{
	static int streams;

	*stream = (char *)block + ++streams;
	return flags > 1 ? CUDA_ERROR_INVALID_VALUE : enter_call("cuStreamCreate");
}

EXPORT CUresult cuStreamDestroy_v2(void *stream)
{
	return finish(enter() ?: (stream ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE));
}

EXPORT CUresult cuStreamSynchronize(void *stream)
{
	(void)stream;
	return finish(enter_call("cuStreamSynchronize"));
}

EXPORT CUresult cuCtxSynchronize(void)
{
	return finish(enter_call("cuCtxSynchronize")
			      ?: (current_context() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT));
}

static CUresult need_context(const char *name)
{
	return enter_call(name) ?: (current_context() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT);
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(uint64_t pointer, const void *memory, size_t bytes, void *stream)
{
	(void)stream;
	return need_context("copy") ?: fault("cuMemcpyHtoDAsync", getpid()) ?:
	       submit(WORK_TO_GPU, pointer, (void *)memory, bytes, 0);
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void *memory, uint64_t pointer, size_t bytes, void *stream)
{
	(void)stream;
	return need_context("cuMemcpyDtoHAsync") ?: submit(WORK_TO_HOST, pointer, memory, bytes, 0);
}

EXPORT CUresult cuMemsetD8Async(uint64_t pointer, unsigned char byte, size_t bytes, void *stream)
{
	(void)stream;
	return need_context("cuMemsetD8Async") ?: submit(WORK_SET, pointer, NULL, bytes, byte);
}

EXPORT CUresult cuMemcpyHtoD_v2(uint64_t pointer, const void *memory, size_t bytes)
{
	return finish(need_context("cuMemcpyHtoD") ?: submit(WORK_TO_GPU, pointer, (void *)memory, bytes, 0));
}

EXPORT CUresult cuMemcpyDtoH_v2(void *memory, uint64_t pointer, size_t bytes)
{
	return finish(need_context("cuMemcpyDtoH") ?: submit(WORK_TO_HOST, pointer, memory, bytes, 0));
}

EXPORT CUresult cuMemsetD8_v2(uint64_t pointer, unsigned char byte, size_t bytes)
{
	return need_context("cuMemsetD8") ?: submit(WORK_SET, pointer, NULL, bytes, byte);
}

/* The only kernel there is adds a number to bytes: its parameters are where, how many, and which number. */
EXPORT CUresult cuLaunchKernel(void *function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
			       unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared,
			       void *stream, void **parameters, void **extra)
{
	bool is_known = grid_x && grid_y && grid_z && block_x && block_y && block_z && !shared && !extra;

	(void)function;
	(void)stream;
	return need_context("cuLaunchKernel")
		       ?: (is_known ? submit(WORK_ADD, *(uint64_t *)parameters[0], NULL, *(size_t *)parameters[1],
					     *(unsigned char *)parameters[2])
				    : CUDA_ERROR_INVALID_VALUE);
}

/* --- captures: nothing is recorded, but nobody may wait for the GPU meanwhile --- */

static int captures;

EXPORT CUresult cuStreamBeginCapture_v2(void *stream, int mode)
{
	(void)stream;
	(void)mode;
	__atomic_add_fetch(&captures, 1, __ATOMIC_ACQ_REL);
	return enter();
}

EXPORT CUresult cuStreamEndCapture(void *stream, void **graph)
{
	(void)stream;
	*graph = NULL;
	__atomic_sub_fetch(&captures, 1, __ATOMIC_ACQ_REL);
	return enter();
}

/* --- functions by name, as the CUDA runtime looks them up --- */

struct function {
	const char *name;
	void *address;
};

#define FUNCTION(_name)                                                                                                \
	{                                                                                                              \
#_name, _name                                                                                          \
	}
static const struct function functions[] = {
	FUNCTION(cuInit),
	FUNCTION(cuDriverGetVersion),
	FUNCTION(cuGetErrorName),
	FUNCTION(cuDeviceGetCount),
	FUNCTION(cuDeviceGet),
	FUNCTION(cuDeviceGetUuid_v2),
	FUNCTION(cuDeviceGetAttribute),
	FUNCTION(cuDevicePrimaryCtxRetain),
	FUNCTION(cuDevicePrimaryCtxRelease_v2),
	FUNCTION(cuDevicePrimaryCtxGetState),
	FUNCTION(cuCtxSetCurrent),
	FUNCTION(cuCtxGetCurrent),
	FUNCTION(cuCtxPushCurrent_v2),
	FUNCTION(cuCtxPopCurrent_v2),
	FUNCTION(cuCtxGetDevice),
	FUNCTION(cuCtxEnablePeerAccess),
	FUNCTION(cuMemGetInfo_v2),
	FUNCTION(cuMemAlloc_v2),
	FUNCTION(cuMemAllocPitch_v2),
	FUNCTION(cuMemFree_v2),
	FUNCTION(cuMemGetAllocationGranularity),
	FUNCTION(cuMemAddressReserve),
	FUNCTION(cuMemAddressFree),
	FUNCTION(cuMemCreate),
	FUNCTION(cuMemRelease),
	FUNCTION(cuMemMap),
	FUNCTION(cuMemSetAccess),
	FUNCTION(cuMemUnmap),
	FUNCTION(cuMemGetAddressRange_v2),
	FUNCTION(cuPointerGetAttribute),
	FUNCTION(cuPointerGetAttributes),
	FUNCTION(cuIpcGetMemHandle),
	FUNCTION(cuMemAllocHost_v2),
	FUNCTION(cuMemFreeHost),
	FUNCTION(cuMemHostRegister_v2),
	FUNCTION(cuMemHostUnregister),
	FUNCTION(cuStreamCreate),
	FUNCTION(cuStreamDestroy_v2),
	FUNCTION(cuStreamSynchronize),
	FUNCTION(cuCtxSynchronize),
	FUNCTION(cuMemcpyHtoDAsync_v2),
	FUNCTION(cuMemcpyDtoHAsync_v2),
	FUNCTION(cuMemsetD8Async),
	FUNCTION(cuMemcpyHtoD_v2),
	FUNCTION(cuMemcpyDtoH_v2),
	FUNCTION(cuMemsetD8_v2),
	FUNCTION(cuLaunchKernel),
	FUNCTION(cuStreamBeginCapture_v2),
	FUNCTION(cuStreamEndCapture),
};
#undef FUNCTION

/* A name stands for its newest variant. */
EXPORT CUresult cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
	size_t length = strlen(name);

	(void)version;
	(void)flags;
	*function = !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2 : NULL;
	for (size_t n = 0; n < sizeof(functions) / sizeof(functions[0]); n++)
		if (!strncmp(functions[n].name, name, length) &&
		    (!functions[n].name[length] || !strcmp(functions[n].name + length, "_v2")))
			*function = functions[n].address;
	if (status)
		*status = *function ? 0 : 1;
	return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* --- the checkpoint API, as called from outside --- */

#ifndef FAKE_WITHOUT_CHECKPOINT_API

static long innermost_pid(pid_t pid, pid_t tid)
{
	char path[64], line[256];
	long number = -1;
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, tid);
	status = fopen(path, "re");
	while (status && number < 0 && fgets(line, sizeof(line), status))
		if (!strncmp(line, "NSpid:", 6))
			number = atol(strrchr(line, '\t') + 1);
	if (status)
		fclose(status);
	return number;
}

static bool exchange(pid_t pid, struct block *copy, bool write)
{
	struct iovec local = {copy, sizeof(*copy)}, remote = {(void *)BLOCK_ADDRESS, sizeof(*copy)};
	ssize_t done = write ? process_vm_writev(pid, &local, 1, &remote, 1, 0)
			     : process_vm_readv(pid, &local, 1, &remote, 1, 0);

	return done == sizeof(*copy);
}

/* A fork of a target inherits its block, but not its GPU state: the pid inside tells them apart. */
static CUresult look_at(pid_t pid, struct block *copy)
{
	if (!exchange(pid, copy, false) || copy->magic != BLOCK_MAGIC || copy->pid != innermost_pid(pid, pid))
		return CUDA_ERROR_NOT_INITIALIZED;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuCheckpointProcessGetRestoreThreadId(int pid, int *tid)
{
	struct block copy;
	CUresult result = fault("tid", pid) ?: look_at(pid, &copy);
	struct dirent *entry;
	char path[64];
	DIR *tasks;

	if (result != CUDA_SUCCESS)
		return result;
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	tasks = opendir(path);
	*tid = -1;
	while (tasks && (entry = readdir(tasks)))
		if (entry->d_name[0] != '.' && innermost_pid(pid, atoi(entry->d_name)) == copy.tid)
			*tid = atoi(entry->d_name);
	if (tasks)
		closedir(tasks);
	return *tid < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}

EXPORT CUresult cuCheckpointProcessGetState(int pid, CUprocessState *state)
{
	struct block copy;
	CUresult result = fault("state", pid) ?: look_at(pid, &copy);

	*state = copy.state;
	return result;
}

static CUresult require_state(pid_t pid, struct block *copy, CUprocessState state)
{
	CUresult result = look_at(pid, copy);

	return result == CUDA_SUCCESS && copy->state != (int)state ? CUDA_ERROR_INVALID_VALUE : result;
}

static CUresult command_target(pid_t pid, struct block *copy, int command)
{
	uint32_t asked = ++copy->asked;

	copy->command = command;
	if (!exchange(pid, copy, true))
		return CUDA_ERROR_OPERATING_SYSTEM;
	for (int waited = 0; waited < CALL_LIMIT_MS; waited++) {
		sleep_ms(1);
		if (!exchange(pid, copy, false))
			return CUDA_ERROR_OPERATING_SYSTEM;
		if (copy->answered == asked)
			return copy->result;
	}
	return CUDA_ERROR_NOT_READY;
}

static CUresult set_state(pid_t pid, struct block *copy, CUprocessState state)
{
	copy->state = state;
	return exchange(pid, copy, true) ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

EXPORT CUresult cuCheckpointProcessLock(int pid, CUcheckpointLockArgs *args)
{
	struct block copy;
	CUresult result = require_state(pid, &copy, CU_PROCESS_STATE_RUNNING);

	if (args && (args->reserved0 || args->reserved1[0] || args->reserved1[6]))
		return CUDA_ERROR_INVALID_VALUE;
	return result ?: fault("lock", pid) ?: set_state(pid, &copy, CU_PROCESS_STATE_LOCKED);
}

EXPORT CUresult cuCheckpointProcessCheckpoint(int pid, CUcheckpointCheckpointArgs *args)
{
	struct block copy;
	CUresult result = require_state(pid, &copy, CU_PROCESS_STATE_LOCKED);

	if (args && (args->reserved[0] || args->reserved[7]))
		return CUDA_ERROR_INVALID_VALUE;
	return result ?: fault("checkpoint", pid) ?: command_target(pid, &copy, COMMAND_CHECKPOINT);
}

EXPORT CUresult cuCheckpointProcessRestore(int pid, CUcheckpointRestoreArgs *args)
{
	struct block copy;
	CUresult result = require_state(pid, &copy, CU_PROCESS_STATE_CHECKPOINTED);

	if (getenv("GPUCKPT_FAKE_NEEDS_INIT") && !initialised)
		return CUDA_ERROR_NOT_INITIALIZED;
	/* One "GPU", with a UUID of 0x11 bytes only: a device map must name it. */
	if (args && args->gpuPairsCount && args->gpuPairs[0].oldUuid.bytes[0] != 0x11)
		return CUDA_ERROR_INVALID_VALUE;
	return result ?: fault("restore", pid) ?: command_target(pid, &copy, COMMAND_RESTORE);
}

EXPORT CUresult cuCheckpointProcessUnlock(int pid, CUcheckpointUnlockArgs *args)
{
	struct block copy;
	CUresult result = require_state(pid, &copy, CU_PROCESS_STATE_LOCKED);

	if (args && args->reserved[0])
		return CUDA_ERROR_INVALID_VALUE;
	return result ?: fault("unlock", pid) ?: set_state(pid, &copy, CU_PROCESS_STATE_RUNNING);
}

#endif
