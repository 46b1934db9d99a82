/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A program for tests of checkpoints: threads that use memory of fake GPUs at random, over the driver API.
 *
 *   staging_workload --socket PATH [--seed N] [--threads N] [--gpus N] [--proc-address]
 *   staging_workload --rounds N --file PATH [the same]
 *
 * Threads allocate (also rows, and in stream order), fill, copy, launch the fake's kernel, check and free. A wrong
 * content or a call that fails ends the program with 1 and a message. With --proc-address it finds functions as the
 * CUDA runtime does. Each connection to the unix socket PATH asks one thing:
 *   digest  answers steps=S mib=N digest=D, of all memory with its addresses, while threads make no step
 *   pause   lets the threads finish their step and wait; answers as stats
 *   go      lets them go on; answers as stats
 *   stats   answers paused=P steps=S,S,…: those of each thread
 *
 * With --rounds it asks the staging library in itself to put all memory aside and to bring it back, so many times. The
 * threads go on meanwhile. It checks and frees everything at its end, and prints steps=S away=A: how many steps began
 * and ended while the memory was away. Built with STAGING_IS_LINKED the library is part of it, so that sanitizers see
 * both.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "gpuckpt_cuda_abi.h"
#include "gpuckpt_cuda_staging_client.h"

#define SLOTS 5
#define MIB (1UL << 20)
#define MAX_BYTES (4 * MIB + 4097)
#define MAX_THREADS 32
#define MAX_GPUS 16

static struct {
	CUresult (*init)(unsigned int);
	CUresult (*ctx_retain)(CUcontext *, CUdevice);
	CUresult (*ctx_set)(CUcontext);
	CUresult (*ctx_wait)(void);
	CUresult (*peers)(CUcontext, unsigned int);
	CUresult (*stream_create)(void **, unsigned int);
	CUresult (*stream_wait)(void *);
	CUresult (*mem_alloc)(uint64_t *, size_t);
	CUresult (*mem_alloc_pitch)(uint64_t *, size_t *, size_t, size_t, unsigned int);
	CUresult (*mem_alloc_async)(uint64_t *, size_t, void *);
	CUresult (*mem_free)(uint64_t);
	CUresult (*mem_free_async)(uint64_t, void *);
	CUresult (*set_async)(uint64_t, unsigned char, size_t, void *);
	CUresult (*to_gpu_async)(uint64_t, const void *, size_t, void *);
	CUresult (*to_host_async)(void *, uint64_t, size_t, void *);
	CUresult (*to_host)(void *, uint64_t, size_t);
	CUresult (*between_async)(uint64_t, uint64_t, size_t, void *);
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
	uint32_t generation; /* of what its contents began as: a pattern of it and the address, or one byte */
	unsigned char added; /* to each byte since */
	bool is_pattern;
	bool is_ordered;        /* of cuMemAllocAsync */
	uint64_t pattern_start; /* the address that its pattern is of: a copy keeps that of its source */
};

struct worker {
	pthread_t thread;
	pthread_mutex_t busy; /* held during a step */
	CUcontext context;
	unsigned int seed;
	uint32_t generation;
	unsigned long steps;
	struct slot slots[SLOTS];
	void *stream;
	unsigned char *memory, *expected;
};

static struct worker workers[MAX_THREADS];
static int nr_workers = 4, nr_gpus = 1;
static CUcontext contexts[MAX_GPUS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool paused, stopping, is_away;
static unsigned long steps_while_away;

static void __attribute__((noreturn)) die(const char *what, unsigned long number)
{
	fprintf(stderr, "staging_workload: %s: %lu\n", what, number);
	_exit(1);
}

static void must(const char *call, CUresult result)
{
	if (result != CUDA_SUCCESS)
		die(call, result);
}

/* --- the driver --- */

static void *find(void *library, bool by_proc_address, const char *name, const char *ending)
{
	CUresult (*get_proc_address)(const char *, void **, int, uint64_t, int *);
	char whole[64];
	void *found;

#ifdef STAGING_IS_LINKED
	get_proc_address = cuGetProcAddress_v2;
#else
	get_proc_address = dlsym(library, "cuGetProcAddress_v2");
#endif
	snprintf(whole, sizeof(whole), "%s%s", name, ending);
	if (by_proc_address)
		must(name, get_proc_address(name, &found, 12080, 0, NULL));
	else
		found = dlsym(library, whole);
	if (!found)
		die(whole, 0);
	return found;
}

static void open_driver(bool by_proc_address)
{
	void *library = dlopen(getenv("GPUCKPT_LIBCUDA") ?: "libcuda.so.1", RTLD_NOW);

	if (!library)
		die(dlerror(), 0);
#define FIND(_member, _name, _ending) cuda._member = find(library, by_proc_address, #_name, _ending);
	FIND(init, cuInit, "")
	FIND(ctx_retain, cuDevicePrimaryCtxRetain, "")
	FIND(ctx_set, cuCtxSetCurrent, "")
	FIND(ctx_wait, cuCtxSynchronize, "")
	FIND(peers, cuCtxEnablePeerAccess, "")
	FIND(stream_create, cuStreamCreate, "")
	FIND(stream_wait, cuStreamSynchronize, "")
	FIND(mem_alloc, cuMemAlloc, "_v2")
	FIND(mem_alloc_pitch, cuMemAllocPitch, "_v2")
	FIND(mem_alloc_async, cuMemAllocAsync, "")
	FIND(mem_free, cuMemFree, "_v2")
	FIND(mem_free_async, cuMemFreeAsync, "")
	FIND(set_async, cuMemsetD8Async, "")
	FIND(to_gpu_async, cuMemcpyHtoDAsync, "_v2")
	FIND(to_host_async, cuMemcpyDtoHAsync, "_v2")
	FIND(to_host, cuMemcpyDtoH, "_v2")
	FIND(between_async, cuMemcpyDtoDAsync, "_v2")
	FIND(range, cuMemGetAddressRange, "_v2")
	FIND(launch, cuLaunchKernel, "")
#undef FIND
}

static void open_gpus(void)
{
	must("cuInit", cuda.init(0));
	for (int n = 0; n < nr_gpus; n++)
		must("cuDevicePrimaryCtxRetain", cuda.ctx_retain(&contexts[n], n));
	for (int n = 0; n < nr_gpus; n++) {
		must("cuCtxSetCurrent", cuda.ctx_set(contexts[n]));
		for (int other = 0; other < nr_gpus; other++)
			if (other != n)
				must("cuCtxEnablePeerAccess", cuda.peers(contexts[other], 0));
	}
}

/* --- what the threads do --- */

static unsigned int random_below(struct worker *worker, unsigned int limit)
{
	return rand_r(&worker->seed) % limit;
}

static void expect(const struct slot *slot, unsigned char *memory)
{
	for (size_t n = 0; n < slot->bytes; n++) {
		uint64_t word = (slot->pattern_start + n / 8 * 8) * 0x9e3779b97f4a7c15UL + slot->generation;

		memory[n] = (slot->is_pattern ? word >> (n % 8 * 8) : slot->generation) + slot->added;
	}
}

static void allocate(struct worker *worker, struct slot *slot)
{
	static const size_t sizes[] = {
		512, MIB, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 3 * MIB + 511, MAX_BYTES,
	};
	size_t pitch;

	*slot = (struct slot){.bytes = sizes[random_below(worker, sizeof(sizes) / sizeof(sizes[0]))]};
	switch (random_below(worker, 4)) {
	case 0:
		slot->is_ordered = true;
		must("cuMemAllocAsync", cuda.mem_alloc_async(&slot->address, slot->bytes, worker->stream));
		break;
	case 1:
		must("cuMemAllocPitch", cuda.mem_alloc_pitch(&slot->address, &pitch, 1000, slot->bytes / 1024 + 1, 4));
		slot->bytes = pitch * (slot->bytes / 1024 + 1);
		if (pitch < 1000 || slot->bytes > MAX_BYTES + 2048)
			die("a wrong pitch", pitch);
		break;
	default:
		must("cuMemAlloc", cuda.mem_alloc(&slot->address, slot->bytes));
	}
}

static void fill(struct worker *worker, struct slot *slot)
{
	slot->generation = ++worker->generation;
	slot->pattern_start = slot->address;
	slot->added = 0;
	slot->is_pattern = random_below(worker, 2);
	if (!slot->is_pattern) {
		if (!random_below(worker, 3))
			slot->generation = 0; /* zeros take a way of their own through staging */
		must("cuMemsetD8Async", cuda.set_async(slot->address, slot->generation, slot->bytes, worker->stream));
		return;
	}
	expect(slot, worker->expected);
	must("cuMemcpyHtoDAsync", cuda.to_gpu_async(slot->address, worker->expected, slot->bytes, worker->stream));
	must("cuStreamSynchronize", cuda.stream_wait(worker->stream));
}

static void add(struct worker *worker, struct slot *slot)
{
	unsigned char number = random_below(worker, 256);
	void *parameters[] = {&slot->address, &slot->bytes, &number};

	must("cuLaunchKernel", cuda.launch(NULL, 1, 1, 1, 1, 1, 1, 0, worker->stream, parameters, NULL));
	slot->added += number;
}

/* Over another slot of its size, where there is one. Each step has to make a call that can be held up. */
static void copy(struct worker *worker, struct slot *slot)
{
	struct slot *other = &worker->slots[random_below(worker, SLOTS)];
	uint64_t address = other->address;
	bool is_ordered = other->is_ordered;

	if (!address || other == slot || other->bytes != slot->bytes) {
		add(worker, slot);
		return;
	}
	must("cuMemcpyDtoDAsync", cuda.between_async(address, slot->address, slot->bytes, worker->stream));
	*other = *slot;
	other->address = address;
	other->is_ordered = is_ordered;
}

static void check(struct worker *worker, struct slot *slot)
{
	uint64_t base;
	size_t bytes;

	if (random_below(worker, 2)) {
		must("cuMemcpyDtoHAsync",
		     cuda.to_host_async(worker->memory, slot->address, slot->bytes, worker->stream));
		must("cuStreamSynchronize", cuda.stream_wait(worker->stream));
	} else {
		must("cuStreamSynchronize", cuda.stream_wait(worker->stream));
		must("cuMemcpyDtoH", cuda.to_host(worker->memory, slot->address, slot->bytes));
	}
	expect(slot, worker->expected);
	if (memcmp(worker->memory, worker->expected, slot->bytes))
		die("memory of the GPU has other contents, bytes", slot->bytes);
	must("cuMemGetAddressRange", cuda.range(&base, &bytes, slot->address + slot->bytes - 1));
	if (base != slot->address || bytes != slot->bytes)
		die("an address is in another range, bytes", bytes);
}

static void release(struct worker *worker, struct slot *slot)
{
	if (slot->is_ordered)
		must("cuMemFreeAsync", cuda.mem_free_async(slot->address, worker->stream));
	else
		must("cuMemFree", cuda.mem_free(slot->address));
	slot->address = 0;
}

static void step(struct worker *worker)
{
	struct slot *slot = &worker->slots[random_below(worker, SLOTS)];

	if (!slot->address) {
		allocate(worker, slot);
		fill(worker, slot);
		return;
	}
	switch (random_below(worker, 6)) {
	case 0:
		fill(worker, slot);
		break;
	case 1:
		copy(worker, slot);
		break;
	case 2:
		/* Or at once: whoever frees memory waits for the work on it. */
		if (random_below(worker, 2))
			check(worker, slot);
		release(worker, slot);
		break;
	case 3:
		check(worker, slot);
		break;
	default:
		add(worker, slot);
	}
}

static void wait_for_go(void)
{
	pthread_mutex_lock(&lock);
	while (paused)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

static void *work(void *argument)
{
	const struct timespec breath = {.tv_nsec = 1000000};
	struct worker *worker = argument;

	must("cuCtxSetCurrent", cuda.ctx_set(worker->context));
	must("cuStreamCreate", cuda.stream_create(&worker->stream, 1));
	while (!__atomic_load_n(&stopping, __ATOMIC_ACQUIRE)) {
		bool was_away = __atomic_load_n(&is_away, __ATOMIC_ACQUIRE);

		wait_for_go();
		pthread_mutex_lock(&worker->busy);
		if (!__atomic_load_n(&paused, __ATOMIC_ACQUIRE)) {
			step(worker);
			__atomic_add_fetch(&worker->steps, 1, __ATOMIC_RELAXED);
		}
		pthread_mutex_unlock(&worker->busy);
		if (was_away && __atomic_load_n(&is_away, __ATOMIC_ACQUIRE))
			__atomic_add_fetch(&steps_while_away, 1, __ATOMIC_RELAXED);
		/* Else nobody else gets the lock. */
		nanosleep(&breath, NULL);
	}
	for (int n = 0; n < SLOTS; n++)
		if (worker->slots[n].address) {
			check(worker, &worker->slots[n]);
			release(worker, &worker->slots[n]);
		}
	free(worker->memory);
	free(worker->expected);
	return NULL;
}

static void start_workers(unsigned int seed)
{
	for (int n = 0; n < nr_workers; n++) {
		struct worker *worker = &workers[n];

		pthread_mutex_init(&worker->busy, NULL);
		worker->seed = seed * 1000 + n;
		worker->generation = n * 1000000;
		worker->context = contexts[n % nr_gpus];
		worker->memory = malloc(MAX_BYTES + 2048);
		worker->expected = malloc(MAX_BYTES + 2048);
		if (!worker->memory || !worker->expected || pthread_create(&worker->thread, NULL, work, worker))
			die("a thread cannot be started", errno);
	}
}

/* --- what is asked --- */

static void hold_workers(bool held)
{
	for (int n = 0; n < nr_workers; n++)
		if (held)
			pthread_mutex_lock(&workers[n].busy);
		else
			pthread_mutex_unlock(&workers[n].busy);
}

static void set_paused(bool value)
{
	pthread_mutex_lock(&lock);
	__atomic_store_n(&paused, value, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	/* Steps that have begun end here; those that begin now see the new value. */
	hold_workers(true);
	hold_workers(false);
}

static uint64_t digest_slot(const struct worker *worker, const struct slot *slot, uint64_t digest)
{
	must("cuMemcpyDtoH", cuda.to_host(worker->memory, slot->address, slot->bytes));
	digest = (digest ^ slot->address) * 0x100000001b3UL;
	for (size_t n = 0; n < slot->bytes; n++)
		digest = (digest ^ worker->memory[n]) * 0x100000001b3UL;
	return digest;
}

static unsigned long count_steps(void)
{
	unsigned long steps = 0;

	for (int n = 0; n < nr_workers; n++)
		steps += __atomic_load_n(&workers[n].steps, __ATOMIC_RELAXED);
	return steps;
}

static void answer_digest(int client)
{
	uint64_t digest = 0xcbf29ce484222325UL;
	size_t bytes = 0;

	hold_workers(true);
	for (int n = 0; n < nr_workers; n++) {
		must("cuCtxSetCurrent", cuda.ctx_set(workers[n].context));
		must("cuCtxSynchronize", cuda.ctx_wait());
		for (int slot = 0; slot < SLOTS; slot++)
			if (workers[n].slots[slot].address) {
				digest = digest_slot(&workers[n], &workers[n].slots[slot], digest);
				bytes += workers[n].slots[slot].bytes;
			}
	}
	dprintf(client, "steps=%lu mib=%zu digest=%016lx\n", count_steps(), bytes / MIB, digest);
	hold_workers(false);
}

static void answer_stats(int client)
{
	dprintf(client, "paused=%d steps=", paused);
	for (int n = 0; n < nr_workers; n++)
		dprintf(client, "%s%lu", n ? "," : "", __atomic_load_n(&workers[n].steps, __ATOMIC_RELAXED));
	dprintf(client, "\n");
}

static void answer(int client)
{
	char question[16] = "";

	if (read(client, question, sizeof(question) - 1) <= 0)
		return;
	if (!strncmp(question, "digest", 6)) {
		answer_digest(client);
		return;
	}
	if (!strncmp(question, "pause", 5) || !strncmp(question, "go", 2))
		set_paused(question[0] == 'p');
	answer_stats(client);
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		die("the socket's path is too long", strlen(path));
	strcpy(address.sun_path, path);
	unlink(path);
	if (server < 0 || bind(server, (struct sockaddr *)&address, sizeof(address)) || listen(server, 8))
		die("the socket cannot be made", errno);
	return server;
}

static void __attribute__((noreturn)) serve(const char *path)
{
	int server = listen_at(path);

	/* A client that gave up waiting must not end us. */
	signal(SIGPIPE, SIG_IGN);
	for (;;) {
		int client = accept4(server, NULL, NULL, SOCK_CLOEXEC);

		if (client < 0)
			continue;
		answer(client);
		close(client);
	}
}

/* --- the library in this program --- */

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
	int socket;

	while ((socket = gc_staging_connect(getpid())) < 0)
		nanosleep(&pause, NULL);
	for (unsigned long n = 0; n < rounds; n++) {
		unsigned long before = count_steps();

		ask(socket, GS_STAGE, path);
		__atomic_store_n(&is_away, true, __ATOMIC_RELEASE);
		nanosleep(&pause, NULL);
		__atomic_store_n(&is_away, false, __ATOMIC_RELEASE);
		ask(socket, GS_BRING_BACK, path);
		while (count_steps() < before + 20)
			nanosleep(&pause, NULL);
	}
	close(socket);
	__atomic_store_n(&stopping, true, __ATOMIC_RELEASE);
	for (int n = 0; n < nr_workers; n++)
		pthread_join(workers[n].thread, NULL);
	printf("steps=%lu away=%lu\n", count_steps(), steps_while_away);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"socket", 1, NULL, 'p'},       {"seed", 1, NULL, 's'},
		{"threads", 1, NULL, 't'},      {"gpus", 1, NULL, 'g'},
		{"proc-address", 0, NULL, 'a'}, {"rounds", 1, NULL, 'r'},
		{"file", 1, NULL, 'f'},         {},
	};
	const char *path = NULL, *file = NULL;
	bool by_proc_address = false;
	unsigned long rounds = 0;
	unsigned int seed = 1;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'p':
			path = optarg;
			break;
		case 's':
			seed = atoi(optarg);
			break;
		case 't':
			nr_workers = atoi(optarg);
			break;
		case 'g':
			nr_gpus = atoi(optarg);
			break;
		case 'a':
			by_proc_address = true;
			break;
		case 'r':
			rounds = strtoul(optarg, NULL, 10);
			break;
		case 'f':
			file = optarg;
			break;
		default:
			return 2;
		}
	if (!(rounds ? file : path) || nr_workers < 1 || nr_workers > MAX_THREADS || nr_gpus < 1 || nr_gpus > MAX_GPUS)
		die("usage: staging_workload --socket PATH, or --rounds N --file PATH; threads and GPUs at most",
		    MAX_GPUS);
	open_driver(by_proc_address);
	open_gpus();
	start_workers(seed);
	if (!rounds)
		serve(path);
	stage_in_turns(rounds, file);
	return 0;
}
