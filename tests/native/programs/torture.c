// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * A tree of two processes with a random memory layout, which tells whether it is still the same.
 *
 *   torture SEED FOLDER
 *
 * With an odd seed the child inherits its parent's layout, and the two write some pages apart; with an even one it has
 * its own.
 *
 * Parent and child write FOLDER/parent and FOLDER/child when they are ready and on every SIGUSR1. Each has one line,
 * "<number of the answer> <digest of the contents> <digest of the layout>". The layout is every range of addresses with
 * its protection and sharing; how many mappings the kernel keeps for a range does not count.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096UL
#define MAX_REGIONS 96
#define MAX_REGION_PAGES 700UL

struct region {
	unsigned char *at;
	size_t len;
	int prot;
};

static struct region regions[MAX_REGIONS];
static unsigned n_regions;
static uint64_t state;
static const char *folder;

static uint64_t rnd(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static void die(const char *what)
{
	fprintf(stderr, "torture: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void add(void *at, size_t len, int prot)
{
	if (n_regions == MAX_REGIONS)
		die("too many regions");
	regions[n_regions++] = (struct region){at, len, prot};
}

/* Whole, in part, or one page in many, so that runs of all lengths arise; the rest stays unpopulated. */
static void scribble(unsigned char *at, size_t len)
{
	unsigned step = rnd(3) ? 1 : 1 + rnd(9), kept = rnd(3) ? 1000 : 700;
	size_t page, word;

	for (page = 0; page < len / PAGE; page += step) {
		uint64_t *words = (uint64_t *)(at + page * PAGE);

		if (rnd(1000) >= kept)
			continue;
		for (word = 0; word < PAGE / sizeof(*words); word += 1 + rnd(200))
			words[word] = state;
	}
}

static size_t random_len(void)
{
	return PAGE * (1 + rnd(rnd(4) ? 40 : MAX_REGION_PAGES));
}

static void *map(size_t len, int flags, int fd)
{
	void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (at == MAP_FAILED)
		die("mmap");
	return at;
}

static int random_prot(void)
{
	static const int prots[] = {
		PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC,
	};

	return prots[rnd(sizeof(prots) / sizeof(*prots))];
}

static void random_advice(void *at, size_t len)
{
	static const int advice[] = {MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_WIPEONFORK, MADV_DONTFORK};
	unsigned pick = rnd(2 * sizeof(advice) / sizeof(*advice));

	/* The last two change what the child has, which is the parent's to ask for: only the first three are safe. */
	if (pick < 3)
		madvise(at, len, advice[pick]);
}

static void anonymous(void)
{
	size_t len = random_len(), hole;
	unsigned char *at = map(len, MAP_PRIVATE | MAP_ANONYMOUS | (rnd(5) ? 0 : MAP_NORESERVE), -1);
	int prot = random_prot();

	random_advice(at, len);
	scribble(at, len);
	if (!rnd(6))
		mlock(at, len < 16 * PAGE ? len : 16 * PAGE); /* beyond RLIMIT_MEMLOCK it fails, and that is fine */
	if (len > 8 * PAGE && !rnd(3)) {
		hole = PAGE * (1 + rnd(len / PAGE - 2));
		if (munmap(at + hole, PAGE))
			die("munmap");
		add(at, hole, PROT_READ | PROT_WRITE);
		at += hole + PAGE;
		len -= hole + PAGE;
	}
	if (mprotect(at, len, prot))
		die("mprotect");
	add(at, len, prot);
}

static int new_file(size_t len)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/file-%d-%u", folder, getpid(), n_regions);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || ftruncate(fd, len))
		die(path);
	return fd;
}

static void file_mapping(int flags)
{
	size_t len = random_len();
	int fd = new_file(len);
	unsigned char *shared = map(len, MAP_SHARED, fd), *at;

	scribble(shared, len);
	munmap(shared, len);
	at = map(len, flags, fd);
	close(fd);
	scribble(at, len);
	add(at, len, PROT_READ | PROT_WRITE);
}

static void shared_anonymous(void)
{
	size_t len = random_len();
	void *at = map(len, MAP_SHARED | MAP_ANONYMOUS, -1);

	scribble(at, len);
	add(at, len, PROT_READ | PROT_WRITE);
}

static void memfd(void)
{
	size_t len = random_len();
	int fd = memfd_create("torture", 0);
	void *at;

	if (fd < 0 || ftruncate(fd, len))
		die("memfd");
	at = map(len, MAP_SHARED, fd);
	if (rnd(2))
		close(fd);
	scribble(at, len);
	add(at, len, PROT_READ | PROT_WRITE);
}

static void posix_shm(void)
{
	size_t len = random_len();
	char name[64];
	void *at;
	int fd;

	/* The name stays while the processes live: an unlinked one would be used up by the first restore. */
	snprintf(name, sizeof(name), "/torture-%d-%u", getpid(), n_regions);
	fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, len))
		die("shm_open");
	at = map(len, MAP_SHARED, fd);
	close(fd);
	scribble(at, len);
	add(at, len, PROT_READ | PROT_WRITE);
}

/* Only where CRIU restores IPC objects: it needs an IPC namespace of its own. */
static void sysv_shm(void)
{
	size_t len = random_len();
	int id = shmget(IPC_PRIVATE, len, 0600 | IPC_CREAT);
	void *at = id < 0 ? (void *)-1 : shmat(id, NULL, 0);

	if (at == (void *)-1)
		die("shmat");
	scribble(at, len);
	add(at, len, PROT_READ | PROT_WRITE);
}

static void heap(void)
{
	size_t len = random_len();
	unsigned char *at = malloc(len + 2 * PAGE);

	if (!at)
		die("malloc");
	at = (unsigned char *)(((uintptr_t)at + PAGE - 1) & ~(PAGE - 1));
	memset(at, 0, len);
	scribble(at, len);
	add(at, len, PROT_READ | PROT_WRITE);
}

static void build(bool has_ipc)
{
	unsigned i, n = 12 + rnd(30);

	for (i = 0; i < n; i++) {
		switch (rnd(12)) {
		case 0:
			file_mapping(MAP_PRIVATE);
			break;
		case 1:
			file_mapping(MAP_SHARED);
			break;
		case 2:
			shared_anonymous();
			break;
		case 3:
			memfd();
			break;
		case 4:
			if (has_ipc)
				sysv_shm();
			else
				posix_shm();
			break;
		case 5:
			heap();
			break;
		default:
			anonymous();
		}
	}
}

/* Parent and child change some pages after the fork and go on sharing the others. */
static void diverge(uint64_t salt)
{
	unsigned i;

	state ^= salt;
	for (i = 0; i < n_regions; i++)
		if ((regions[i].prot & PROT_WRITE) && !rnd(3))
			regions[i].at[rnd(regions[i].len)] ^= 1 + rnd(255);
}

static uint64_t hash(uint64_t sum, const void *data, size_t len)
{
	const unsigned char *bytes = data;

	while (len--)
		sum = (sum ^ *bytes++) * 1099511628211ULL;
	return sum;
}

static uint64_t digest_contents(void)
{
	uint64_t sum = 14695981039346656037ULL;
	unsigned i;

	for (i = 0; i < n_regions; i++) {
		struct region *r = &regions[i];

		if (!(r->prot & PROT_READ))
			mprotect(r->at, r->len, PROT_READ);
		sum = hash(sum, r->at, r->len);
		if (!(r->prot & PROT_READ))
			mprotect(r->at, r->len, r->prot);
	}
	return sum;
}

/* Neighbours of one kind are one range: a mapped restore may keep several mappings where there was one. */
static uint64_t digest_layout(void)
{
	struct {
		unsigned long start, end;
		char prot[5];
	} now, range = {};
	uint64_t sum = 14695981039346656037ULL;
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[4096];

	if (!maps)
		die("/proc/self/maps");
	memset(&now, 0, sizeof(now));
	while (fgets(line, sizeof(line), maps)) {
		if (strstr(line, "[vdso]") || strstr(line, "[vvar") || strstr(line, "[vsyscall]"))
			continue;
		if (sscanf(line, "%lx-%lx %4s", &now.start, &now.end, now.prot) != 3)
			die("maps");
		if (now.start == range.end && !strcmp(now.prot, range.prot)) {
			range.end = now.end;
			continue;
		}
		sum = hash(sum, &range, sizeof(range));
		range = now;
	}
	fclose(maps);
	return hash(sum, &range, sizeof(range));
}

static void report(const char *who, unsigned number)
{
	char path[4096], next[4096 + 8];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", folder, who);
	snprintf(next, sizeof(next), "%s.next", path);
	f = fopen(next, "we");
	if (!f)
		die(next);
	fprintf(f, "%u %016llx %016llx\n", number, (unsigned long long)digest_contents(),
		(unsigned long long)digest_layout());
	if (fclose(f) || rename(next, path))
		die(path);
}

static int answer(const char *who)
{
	char rehearsal[64];
	unsigned number;
	sigset_t asked;
	int sig;

	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	/* libc's first buffers belong to the layout. The name differs: who sees `who` may checkpoint us at once. */
	snprintf(rehearsal, sizeof(rehearsal), "%s.rehearsal", who);
	report(rehearsal, 0);
	for (number = 0;; number++) {
		report(who, number);
		if (sigwait(&asked, &sig))
			return 1;
	}
}

int main(int argc, char **argv)
{
	sigset_t asked;
	bool inherits;
	pid_t child;

	if (argc != 3 && argc != 4) {
		fprintf(stderr, "usage: torture SEED FOLDER [ipc]\n");
		return 2;
	}
	state = (strtoull(argv[1], NULL, 10) + 1) * 88172645463325252ULL;
	folder = argv[2];
	sigemptyset(&asked);
	sigaddset(&asked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &asked, NULL);

	inherits = strtoull(argv[1], NULL, 10) % 2;
	if (inherits)
		build(argc == 4);
	child = fork();
	if (child < 0)
		die("fork");
	if (inherits) {
		diverge(child ? 1 : 2);
	} else {
		state ^= child ? 1 : 2;
		build(argc == 4);
	}
	return answer(child ? "parent" : "child");
}
