// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Workload of the restore bench: N MiB of random memory, private (anonymous), private with the advice to use no huge
 * pages, or shared (memfd).
 *
 *   heap private|small-pages|shared MIB REPORT
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
	if (at != MAP_FAILED && !strcmp(kind, "small-pages") && madvise(at, len, MADV_NOHUGEPAGE))
		return MAP_FAILED;
	return at;
}

static void fill(uint64_t *words, size_t n)
{
	uint64_t x = 88172645463325252ULL;
	size_t i;

	for (i = 0; i < n; i++) {
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

int main(int argc, char **argv)
{
	sigset_t asked;
	uint64_t *words;
	unsigned number = 0;
	size_t len;
	int sig;

	if (argc != 4) {
		fprintf(stderr, "usage: heap private|small-pages|shared MIB REPORT\n");
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
	fill(words, len / sizeof(*words));
	do
		report(argv[3], number++, digest(words, len / sizeof(*words)));
	while (!sigwait(&asked, &sig));
	return 1;
}
