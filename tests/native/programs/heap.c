// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Workload of the restore bench: N MiB of random memory. It is private (anonymous), private with the advice to use no
 * huge pages, or shared (memfd). Scattered: private, every other page untouched, among thousands of small mappings.
 * Inherited: private, and three children, whose files are REPORT.1 to REPORT.3, share it with their parent.
 *
 *   heap private|small-pages|shared|scattered|inherited MIB REPORT
 *
 * On SIGUSR1 it reads all of it and replaces the file REPORT by one line: "<number of the answer> <digest in hex>".
 * The first line, number 0, appears when the memory is filled.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define SMALL_MAPPINGS 6000
#define CHILDREN 3

/* Each is two mappings, since its pages differ in what is allowed; only the first is ever written. */
static int add_small_mappings(void)
{
	int i;

	for (i = 0; i < SMALL_MAPPINGS; i++) {
		char *at = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (at == MAP_FAILED || mprotect(at + PAGE, PAGE, PROT_READ))
			return -1;
		at[0] = 1;
	}
	return 0;
}

static uint64_t *allocate(const char *kind, size_t len)
{
	int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
	void *at;

	if (!strcmp(kind, "shared")) {
		flags = MAP_SHARED;
		fd = memfd_create("heap", 0);
		if (fd < 0 || ftruncate(fd, len))
			return MAP_FAILED;
	}
	at = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (fd >= 0)
		close(fd);
	if (at != MAP_FAILED && (!strcmp(kind, "small-pages") || !strcmp(kind, "scattered")) &&
	    madvise(at, len, MADV_NOHUGEPAGE))
		return MAP_FAILED;
	if (!strcmp(kind, "scattered") && add_small_mappings())
		return MAP_FAILED;
	return at;
}

static void fill(uint64_t *words, size_t n, int every_other_page)
{
	uint64_t x = 88172645463325252ULL;
	size_t i;

	for (i = 0; i < n; i++) {
		if (every_other_page && i * sizeof(*words) / PAGE % 2)
			continue;
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		words[i] = x;
	}
}

static uint64_t digest(const uint64_t *words, size_t n)
{
	uint64_t sum = 14695981039346656037ULL;
	size_t i;

	for (i = 0; i < n; i++)
		sum = (sum ^ words[i]) * 1099511628211ULL;
	return sum;
}

static void report(const char *path, unsigned number, uint64_t sum)
{
	char next[4096];
	FILE *f;

	snprintf(next, sizeof(next), "%s.next", path);
	f = fopen(next, "w");
	if (!f)
		exit(1);
	fprintf(f, "%u %016llx\n", number, (unsigned long long)sum);
	if (fclose(f) || rename(next, path))
		exit(1);
}

/* Returns in the parent, which keeps the path, and in each child, which gets one of its own. */
static void fork_children(char *path, size_t size)
{
	size_t len = strlen(path);
	int i;

	for (i = 1; i <= CHILDREN; i++) {
		pid_t child = fork();

		if (child < 0)
			exit(1);
		if (!child) {
			snprintf(path + len, size - len, ".%d", i);
			return;
		}
	}
}

int main(int argc, char **argv)
{
	char path[4096];
	sigset_t asked;
	uint64_t *words;
	unsigned number = 0;
	size_t len;
	int sig;

	if (argc != 4) {
		fprintf(stderr, "usage: heap private|small-pages|shared|scattered|inherited MIB REPORT\n");
		return 2;
	}
	len = strtoull(argv[2], NULL, 10) << 20;
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &asked, NULL);

	words = allocate(argv[1], len);
	if (words == MAP_FAILED) {
		perror("heap: can't allocate");
		return 1;
	}
	fill(words, len / sizeof(*words), !strcmp(argv[1], "scattered"));
	snprintf(path, sizeof(path), "%s", argv[3]);
	if (!strcmp(argv[1], "inherited"))
		fork_children(path, sizeof(path));
	do
		report(path, number++, digest(words, len / sizeof(*words)));
	while (!sigwait(&asked, &sig));
	return 1;
}
