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
 * Here are the target, its contexts and the checkpoint API. fake_memory_map.c has memory and addresses, fake_work.c
 * streams and work, fake_lookup.c functions by name. Work is done in the background, and in order only where CUDA
 * promises it. It may use what is mapped and accessible for its GPU; else all calls fail from then on. Memory that
 * another process has imported survives no restore.
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
 *   GPUCKPT_FAKE_WORK_MS     how long each piece of asynchronous work takes (default 0); copies of streams that wait
 * for no other take no time, and overtake it
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "fake_libcuda.h"

#define BLOCK_ADDRESS 0x7e5700000000UL
#define BLOCK_MAGIC 0x66616b6563756461UL
#define CALL_LIMIT_MS 60000
#define MEET_LIMIT_MS 10000

enum command { COMMAND_NONE, COMMAND_CHECKPOINT, COMMAND_RESTORE };

struct block *block;
static bool initialised;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void sleep_ms(long ms)
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
	if (rest && __atomic_fetch_add(&faults_used[index], 1, __ATOMIC_RELAXED) >= atoi(rest))
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

	if (result == CUDA_SUCCESS)
		result = command == COMMAND_CHECKPOINT ? park_all() : unpark_all();
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
		{CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
		{CUDA_ERROR_OPERATING_SYSTEM, "CUDA_ERROR_OPERATING_SYSTEM"},
		{CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY"},
		{CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
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

void break_for_good(CUresult result)
{
	__atomic_store_n(&sticky, result, __ATOMIC_RELEASE);
}

static bool is_running(void)
{
	return __atomic_load_n(&block->state, __ATOMIC_SEQ_CST) == CU_PROCESS_STATE_RUNNING;
}

/* CUDA calls of a locked process block until it is unlocked. */
CUresult enter(void)
{
	if (!initialised)
		return CUDA_ERROR_NOT_INITIALIZED;
	while (!is_running())
		sleep_ms(1);
	return __atomic_load_n(&sticky, __ATOMIC_ACQUIRE);
}

CUresult enter_call(const char *name)
{
	return enter() ?: fault(name, getpid());
}

CUresult need_context(const char *name)
{
	return enter_call(name) ?: (current_context() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT);
}

/* A call that came in before the lock may get here after it. Then it waits here. */
void begin_change(void)
{
	for (;;) {
		pthread_mutex_lock(&memory_lock);
		__atomic_store_n(&block->changing, 1, __ATOMIC_SEQ_CST);
		if (is_running())
			return;
		end_change();
		sleep_ms(1);
	}
}

void end_change(void)
{
	__atomic_store_n(&block->changing, 0, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&memory_lock);
}

int gpu_count(void)
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
	*value = attribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
	return device < 0 || device >= gpu_count() ? CUDA_ERROR_INVALID_VALUE : enter();
}

/* The contexts of GPUs 0, 1, … are the addresses block + 1, block + 2, … */
static _Thread_local CUcontext current_contexts[8];
static _Thread_local int nr_current;

int device_of(CUcontext context)
{
	return context ? (char *)context - (char *)block - 1 : -1;
}

CUcontext context_of(CUdevice device)
{
	return (CUcontext)((char *)block + 1 + device);
}

CUcontext current_context(void)
{
	return nr_current ? current_contexts[nr_current - 1] : NULL;
}

static int context_users[MAX_GPUS];

static bool is_context(CUcontext context)
{
	int device = device_of(context);

	return device >= 0 && device < gpu_count() && __atomic_load_n(&context_users[device], __ATOMIC_ACQUIRE);
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	CUresult result = enter() ?: fault("retain", getpid());
	char path[700];
	int fd;

	if (result != CUDA_SUCCESS || device < 0 || device >= gpu_count())
		return result ?: CUDA_ERROR_INVALID_VALUE;
	context_path(path, sizeof(path), device);
	begin_change();
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0) {
		close(fd);
		__atomic_add_fetch(&context_users[device], 1, __ATOMIC_RELEASE);
		*context = context_of(device);
	}
	end_change();
	return fd < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	CUresult result = enter();
	char path[700];

	if (result != CUDA_SUCCESS || device < 0 || device >= gpu_count())
		return result ?: CUDA_ERROR_INVALID_VALUE;
	if (!is_context(context_of(device)))
		return CUDA_ERROR_INVALID_CONTEXT;
	drain();
	begin_change();
	if (!__atomic_sub_fetch(&context_users[device], 1, __ATOMIC_RELEASE)) {
		context_path(path, sizeof(path), device);
		unlink(path);
		forget_memory_of(device);
	}
	end_change();
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
	CUresult result = enter();

	if (result != CUDA_SUCCESS || (context && !is_context(context)))
		return result ?: CUDA_ERROR_INVALID_CONTEXT;
	nr_current = nr_current ?: 1;
	current_contexts[nr_current - 1] = context;
	return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context)
{
	*context = current_context();
	return enter();
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context)
{
	CUresult result = enter();

	if (result != CUDA_SUCCESS || nr_current == 8)
		return result ?: CUDA_ERROR_INVALID_VALUE;
	if (!is_context(context))
		return CUDA_ERROR_INVALID_CONTEXT;
	current_contexts[nr_current++] = context;
	return CUDA_SUCCESS;
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
	CUresult result = need_context("cuCtxGetDevice");

	*device = device_of(current_context());
	return result;
}

EXPORT CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags)
{
	CUresult result = need_context("cuCtxEnablePeerAccess");
	uint32_t *peers, bit;

	if (result != CUDA_SUCCESS || flags || !is_context(peer) || peer == current_context())
		return result ?: CUDA_ERROR_INVALID_VALUE;
	peers = &block->peers[device_of(current_context())];
	bit = 1U << device_of(peer);
	begin_change();
	result = *peers & bit ? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED : CUDA_SUCCESS;
	*peers |= bit;
	end_change();
	return result;
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

/* What callers know of a target: its block up to what only the target itself needs. */
#define KNOWN_BYTES offsetof(struct block, folder)

static bool look(pid_t pid, struct block *copy)
{
	struct iovec local = {copy, KNOWN_BYTES}, remote = {(void *)BLOCK_ADDRESS, KNOWN_BYTES};

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == KNOWN_BYTES;
}

/* One number alone: the target changes others at the same time. */
static CUresult poke(pid_t pid, size_t offset, uint32_t number)
{
	struct iovec local = {&number, sizeof(number)}, remote = {(char *)BLOCK_ADDRESS + offset, sizeof(number)};

	return process_vm_writev(pid, &local, 1, &remote, 1, 0) == sizeof(number) ? CUDA_SUCCESS
										  : CUDA_ERROR_OPERATING_SYSTEM;
}

/* A fork of a target inherits its block, but not its GPU state: the pid inside tells them apart. */
static CUresult look_at(pid_t pid, struct block *copy)
{
	if (!look(pid, copy) || copy->magic != BLOCK_MAGIC || copy->pid != innermost_pid(pid, pid))
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

	if (poke(pid, offsetof(struct block, command), command) || poke(pid, offsetof(struct block, asked), asked))
		return CUDA_ERROR_OPERATING_SYSTEM;
	for (int waited = 0; waited < CALL_LIMIT_MS; waited++) {
		sleep_ms(1);
		if (!look(pid, copy))
			return CUDA_ERROR_OPERATING_SYSTEM;
		if (copy->answered == asked)
			return copy->result;
	}
	return CUDA_ERROR_NOT_READY;
}

static CUresult set_state(pid_t pid, CUprocessState state)
{
	return poke(pid, offsetof(struct block, state), state);
}

/* Calls wait from now on; work that was given before is done, as with the real driver. */
static CUresult lock_process(pid_t pid, struct block *copy, unsigned int limit_ms)
{
	CUresult result = set_state(pid, CU_PROCESS_STATE_LOCKED);

	for (unsigned int waited_ms = 0; result == CUDA_SUCCESS; waited_ms++) {
		if (!look(pid, copy))
			return CUDA_ERROR_OPERATING_SYSTEM;
		if (!copy->work && !copy->changing)
			return CUDA_SUCCESS;
		if (waited_ms >= (limit_ms ?: CALL_LIMIT_MS))
			return set_state(pid, CU_PROCESS_STATE_RUNNING) ?: CUDA_ERROR_NOT_READY;
		sleep_ms(1);
	}
	return result;
}

EXPORT CUresult cuCheckpointProcessLock(int pid, CUcheckpointLockArgs *args)
{
	struct block copy;
	CUresult result = require_state(pid, &copy, CU_PROCESS_STATE_RUNNING);

	if (args && (args->reserved0 || args->reserved1[0] || args->reserved1[6]))
		return CUDA_ERROR_INVALID_VALUE;
	return result ?: fault("lock", pid) ?: lock_process(pid, &copy, args ? args->timeoutMs : 0);
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
	bool is_named = false;

	if (getenv("GPUCKPT_FAKE_NEEDS_INIT") && !initialised)
		return CUDA_ERROR_NOT_INITIALIZED;
	/* A device map must name the first GPU; what else it names need not be here. */
	for (unsigned int n = 0; args && n < args->gpuPairsCount; n++)
		is_named = is_named || args->gpuPairs[n].oldUuid.bytes[0] == 0x11;
	if (args && args->gpuPairsCount && !is_named)
		return CUDA_ERROR_INVALID_VALUE;
	return result ?: fault("restore", pid) ?: command_target(pid, &copy, COMMAND_RESTORE);
}

EXPORT CUresult cuCheckpointProcessUnlock(int pid, CUcheckpointUnlockArgs *args)
{
	struct block copy;
	CUresult result = require_state(pid, &copy, CU_PROCESS_STATE_LOCKED);

	if (args && args->reserved[0])
		return CUDA_ERROR_INVALID_VALUE;
	return result ?: fault("unlock", pid) ?: set_state(pid, CU_PROCESS_STATE_RUNNING);
}

#endif
