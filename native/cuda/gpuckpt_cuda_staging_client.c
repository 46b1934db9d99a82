/* SPDX-License-Identifier: GPL-2.0-only */
#define _GNU_SOURCE
#include "gpuckpt_cuda_staging_client.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

/* The descriptor that a thread's name tells, or -1. */
static int descriptor_of(pid_t pid, const char *tid)
{
	char path[64], name[32] = "", *end;
	long number = -1;
	FILE *comm;

	snprintf(path, sizeof(path), "/proc/%d/task/%.16s/comm", pid, tid);
	comm = fopen(path, "re");
	if (comm && fgets(name, sizeof(name), comm) && !strncmp(name, GS_THREAD_NAME, strlen(GS_THREAD_NAME))) {
		number = strtol(name + strlen(GS_THREAD_NAME), &end, 10);
		if (*end != '\n' || end == name + strlen(GS_THREAD_NAME))
			number = -1;
	}
	if (comm)
		fclose(comm);
	return number;
}

static int find_descriptor(pid_t pid)
{
	struct dirent *entry;
	int found = -1;
	char path[32];
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	tasks = opendir(path);
	while (tasks && found < 0 && (entry = readdir(tasks)))
		if (entry->d_name[0] != '.')
			found = descriptor_of(pid, entry->d_name);
	if (tasks)
		closedir(tasks);
	return found;
}

/* A program may have closed the socket and given its number to another file. */
static bool is_socket_of_ours(int socket)
{
	int domain = 0, type = 0;
	socklen_t size = sizeof(int);

	return !getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &size) &&
	       !getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &size) && domain == AF_UNIX && type == SOCK_SEQPACKET;
}

int gc_staging_connect(pid_t pid)
{
	int number = find_descriptor(pid), process, socket = -1;

	if (number < 0)
		return -1;
	process = syscall(SYS_pidfd_open, pid, 0);
	if (process < 0)
		return -1;
	socket = syscall(SYS_pidfd_getfd, process, number, 0);
	close(process);
	if (socket >= 0 && !is_socket_of_ours(socket)) {
		close(socket);
		socket = -1;
	}
	return socket;
}

bool gc_staging_ask(int socket, const struct gs_request *request, int file)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {};
	struct iovec data = {(void *)request, sizeof(*request)};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
	struct cmsghdr *header;

	if (file >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &file, sizeof(file));
	}
	return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof(*request);
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

bool gc_staging_answer(int socket, uint32_t number, int limit_ms, struct gs_answer *answer)
{
	long deadline = now_ms() + limit_ms;

	for (;;) {
		struct pollfd readable = {.fd = socket, .events = POLLIN};
		long left = limit_ms < 0 ? -1 : deadline - now_ms();
		int ready = poll(&readable, 1, left < 0 && limit_ms >= 0 ? 0 : left);

		if (ready < 0 && errno == EINTR)
			continue;
		if (ready <= 0)
			return false;
		/* An answer of another number was for somebody who did not wait for it. */
		if (recv(socket, answer, sizeof(*answer), MSG_DONTWAIT) != sizeof(*answer) || answer->magic != GS_MAGIC)
			return false;
		answer->text[sizeof(answer->text) - 1] = '\0';
		if (answer->number == number)
			return true;
	}
}
