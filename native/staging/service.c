/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "service.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gate.h"
#include "settings.h"
#include "stage.h"

/* Our end, and the one that is taken by whoever asks */
static int ours = -1, theirs = -1;
static atomic_bool is_started;

/* One request; its descriptor, or -1, goes to file. False when there is none any more. */
static bool receive(struct gs_request *request, int *file)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec data = {request, sizeof(*request)};
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *header;
	ssize_t bytes;

	*file = -1;
	do {
		bytes = recvmsg(ours, &message, MSG_CMSG_CLOEXEC);
	} while (bytes < 0 && errno == EINTR);
	header = bytes < 0 ? NULL : CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
		memcpy(file, CMSG_DATA(header), sizeof(*file));
	if (bytes == sizeof(*request) && request->magic == GS_MAGIC)
		return true;
	if (*file >= 0)
		close(*file);
	*file = -1;
	*request = (struct gs_request){};
	return bytes > 0;
}

static void carry_out(const struct gs_request *request, int file, struct gs_answer *answer)
{
	switch (request->kind) {
	case GS_STAGE:
		gs_stage(file, request->limit_ms, answer);
		break;
	case GS_BRING_BACK:
		gs_bring_back(file, answer);
		break;
	case GS_ASK:
		gs_ask(answer);
		break;
	default:
		answer->refused = 1;
		snprintf(answer->text, sizeof(answer->text),
			 "the library in the program does not know this request: both are of different versions");
	}
}

static void *serve(void *unused)
{
	struct gs_request request;
	int file;

	while (receive(&request, &file)) {
		struct gs_answer answer = {.magic = GS_MAGIC, .number = request.number};

		carry_out(&request, file, &answer);
		/* Before the answer: a checkpoint would carry the open file. */
		if (file >= 0)
			close(file);
		send(ours, &answer, sizeof(answer), MSG_NOSIGNAL | MSG_DONTWAIT);
	}
	gs_say("its sockets were closed by the program; it is checkpointed without staging from now on");
	return unused;
}

/* A child has neither the thread nor a GPU; what it inherits of us is of no use. */
static void forget_in_child(void)
{
	if (!atomic_load(&is_started))
		return;
	close(ours);
	close(theirs);
	atomic_store(&is_started, false);
	gs_gate_reset();
}

static void __attribute__((constructor)) watch_forks(void)
{
	pthread_atfork(NULL, NULL, forget_in_child);
}

void gs_service_start(void)
{
	sigset_t all, before;
	pthread_t thread;
	int ends[2], error;
	char name[16];

	if (atomic_exchange(&is_started, true))
		return;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends)) {
		gs_say("no pair of sockets (%s); nothing is staged", strerror(errno));
		return;
	}
	ours = ends[0];
	theirs = ends[1];
	/* Signals are the program's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread, NULL, serve, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error) {
		gs_say("no thread can be started (%s); nothing is staged", strerror(error));
		close(ours);
		close(theirs);
		return;
	}
	snprintf(name, sizeof(name), GS_THREAD_NAME "%d", theirs);
	pthread_setname_np(thread, name);
	pthread_detach(thread);
}
