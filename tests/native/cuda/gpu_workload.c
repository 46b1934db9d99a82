/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A process that holds data on a GPU, for tests and benchmarks of checkpoint and restore. It talks to libcuda only.
 *
 *   gpu_workload --mib N --socket PATH [--processes P]
 *
 * Fills N MiB on the first GPU with a pattern, counts up every 10 ms, and answers each connection to the unix socket
 * PATH. To "digest" it answers counter=C mib=N digest=D free_mib=F, the digest computed from the GPU's memory at that
 * moment. To anything else it answers counter=C word=W, W being one word read from the GPU: the quickest proof of life.
 * With P processes, number 1 and up are children that answer at PATH.1, PATH.2, ...
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "gpuckpt_cuda_abi.h"

#define MIB (1UL << 20)
#define ALLOCATION_MIB 1024UL
#define CHUNK_MIB 32UL
#define MAX_ALLOCATIONS 64

static struct {
	CUresult (*init)(unsigned int);
	CUresult (*get_error_name)(CUresult, const char **);
	CUresult (*device_get)(CUdevice *, int);
	CUresult (*ctx_retain)(CUcontext *, CUdevice);
	CUresult (*ctx_set)(CUcontext);
	CUresult (*mem_alloc)(uint64_t *, size_t);
	CUresult (*to_device)(uint64_t, const void *, size_t);
	CUresult (*to_host)(void *, uint64_t, size_t);
	CUresult (*host_alloc)(void **, size_t);
	CUresult (*host_free)(void *);
	CUresult (*mem_info)(size_t *, size_t *);
} cuda;

static unsigned long mib;
static uint64_t allocations[MAX_ALLOCATIONS];

static void __attribute__((noreturn)) die(const char *what, const char *why)
{
	fprintf(stderr, "gpu_workload: %s: %s\n", what, why);
	exit(1);
}

static void must(CUresult result, const char *what)
{
	const char *name = "unknown error";

	if (result == CUDA_SUCCESS)
		return;
	cuda.get_error_name(result, &name);
	die(what, name);
}

static void *symbol(void *library, const char *name)
{
	void *address = dlsym(library, name);

	if (!address)
		die("libcuda lacks", name);
	return address;
}

static void open_driver(void)
{
	const char *path = getenv("GPUCKPT_LIBCUDA");
	void *library = dlopen(path && *path ? path : "libcuda.so.1", RTLD_NOW);

	if (!library)
		die("cannot open libcuda", dlerror());
	cuda.init = symbol(library, "cuInit");
	cuda.get_error_name = symbol(library, "cuGetErrorName");
	cuda.device_get = symbol(library, "cuDeviceGet");
	cuda.ctx_retain = symbol(library, "cuDevicePrimaryCtxRetain");
	cuda.ctx_set = symbol(library, "cuCtxSetCurrent");
	cuda.mem_alloc = symbol(library, "cuMemAlloc_v2");
	cuda.to_device = symbol(library, "cuMemcpyHtoD_v2");
	cuda.to_host = symbol(library, "cuMemcpyDtoH_v2");
	cuda.host_alloc = symbol(library, "cuMemAllocHost_v2");
	cuda.host_free = symbol(library, "cuMemFreeHost");
	cuda.mem_info = symbol(library, "cuMemGetInfo_v2");
}

/* The device address of a chunk, and its size in bytes; the last one may be smaller. */
static uint64_t chunk_at(unsigned long first_mib, size_t *bytes)
{
	unsigned long left = mib - first_mib;

	*bytes = (left < CHUNK_MIB ? left : CHUNK_MIB) * MIB;
	return allocations[first_mib / ALLOCATION_MIB] + first_mib % ALLOCATION_MIB * MIB;
}

static void fill_gpu(unsigned int seed)
{
	uint64_t *buffer = malloc(CHUNK_MIB * MIB), address;
	size_t bytes, n;

	if (!buffer)
		die("no memory", strerror(errno));
	for (unsigned long at = 0; at < mib; at += ALLOCATION_MIB)
		must(cuda.mem_alloc(&allocations[at / ALLOCATION_MIB],
				    (mib - at < ALLOCATION_MIB ? mib - at : ALLOCATION_MIB) * MIB),
		     "cuMemAlloc");
	for (unsigned long at = 0; at < mib; at += CHUNK_MIB) {
		address = chunk_at(at, &bytes);
		/* Odd multiplier: no two words of the whole are alike, nothing compresses away. */
		for (n = 0; n < bytes / 8; n++)
			buffer[n] = (at * (MIB / 8) + n + seed) * 0x9e3779b97f4a7c15UL;
		must(cuda.to_device(address, buffer, bytes), "cuMemcpyHtoD");
	}
	free(buffer);
}

/* Order matters: four interleaved polynomial sums, so that the compiler can keep four of them in flight. */
static uint64_t digest_words(const uint64_t *words, size_t count, uint64_t digest)
{
	uint64_t sums[4] = {digest, 1, 2, 3};

	for (size_t n = 0; n + 4 <= count; n += 4)
		for (int lane = 0; lane < 4; lane++)
			sums[lane] = sums[lane] * 0x100000001b3UL + words[n + lane];
	return sums[0] ^ sums[1] * 3 ^ sums[2] * 5 ^ sums[3] * 7;
}

static uint64_t digest_gpu(void)
{
	uint64_t digest = 0xcbf29ce484222325UL, address;
	void *buffer;
	size_t bytes;

	/* Pinned for speed, and only for as long as needed: the checkpoint shall not find it. */
	must(cuda.host_alloc(&buffer, CHUNK_MIB * MIB), "cuMemAllocHost");
	for (unsigned long at = 0; at < mib; at += CHUNK_MIB) {
		address = chunk_at(at, &bytes);
		must(cuda.to_host(buffer, address, bytes), "cuMemcpyDtoH");
		digest = digest_words(buffer, bytes / 8, digest);
	}
	must(cuda.host_free(buffer), "cuMemFreeHost");
	return digest;
}

static void answer(int client, unsigned long counter)
{
	size_t free_bytes, total;
	char question[16] = "";
	uint64_t word;

	if (read(client, question, sizeof(question) - 1) < 0)
		return;
	if (strncmp(question, "digest", 6)) {
		must(cuda.to_host(&word, allocations[0], sizeof(word)), "cuMemcpyDtoH");
		dprintf(client, "counter=%lu word=%016lx\n", counter, word);
		return;
	}
	must(cuda.mem_info(&free_bytes, &total), "cuMemGetInfo");
	dprintf(client, "counter=%lu mib=%lu digest=%016lx free_mib=%zu\n", counter, mib, digest_gpu(),
		free_bytes / MIB);
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		die("the socket's path is too long", path);
	strcpy(address.sun_path, path);
	unlink(path);
	if (server < 0 || bind(server, (struct sockaddr *)&address, sizeof(address)) || listen(server, 8))
		die(path, strerror(errno));
	return server;
}

static void serve(const char *path, unsigned int seed)
{
	struct pollfd server = {.events = POLLIN};
	unsigned long counter = 0;
	CUcontext context;
	CUdevice device;

	/* A client that gave up waiting must not end us. */
	signal(SIGPIPE, SIG_IGN);
	open_driver();
	must(cuda.init(0), "cuInit");
	must(cuda.device_get(&device, 0), "cuDeviceGet");
	must(cuda.ctx_retain(&context, device), "cuDevicePrimaryCtxRetain");
	must(cuda.ctx_set(context), "cuCtxSetCurrent");
	fill_gpu(seed);

	/* The socket appears when all is ready. */
	server.fd = listen_at(path);
	for (;; counter++) {
		int client;

		if (poll(&server, 1, 10) <= 0)
			continue;
		client = accept4(server.fd, NULL, NULL, SOCK_CLOEXEC);
		if (client < 0)
			continue;
		answer(client, counter);
		close(client);
	}
}

static void fork_others(const char *path, int processes, char *own_path, size_t size, unsigned int *seed)
{
	snprintf(own_path, size, "%s", path);
	*seed = 0;
	/* Before CUDA starts: a process that has CUDA state cannot be forked. */
	for (int n = 1; n < processes; n++) {
		if (fork())
			continue;
		snprintf(own_path, size, "%s.%d", path, n);
		*seed = n;
		return;
	}
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{"mib", required_argument, NULL, 'm'},
		{"socket", required_argument, NULL, 's'},
		{"processes", required_argument, NULL, 'p'},
		{},
	};
	const char *path = NULL;
	char own_path[512];
	unsigned int seed;
	int choice, processes = 1;

	while ((choice = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (choice == 'm')
			mib = strtoul(optarg, NULL, 10);
		else if (choice == 's')
			path = optarg;
		else if (choice == 'p')
			processes = atoi(optarg);
		else
			return 1;
	}
	if (!path || !mib || mib > MAX_ALLOCATIONS * ALLOCATION_MIB || processes < 1)
		die("usage", "gpu_workload --mib N --socket PATH [--processes P], N at most 65536");

	fork_others(path, processes, own_path, sizeof(own_path), &seed);
	serve(own_path, seed);
}
