/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The context pool runs in a process of its own. CRIU forks the restored tasks from itself. A thread, a device
 * or a mapping of the driver in CRIU would leak into every one of them. The two share a socket. The pool writes one
 * line when it is ready or has failed, and ends when the socket is closed. So it cannot outlive CRIU.
 */
#define _GNU_SOURCE
#include "criu-log.h"
#include "util.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "gpuckpt_cuda_options.h"
#include "gpuckpt_cuda_plugin.h"
#include "gpuckpt_cuda_pool.h"

#undef LOG_PREFIX
#define LOG_PREFIX "gpuckpt: context pool "

#define POOL_COMMAND "gpuckpt-pool"
#define RELEASE_WAIT_MS 2000

static int pool_socket = -1;

static void exec_pool(int socket)
{
	char *const args[] = {POOL_COMMAND, "--once", gc_options.pool_contexts ? NULL : "--no-contexts", NULL};
	sigset_t none;
	int null;

	null = open("/dev/null", O_RDWR);
	if (dup2(null, STDIN_FILENO) < 0 || dup2(socket, STDOUT_FILENO) < 0 || dup2(null, STDERR_FILENO) < 0)
		return;
	close_fds(STDERR_FILENO + 1);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execvp(args[0], args);
	dprintf(STDOUT_FILENO, "failed cannot run %s: %s\n", POOL_COMMAND, strerror(errno));
}

/* By way of a child that ends at once: CRIU takes the death of any child of its own for a failed task. */
static int spawn_pool(int socket)
{
	int status;
	pid_t child = fork();

	if (child < 0)
		return -1;
	if (!child) {
		if (setsid() < 0)
			_exit(1);
		switch (fork()) {
		case -1:
			_exit(1);
		case 0:
			exec_pool(socket);
			/* fall through */
		default:
			_exit(0);
		}
	}
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return status ? -1 : 0;
}

void gc_pool_start(void)
{
	int sockets[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets)) {
		pr_warn("not started: %s\n", strerror(errno));
		return;
	}
	if (spawn_pool(sockets[1])) {
		pr_warn("not started: %s\n", strerror(errno));
		close(sockets[0]);
	} else {
		pool_socket = sockets[0];
		pr_info("started\n");
	}
	close(sockets[1]);
}

static void drop_pool(void)
{
	close(pool_socket);
	pool_socket = -1;
}

/* Reads until the end of a line, the end of the stream, or the deadline. The length, or -1. */
static int read_line(char *line, size_t size, unsigned int wait_ms)
{
	struct pollfd fd = {.fd = pool_socket, .events = POLLIN};
	struct timespec now, deadline;
	size_t length = 0;

	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += wait_ms / 1000;
	deadline.tv_nsec += (wait_ms % 1000) * 1000000L;

	while (length < size - 1) {
		long left_ms;
		ssize_t got;

		clock_gettime(CLOCK_MONOTONIC, &now);
		left_ms = (deadline.tv_sec - now.tv_sec) * 1000 + (deadline.tv_nsec - now.tv_nsec) / 1000000;
		if (left_ms < 0 || poll(&fd, 1, left_ms) == 0)
			return -1;
		got = read(pool_socket, line + length, size - 1 - length);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		length += got;
		if (line[length - 1] == '\n') {
			length--;
			break;
		}
	}
	line[length] = '\0';
	return length;
}

/* The pool's own account of what it did: "ready devices=1 contexts=1 start=S.US end=S.US". */
static bool report_ready(const char *line)
{
	struct timespec start = {}, end = {};
	long start_us, end_us;
	int devices, contexts;

	if (sscanf(line, "ready devices=%d contexts=%d start=%ld.%6ld end=%ld.%6ld", &devices, &contexts, &start.tv_sec,
		   &start_us, &end.tv_sec, &end_us) != 6)
		return false;
	start.tv_nsec = start_us * 1000;
	end.tv_nsec = end_us * 1000;
	pr_info("ready, %d devices, %d contexts\n", devices, contexts);
	gc_span("pool-init", 0, &start, &end, 0, contexts ? "contexts" : "devices");
	return true;
}

static const char *await_ready(unsigned int wait_s)
{
	char line[256];

	if (read_line(line, sizeof(line), wait_s * 1000) < 0) {
		pr_warn("not ready after %u s; going on without it\n", wait_s);
		drop_pool();
		return "timeout";
	}
	if (report_ready(line))
		return "ok";

	pr_warn("failed: %s; going on without it\n", *line ? line : "it ended without a word");
	drop_pool();
	return "failed";
}

void gc_pool_wait(unsigned int wait_s)
{
	struct timespec start, end;
	const char *note;

	if (pool_socket < 0)
		return;
	clock_gettime(CLOCK_MONOTONIC, &start);
	note = await_ready(wait_s);
	clock_gettime(CLOCK_MONOTONIC, &end);
	gc_span("pool-wait", 0, &start, &end, 0, note);
}

bool gc_pool_release(void)
{
	char rest[64];

	if (pool_socket < 0)
		return false;
	/* The pool sees the end of the stream, releases its contexts and exits, which ends ours. */
	shutdown(pool_socket, SHUT_WR);
	if (read_line(rest, sizeof(rest), RELEASE_WAIT_MS) < 0)
		pr_warn("did not end within %d ms\n", RELEASE_WAIT_MS);
	else
		pr_info("released\n");
	drop_pool();
	return true;
}

void gc_pool_let_go(void)
{
	if (pool_socket < 0)
		return;
	drop_pool();
	pr_info("let go\n");
}
