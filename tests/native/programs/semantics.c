// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * What programs do with memory after a restore: grow, shrink, trim, allocate, make executable.
 *
 *   semantics CASE REPORT
 *
 * Prepares, writes REPORT ("0 ready"), and on SIGUSR1 does CASE and replaces REPORT by "1 ok" or "1 <what went wrong>".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define SIZE (24 * MIB)
#define CHUNK (3 * MIB)

static unsigned char *memory;
static pthread_barrier_t restored, done;
static const char *verdict = "ok";

static void *map(size_t len)
{
	void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		exit(1);
	return at;
}

static void pattern(unsigned char *at, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		at[i] = 1 + i % 251;
}

static bool has_pattern(const unsigned char *at, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		if (at[i] != 1 + i % 251)
			return false;
	return true;
}

static bool is_zero(const unsigned char *at, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		if (at[i])
			return false;
	return true;
}

static void prepare_mapping(void)
{
	memory = map(SIZE);
	pattern(memory, SIZE);
}

/* Growth may fail, and then the caller copies; it may not show foreign bytes. */
static const char *grow_mapping(void)
{
	unsigned char *larger = mremap(memory, SIZE, 2 * SIZE, MREMAP_MAYMOVE);

	if (larger == MAP_FAILED)
		return errno == EFAULT && has_pattern(memory, SIZE) ? "ok" : "mremap failed in another way";
	if (!has_pattern(larger, SIZE))
		return "contents lost by mremap";
	return is_zero(larger + SIZE, SIZE) ? "ok" : "growth is not zero";
}

/* A chunk in the middle of a larger mapping, shrunk before it grows: nothing marks its ends. */
static const char *shrink_and_grow(void)
{
	unsigned char *middle = memory + 5 * MIB + 64 * 1024, *larger;

	if (mremap(middle, CHUNK, CHUNK / 2, 0) != middle)
		return "can't shrink";
	larger = mremap(middle, CHUNK / 2, 4 * CHUNK, MREMAP_MAYMOVE);
	if (larger == MAP_FAILED)
		return errno == EFAULT ? "ok" : "mremap failed in another way";
	return is_zero(larger + CHUNK / 2, 4 * CHUNK - CHUNK / 2) ? "ok" : "growth is not zero";
}

static void prepare_realloc(void)
{
	mallopt(M_MMAP_THRESHOLD, 128 * 1024);
	memory = malloc(SIZE);
	pattern(memory, SIZE);
}

static const char *grow_by_realloc(void)
{
	unsigned char *at = realloc(memory, SIZE / 3);

	at = realloc(at, 4 * SIZE);
	if (!at || !has_pattern(at, SIZE / 3))
		return "contents lost by realloc";
	memset(at, 7, 4 * SIZE); /* SIGBUS here is what a mapping beyond the end of the image gives */
	free(at);
	return "ok";
}

enum { MAX_CHUNKS = 1500, LEN = 100 * 1024 };
static int n_chunks;

static void fill_and_free_heap(void)
{
	static unsigned char *chunks[MAX_CHUNKS];
	int i;

	for (i = 0; i < n_chunks; i++) {
		chunks[i] = malloc(LEN);
		pattern(chunks[i], LEN);
	}
	pthread_barrier_wait(&restored);
	for (i = n_chunks; i > 0; i--)
		free(chunks[i - 1]); /* the top of the heap is trimmed on the way */
	malloc_trim(0);
	for (i = 0; i < n_chunks; i++) {
		chunks[i] = calloc(1, LEN);
		if (!is_zero(chunks[i], LEN))
			verdict = "calloc returned memory that is not zero";
	}
}

/* A second thread gets an arena of its own, which glibc trims by madvise() and not by unmapping. */
static void *arena_thread(void *unused)
{
	(void)unused;
	free(malloc(64));
	fill_and_free_heap();
	pthread_barrier_wait(&done);
	return NULL;
}

static void start_arena(int chunks)
{
	pthread_t thread;

	n_chunks = chunks;
	mallopt(M_MMAP_THRESHOLD, 8 * MIB);
	mallopt(M_TRIM_THRESHOLD, 64 * 1024);
	pthread_barrier_init(&restored, NULL, 2);
	pthread_barrier_init(&done, NULL, 2);
	if (pthread_create(&thread, NULL, arena_thread, NULL))
		exit(1);
	usleep(800000); /* it fills its heap; more is not needed, for the barrier waits */
}

/* One heap of the arena, partly grown: its rest is inaccessible. */
static void prepare_arena(void)
{
	start_arena(400);
}

/* Several heaps, of which the first are full but for a rest that is too small for a chunk. */
static void prepare_full_arena(void)
{
	start_arena(MAX_CHUNKS);
}

static const char *trim_and_calloc(void)
{
	pthread_barrier_wait(&restored);
	pthread_barrier_wait(&done);
	return verdict;
}

enum { POOLED_LEN = 100 * 1024, POOLED_CHUNKS = 300 };
static unsigned char *pooled[POOLED_CHUNKS];

static void prepare_calloc(void)
{
	int i;

	for (i = 0; i < POOLED_CHUNKS; i++) {
		pooled[i] = malloc(POOLED_LEN);
		pattern(pooled[i], POOLED_LEN);
	}
}

/* An allocator that gives the freed pages back in between may take the next ones for zeros. */
static const char *free_and_calloc(void)
{
	int i;

	for (i = 0; i < POOLED_CHUNKS; i++)
		free(pooled[i]);
	for (i = 0; i < POOLED_CHUNKS; i++) {
		pooled[i] = calloc(1, POOLED_LEN);
		if (!is_zero(pooled[i], POOLED_LEN))
			return "calloc returned memory that is not zero";
	}
	return "ok";
}

static void prepare_code(void)
{
	static const unsigned char returns_42[] = {0xb8, 42, 0, 0, 0, 0xc3};

	prepare_mapping();
	memcpy(memory + 7 * MIB, returns_42, sizeof(returns_42));
}

/* As a JIT does: what was data becomes code. */
static const char *make_executable(void)
{
	if (mprotect(memory, SIZE, PROT_READ | PROT_EXEC))
		return "mprotect(PROT_EXEC) failed";
	return ((int (*)(void))(void *)(memory + 7 * MIB))() == 42 ? "ok" : "the code does something else";
}

static const struct {
	const char *name;
	void (*prepare)(void);
	const char *(*act)(void);
} cases[] = {
	{"grow", prepare_mapping, grow_mapping},
	{"shrink-grow", prepare_mapping, shrink_and_grow},
	{"realloc", prepare_realloc, grow_by_realloc},
	{"arena", prepare_arena, trim_and_calloc},
	{"full-arena", prepare_full_arena, trim_and_calloc},
	{"calloc", prepare_calloc, free_and_calloc},
	{"execute", prepare_code, make_executable},
};

static void report(const char *path, const char *line)
{
	char next[4096];
	FILE *f;

	snprintf(next, sizeof(next), "%s.next", path);
	f = fopen(next, "w");
	if (!f || fprintf(f, "%s\n", line) < 0 || fclose(f) || rename(next, path))
		exit(1);
}

int main(int argc, char **argv)
{
	char line[128];
	sigset_t asked;
	size_t i;
	int sig;

	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &asked, NULL);
	for (i = 0; argc == 3 && i < sizeof(cases) / sizeof(*cases); i++) {
		if (strcmp(argv[1], cases[i].name))
			continue;
		cases[i].prepare();
		report(argv[2], "0 ready");
		sigwait(&asked, &sig);
		snprintf(line, sizeof(line), "1 %s", cases[i].act());
		report(argv[2], line);
		pause();
	}
	fprintf(stderr, "usage: semantics grow|shrink-grow|realloc|arena|full-arena|calloc|execute REPORT\n");
	return 2;
}
