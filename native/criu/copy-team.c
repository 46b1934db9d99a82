// SPDX-License-Identifier: GPL-2.0-only
/* See copy-team.h. Compiled twice: for CRIU here, and for the restorer in pie/. */
#include <errno.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "copy-team.h"

#define COPY_TEAM_STACK (32 << 10)

static void team_work(struct copy_team *team)
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

#ifdef __x86_64__

static long team_syscall6(long nr, long a, long b, long c, long d, long e, long f)
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
static long team_clone(struct clone_args *args, void (*entry)(struct copy_team *), struct copy_team *team)
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

static void team_exit(void)
{
	team_syscall6(__NR_exit, 0, 0, 0, 0, 0, 0);
}

static void team_wait_until_zero(int *word)
{
	int value;

	while ((value = __atomic_load_n(word, __ATOMIC_ACQUIRE)))
		team_syscall6(__NR_futex, (long)word, FUTEX_WAIT, value, 0, 0, 0);
}

static long team_mmap(unsigned long len)
{
	return team_syscall6(__NR_mmap, 0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void team_munmap(long addr, unsigned long len)
{
	team_syscall6(__NR_munmap, addr, len, 0, 0, 0, 0);
}

static long team_preadv(int fd, const struct iovec *iovs, int n, unsigned long off)
{
	return team_syscall6(__NR_preadv, fd, (long)iovs, n, off, 0, 0);
}

long team_madvise(unsigned long addr, unsigned long len, int advice)
{
	return team_syscall6(__NR_madvise, addr, len, advice, 0, 0, 0);
}

static void team_entry(struct copy_team *team)
{
	team_work(team);
	team_exit();
}

/* One more worker, on its own stack; false where the kernel gives none. */
static bool team_hire(struct copy_team *team, unsigned slot, long stack)
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

int copy_team_run(struct copy_team *team, unsigned threads, unsigned *used)
{
	unsigned helpers = 0, wanted, slot;
	long stacks = -1;

	wanted = threads < team->items ? threads : team->items;
	wanted = wanted > 1 ? wanted - 1 : 0;
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

int team_read(int fd, struct iovec *iovs, int n, unsigned long off)
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

#else

int copy_team_run(struct copy_team *team, unsigned threads, unsigned *used)
{
	team_work(team);
	*used = 1;
	return team->error;
}

/* Never asked for: switches_load() leaves one thread, and then CRIU reads as it always does. */
int team_read(int fd, struct iovec *iovs, int n, unsigned long off)
{
	return -ENOSYS;
}

/* A hint that is not taken. */
long team_madvise(unsigned long addr, unsigned long len, int advice)
{
	return -ENOSYS;
}

#endif
