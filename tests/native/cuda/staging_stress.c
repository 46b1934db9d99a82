/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A program for tests of libgpuckpt_staging.so: threads that allocate, fill, change, check and free memory of a GPU at
 * random, over the driver API.
 *
 *   staging_stress --seed N --threads N --seconds N [--rounds N --file PATH]
 *
 * It ends with 1 and a message when a content is wrong, or a call fails. With --rounds it asks the library in itself to
 * put all memory aside and to bring it back, so many times. The threads go on meanwhile. It prints "rounds=… steps=…
 * away=…": how many steps the threads made, and how many of them while the memory was away.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "gpuckpt_cuda_abi.h"
#include "gpuckpt_cuda_staging_client.h"

#define SLOTS 6
#define MIB (1UL << 20)
#define MAX_BYTES (6 * MIB + 4097)

static struct {
	CUresult (*init)(unsigned int);
	CUresult (*get_proc_address)(const char *, void **, int, uint64_t, int *);
	CUresult (*ctx_retain)(CUcontext *, CUdevice);
	CUresult (*ctx_set)(CUcontext);
	CUresult (*stream_create)(void **, unsigned int);
	CUresult (*stream_wait)(void *);
	CUresult (*mem_alloc)(uint64_t *, size_t);
	CUresult (*mem_free)(uint64_t);
	CUresult (*set_async)(uint64_t, unsigned char, size_t, void *);
	CUresult (*to_gpu_async)(uint64_t, const void *, size_t, void *);
	CUresult (*to_host)(void *, uint64_t, size_t);
	CUresult (*range)(uint64_t *, size_t *, uint64_t);
	CUresult (*launch)(void *, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,
			   unsigned int, void *, void **, void **);
} cuda;

#ifdef STAGING_IS_LINKED
extern CUresult cuGetProcAddress_v2(const char *, void **, int, uint64_t, int *);
#endif

struct slot {
	uint64_t address; /* 0: empty */
	size_t bytes;
	unsigned char base; /* of its contents: a pattern that begins with it, or this byte alone */
	bool is_pattern;
};

struct worker {
	pthread_t thread;
	unsigned int seed;
	struct slot slots[SLOTS];
	void *stream;
	unsigned char *memory, *expected;
};

static atomic_bool stop, is_away;
static atomic_ulong steps, steps_while_away;
static CUcontext context;

static void __attribute__((noreturn)) die(const char *what, long number)
{
	fprintf(stderr, "staging_stress: %s: %ld\n", what, number);
	_exit(1);
}

static void must(const char *call, CUresult result)
{
	if (result != CUDA_SUCCESS)
		die(call, result);
}

/* As the CUDA runtime finds functions: through the one that finds others. */
static void *find(const char *name)
{
	void *found = NULL;

	must(name, cuda.get_proc_address(name, &found, 12080, 0, NULL));
	return found;
}

static void open_driver(void)
{
	void *library = dlopen(getenv("GPUCKPT_LIBCUDA") ?: "libcuda.so.1", RTLD_NOW);

	if (!library)
		die(dlerror(), 0);
#ifdef STAGING_IS_LINKED
	cuda.get_proc_address = cuGetProcAddress_v2;
#else
	cuda.get_proc_address = dlsym(library, "cuGetProcAddress_v2");
#endif
	cuda.init = find("cuInit");
	cuda.ctx_retain = find("cuDevicePrimaryCtxRetain");
	cuda.ctx_set = find("cuCtxSetCurrent");
	cuda.stream_create = find("cuStreamCreate");
	cuda.stream_wait = find("cuStreamSynchronize");
	cuda.mem_alloc = find("cuMemAlloc");
	cuda.mem_free = find("cuMemFree");
	cuda.set_async = find("cuMemsetD8Async");
	cuda.to_gpu_async = find("cuMemcpyHtoDAsync");
	cuda.to_host = find("cuMemcpyDtoH");
	cuda.range = find("cuMemGetAddressRange");
	cuda.launch = find("cuLaunchKernel");
}

static void expect(const struct slot *slot, unsigned char *memory)
{
	for (size_t n = 0; n < slot->bytes; n++)
		memory[n] = slot->base + (slot->is_pattern ? (n >> 12) * 7 + n : 0);
}

static void allocate(struct worker *worker, struct slot *slot)
{
	static const size_t sizes[] = {512, MIB, 2 * MIB, 2 * MIB + 1, 3 * MIB + 511, MAX_BYTES};

	slot->bytes = sizes[rand_r(&worker->seed) % (sizeof(sizes) / sizeof(sizes[0]))];
	must("cuMemAlloc", cuda.mem_alloc(&slot->address, slot->bytes));
	slot->base = rand_r(&worker->seed);
	slot->is_pattern = rand_r(&worker->seed) % 2;
	if (rand_r(&worker->seed) % 4 == 0)
		slot->base = slot->is_pattern = 0;
	if (slot->is_pattern) {
		expect(slot, worker->expected);
		must("cuMemcpyHtoDAsync",
		     cuda.to_gpu_async(slot->address, worker->expected, slot->bytes, worker->stream));
		must("cuStreamSynchronize", cuda.stream_wait(worker->stream));
	} else {
		must("cuMemsetD8Async", cuda.set_async(slot->address, slot->base, slot->bytes, worker->stream));
	}
}

static void add(struct worker *worker, struct slot *slot)
{
	unsigned char number = rand_r(&worker->seed);
	void *parameters[] = {&slot->address, &slot->bytes, &number};

	must("cuLaunchKernel", cuda.launch(NULL, 1, 1, 1, 1, 1, 1, 0, worker->stream, parameters, NULL));
	slot->base += number;
}

static void check(struct worker *worker, struct slot *slot)
{
	uint64_t base;
	size_t bytes;

	must("cuStreamSynchronize", cuda.stream_wait(worker->stream));
	must("cuMemcpyDtoH", cuda.to_host(worker->memory, slot->address, slot->bytes));
	expect(slot, worker->expected);
	if (memcmp(worker->memory, worker->expected, slot->bytes))
		die("memory of the GPU has other contents", slot->bytes);
	must("cuMemGetAddressRange", cuda.range(&base, &bytes, slot->address + slot->bytes - 1));
	if (base != slot->address || bytes != slot->bytes)
		die("the range of an address is another one", bytes);
}

static void step(struct worker *worker)
{
	struct slot *slot = &worker->slots[rand_r(&worker->seed) % SLOTS];

	if (!slot->address) {
		allocate(worker, slot);
		return;
	}
	switch (rand_r(&worker->seed) % 3) {
	case 0:
		add(worker, slot);
		break;
	case 1:
		check(worker, slot);
		break;
	default:
		check(worker, slot);
		must("cuMemFree", cuda.mem_free(slot->address));
		slot->address = 0;
	}
}

static void *work(void *argument)
{
	struct worker *worker = argument;

	must("cuCtxSetCurrent", cuda.ctx_set(context));
	must("cuStreamCreate", cuda.stream_create(&worker->stream, 1));
	worker->memory = malloc(MAX_BYTES);
	worker->expected = malloc(MAX_BYTES);
	while (!atomic_load(&stop)) {
		bool was_away = atomic_load(&is_away);

		step(worker);
		atomic_fetch_add(&steps, 1);
		if (was_away && atomic_load(&is_away))
			atomic_fetch_add(&steps_while_away, 1);
	}
	for (size_t n = 0; n < SLOTS; n++)
		if (worker->slots[n].address) {
			check(worker, &worker->slots[n]);
			must("cuMemFree", cuda.mem_free(worker->slots[n].address));
		}
	free(worker->memory);
	free(worker->expected);
	return NULL;
}

static void ask(int socket, enum gs_request_kind kind, const char *path)
{
	static uint32_t number;
	struct gs_request request = {GS_MAGIC, kind, 10000, ++number};
	struct gs_answer answer;
	int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (file < 0 || !gc_staging_ask(socket, &request, file))
		die("the library cannot be asked", errno);
	close(file);
	if (!gc_staging_answer(socket, number, 60000, &answer))
		die("the library does not answer", kind);
	if (answer.refused || answer.staged != (kind == GS_STAGE))
		die(answer.text, kind);
}

static void stage_in_turns(unsigned long rounds, const char *path)
{
	const struct timespec pause = {.tv_nsec = 10000000};
	int socket = -1;

	while ((socket = gc_staging_connect(getpid())) < 0)
		nanosleep(&pause, NULL);
	for (unsigned long n = 0; n < rounds; n++) {
		unsigned long before = atomic_load(&steps);

		ask(socket, GS_STAGE, path);
		atomic_store(&is_away, true);
		nanosleep(&pause, NULL);
		atomic_store(&is_away, false);
		ask(socket, GS_BRING_BACK, path);
		while (atomic_load(&steps) < before + 20)
			nanosleep(&pause, NULL);
	}
	close(socket);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"seed", 1, NULL, 's'},    {"threads", 1, NULL, 't'},
						{"seconds", 1, NULL, 'd'}, {"rounds", 1, NULL, 'r'},
						{"file", 1, NULL, 'f'},    {}};
	unsigned long seed = 1, threads = 4, seconds = 0, rounds = 0;
	const char *path = NULL;
	struct worker *workers;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 's':
			seed = strtoul(optarg, NULL, 10);
			break;
		case 't':
			threads = strtoul(optarg, NULL, 10);
			break;
		case 'd':
			seconds = strtoul(optarg, NULL, 10);
			break;
		case 'r':
			rounds = strtoul(optarg, NULL, 10);
			break;
		case 'f':
			path = optarg;
			break;
		default:
			return 2;
		}

	open_driver();
	must("cuInit", cuda.init(0));
	must("cuDevicePrimaryCtxRetain", cuda.ctx_retain(&context, 0));
	workers = calloc(threads, sizeof(*workers));
	for (unsigned long n = 0; n < threads; n++) {
		workers[n].seed = seed * 1000 + n;
		if (pthread_create(&workers[n].thread, NULL, work, &workers[n]))
			die("no thread", errno);
	}
	if (rounds)
		stage_in_turns(rounds, path);
	else
		sleep(seconds);
	atomic_store(&stop, true);
	for (unsigned long n = 0; n < threads; n++)
		pthread_join(workers[n].thread, NULL);
	free(workers);
	printf("rounds=%lu steps=%lu away=%lu\n", rounds, atomic_load(&steps), atomic_load(&steps_while_away));
	return 0;
}
