/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_COPY_TEAM_H
#define GPUCKPT_COPY_TEAM_H

/*
 * Threads that fill memory of a task being restored. They live inside that task, so every one occupies a thread id of
 * its pid namespace, where tasks are about to be created by number: ids are therefore chosen, never left to the kernel.
 * The code serves CRIU and the restorer blob: raw system calls only, nothing of libc, no thread-local storage.
 */
#include <linux/futex.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define COPY_TEAM_MAX 256
#define COPY_TEAM_STACK (32 << 10)
#define COPY_TEAM_TID_ATTEMPTS 64
#define TEAM_MADV_POPULATE_READ 22 /* headers older than Linux 5.14 lack it */

struct copy_team {
	int (*work)(struct copy_team *team, unsigned item); /* 0, or a negative error that ends the work */
	unsigned items;
	void *data;
	int spare_tid; /* no task of the images uses this id or the COPY_TEAM_TID_ATTEMPTS below it */

	unsigned next;
	int error;
	bool short_handed;        /* the kernel gave fewer threads than were wanted */
	int alive[COPY_TEAM_MAX]; /* the kernel clears a slot when its thread is gone */
};

#ifdef __x86_64__

static inline long team_syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d;
	register long r8 asm("r8") = e;
	register long r9 asm("r9") = f;
	long ret;

	asm volatile("syscall"
		     : "=a"(ret)
		     : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return ret;
}

/* Returns the thread's id to the caller; the thread runs `entry`, which must not return. */
static inline long team_clone(struct clone_args *args, void (*entry)(struct copy_team *), struct copy_team *team)
{
	long ret;

	asm volatile("syscall\n\t"
		     "testq %%rax, %%rax\n\t"
		     "jnz 1f\n\t"
		     "movq %[team], %%rdi\n\t"
		     "call *%[entry]\n\t"
		     "ud2\n"
		     "1:"
		     : "=a"(ret)
		     : "0"(__NR_clone3), "D"(args), "S"(sizeof(*args)), [entry] "r"(entry), [team] "r"(team)
		     : "rcx", "r11", "memory", "cc");
	return ret;
}

static inline void team_exit(void)
{
	team_syscall6(__NR_exit, 0, 0, 0, 0, 0, 0);
}

static inline void team_wait_until_zero(int *word)
{
	int value;

	while ((value = __atomic_load_n(word, __ATOMIC_ACQUIRE)))
		team_syscall6(__NR_futex, (long)word, FUTEX_WAIT, value, 0, 0, 0);
}

static inline long team_mmap(unsigned long len)
{
	return team_syscall6(__NR_mmap, 0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static inline void team_munmap(long addr, unsigned long len)
{
	team_syscall6(__NR_munmap, addr, len, 0, 0, 0, 0);
}

static inline long team_preadv(int fd, const struct iovec *iovs, int n, unsigned long off)
{
	return team_syscall6(__NR_preadv, fd, (long)iovs, n, off, 0, 0);
}

static inline long team_madvise(unsigned long addr, unsigned long len, int advice)
{
	return team_syscall6(__NR_madvise, addr, len, advice, 0, 0, 0);
}

#define COPY_TEAM_HAS_THREADS true

#else /* one worker, the caller, on architectures without an entry stub above */

struct clone_args;
static inline long team_clone(struct clone_args *args, void (*entry)(struct copy_team *), struct copy_team *team)
{
	return -1;
}
static inline void team_exit(void)
{
}
static inline void team_wait_until_zero(int *word)
{
}
static inline long team_mmap(unsigned long len)
{
	return -1;
}
static inline void team_munmap(long addr, unsigned long len)
{
}
static inline long team_madvise(unsigned long addr, unsigned long len, int advice)
{
	return -1;
}
#ifdef CR_NOGLIBC
#define team_preadv(fd, iovs, n, off) sys_preadv(fd, (struct iovec *)(iovs), n, off)
#else
#define team_preadv(fd, iovs, n, off) preadv(fd, iovs, n, off)
#endif

#define COPY_TEAM_HAS_THREADS false

#endif

static inline void team_work(struct copy_team *team)
{
	unsigned item;
	int ret;

	while (!__atomic_load_n(&team->error, __ATOMIC_RELAXED)) {
		item = __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED);
		if (item >= team->items)
			return;
		ret = team->work(team, item);
		if (ret < 0)
			__atomic_store_n(&team->error, ret, __ATOMIC_RELAXED);
	}
}

static inline void team_entry(struct copy_team *team)
{
	team_work(team);
	team_exit();
}

/* One more worker, on its own stack; false where the kernel gives none. */
static inline bool team_hire(struct copy_team *team, unsigned slot, long stack)
{
	int attempt, tid;
	long ret;

	for (attempt = 0; attempt < COPY_TEAM_TID_ATTEMPTS; attempt++) {
		struct clone_args args = {
			.flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
				 CLONE_CHILD_CLEARTID,
			.child_tid = (unsigned long)&team->alive[slot],
			.stack = stack,
			.stack_size = COPY_TEAM_STACK,
			.set_tid = (unsigned long)&tid,
			.set_tid_size = 1,
		};

		tid = team->spare_tid--;
		team->alive[slot] = tid;
		ret = team_clone(&args, team_entry, team);
		if (ret > 0)
			return true;
		team->alive[slot] = 0;
		if (ret != -EEXIST)
			return false;
	}
	return false;
}

/*
 * Works through all items with up to `threads` workers, the caller being one of them.
 * Returns 0, or the first error; *used is the number of workers that there were.
 */
static inline int copy_team_run(struct copy_team *team, unsigned threads, unsigned *used)
{
	unsigned helpers = 0, wanted, slot;
	long stacks = -1;

	wanted = threads < team->items ? threads : team->items;
	wanted = wanted > 1 && COPY_TEAM_HAS_THREADS ? wanted - 1 : 0;
	if (wanted > COPY_TEAM_MAX)
		wanted = COPY_TEAM_MAX;
	if (wanted) {
		stacks = team_mmap(wanted * COPY_TEAM_STACK);
		if (stacks < 0)
			wanted = 0;
	}
	while (helpers < wanted && team_hire(team, helpers, stacks + helpers * COPY_TEAM_STACK))
		helpers++;
	team->short_handed = helpers < wanted;

	team_work(team);
	for (slot = 0; slot < helpers; slot++)
		team_wait_until_zero(&team->alive[slot]);
	if (wanted)
		team_munmap(stacks, wanted * COPY_TEAM_STACK);
	*used = helpers + 1;
	return team->error;
}

/* Fills `iovs` from the file; they are used up. Returns 0 or a negative error; the end of the file is one. */
static inline int team_read(int fd, struct iovec *iovs, int n, unsigned long off)
{
	while (n) {
		long got = team_preadv(fd, iovs, n, off);

		if (got == -EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? got : -EIO;
		off += got;
		while (n && iovs->iov_len <= got) {
			got -= iovs->iov_len;
			iovs++;
			n--;
		}
		if (n) {
			iovs->iov_base += got;
			iovs->iov_len -= got;
		}
	}
	return 0;
}

#endif
