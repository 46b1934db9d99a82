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
 *                            CALL one of init retain copy tid state lock checkpoint restore unlock, PID a number or *
 *   GPUCKPT_FAKE_NEEDS_INIT  if set, a restore fails with CUDA_ERROR_NOT_INITIALIZED unless the caller called cuInit
 *   GPUCKPT_FAKE_VERSION     what cuDriverGetVersion answers (default 13000)
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

#include "gpuckpt_cuda_abi.h"

#define BLOCK_ADDRESS 0x7e5700000000UL
#define BLOCK_MAGIC 0x66616b6563756461UL
#define MAX_ALLOCATIONS 64
#define CONTEXT_BYTES (512UL << 20)
#define CALL_LIMIT_MS 60000
#define MEET_LIMIT_MS 10000
#define EXPORT __attribute__((visibility("default")))

enum command { COMMAND_NONE, COMMAND_CHECKPOINT, COMMAND_RESTORE };

struct allocation {
	uint64_t bytes; /* 0: free */
	void *parked;
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
	uint64_t total = total_bytes();
	pthread_t thread;
	void *memory;

	memory = mmap((void *)BLOCK_ADDRESS, sizeof(*block), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
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

/* --- devices, contexts and memory, as far as the pool and the workload use them --- */

/* CUDA calls of a locked process block until it is unlocked. */
static CUresult enter(void)
{
	if (!initialised)
		return CUDA_ERROR_NOT_INITIALIZED;
	while (__atomic_load_n(&block->state, __ATOMIC_ACQUIRE) != CU_PROCESS_STATE_RUNNING)
		sleep_ms(1);
	return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int *count)
{
	*count = 1;
	return enter();
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	*device = 0;
	return ordinal ? CUDA_ERROR_INVALID_VALUE : enter();
}

static void context_path(char *path, size_t size)
{
	snprintf(path, size, "%s/context.%d", fake_folder(), getpid());
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	CUresult result = enter() ?: fault("retain", getpid());
	char path[700];
	int fd;

	if (result != CUDA_SUCCESS || device)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	context_path(path, sizeof(path));
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	close(fd);
	*context = (CUcontext)block;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	char path[700];

	context_path(path, sizeof(path));
	unlink(path);
	return device ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context)
{
	(void)context;
	return enter();
}

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
	CUresult result = enter();
	uint64_t used = used_bytes();

	*total = total_bytes();
	*free_bytes = used < *total ? *total - used : 0;
	return result;
}

/* A device pointer is an index and an offset: (index + 1) << 40 | offset. */
EXPORT CUresult cuMemAlloc_v2(uint64_t *pointer, size_t bytes)
{
	CUresult result = enter();
	char path[700];
	int n = 0, fd;

	if (result != CUDA_SUCCESS)
		return result;
	while (n < MAX_ALLOCATIONS && block->allocations[n].bytes)
		n++;
	if (n == MAX_ALLOCATIONS || used_bytes() + bytes > block->total_bytes)
		return CUDA_ERROR_OUT_OF_MEMORY;
	allocation_path(path, sizeof(path), n);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, bytes))
		return CUDA_ERROR_OPERATING_SYSTEM;
	close(fd);
	block->allocations[n].bytes = bytes;
	*pointer = (uint64_t)(n + 1) << 40;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuMemcpyHtoD_v2(uint64_t pointer, const void *memory, size_t bytes)
{
	CUresult result = enter();

	if (result == CUDA_SUCCESS &&
	    transfer((pointer >> 40) - 1, (void *)memory, pointer & ((1UL << 40) - 1), bytes, true))
		result = CUDA_ERROR_INVALID_VALUE;
	return result;
}

/* A copy is over when its call returns, so a stream has nothing to wait for. */
EXPORT CUresult cuMemcpyHtoDAsync_v2(uint64_t pointer, const void *memory, size_t bytes, void *stream)
{
	return stream == block ? fault("copy", getpid()) ?: cuMemcpyHtoD_v2(pointer, memory, bytes)
			       : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuStreamCreate(void **stream, unsigned int flags)
{
	*stream = block;
	return flags ? CUDA_ERROR_INVALID_VALUE : enter();
}

EXPORT CUresult cuStreamSynchronize(void *stream)
{
	return stream == block ? enter() : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuMemcpyDtoH_v2(void *memory, uint64_t pointer, size_t bytes)
{
	CUresult result = enter();

	if (result == CUDA_SUCCESS && transfer((pointer >> 40) - 1, memory, pointer & ((1UL << 40) - 1), bytes, false))
		result = CUDA_ERROR_INVALID_VALUE;
	return result;
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
