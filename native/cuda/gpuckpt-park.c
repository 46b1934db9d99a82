/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * gpuckpt-park: asks the staging library in a program to put its GPU memory aside, or to bring it back, without a
 * checkpoint. The program's contexts live on, and it waits at its next driver call.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpuckpt_cuda_staging_client.h"

#define DEFAULT_LIMIT_S 60
#define MIB (1UL << 20)

static void usage(FILE *out)
{
	fputs("gpuckpt-park: GPU memory of a program to a file, and back, without a checkpoint\n"
	      "\n"
	      "  gpuckpt-park --pid PID --park FILE      put it aside; the program waits at its next driver call\n"
	      "  gpuckpt-park --pid PID --activate FILE  bring it back\n"
	      "  gpuckpt-park --pid PID --state          print how much there is, and whether it is parked\n"
	      "\n"
	      "The program runs with libgpuckpt_staging.so. --timeout SECONDS limits a request (60).\n"
	      "Exit status: 0, 1 when it was refused (standard error says why), 2 for wrong options.\n",
	      out);
}

static int wrong(const char *why, const char *value)
{
	fprintf(stderr, "gpuckpt-park: %s%s (see --help)\n", why, value);
	return 2;
}

static bool read_number(const char *text, unsigned long most, unsigned long *number)
{
	char *end;

	errno = 0;
	*number = strtoul(text, &end, 10);
	return *text >= '0' && *text <= '9' && !*end && !errno && *number && *number <= most;
}

static int fail(const char *what, const char *why)
{
	fprintf(stderr, "gpuckpt-park: %s: %s\n", what, why);
	return 1;
}

/* A new file for memory that goes aside: what is there already may be the only copy of other memory. */
static int open_file(enum gs_request_kind kind, const char *path)
{
	return open(path, kind == GS_STAGE ? O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC : O_RDONLY | O_CLOEXEC, 0600);
}

static void print(pid_t pid, const struct gs_answer *answer)
{
	printf("pid=%d %s mib=%lu zeros_mib=%lu dropped_mib=%lu\n", pid, answer->staged ? "parked" : "active",
	       (unsigned long)(answer->bytes / MIB), (unsigned long)(answer->zero_bytes / MIB),
	       (unsigned long)(answer->dropped_bytes / MIB));
}

static int request(pid_t pid, enum gs_request_kind kind, const char *path, unsigned long limit_s)
{
	struct gs_request request = {.magic = GS_MAGIC, .kind = kind, .limit_ms = limit_s * 1000, .number = getpid()};
	int socket = gc_staging_connect(pid), file = -1;
	struct gs_answer answer;

	if (socket < 0)
		return fail("no staging library in this program",
			    "start it with LD_PRELOAD=…/libgpuckpt_staging.so, and run this as root");
	if (path) {
		file = open_file(kind, path);
		if (file < 0)
			return fail(path, strerror(errno));
	}
	if (!gc_staging_ask(socket, &request, file))
		return fail("the library cannot be asked", strerror(errno));
	if (!gc_staging_answer(socket, request.number, limit_s * 1000, &answer))
		return fail("the library does not answer in time", "ask for --state later");
	if (answer.refused && kind == GS_STAGE && !answer.staged)
		unlink(path);
	if (answer.refused)
		return fail("refused", answer.text);
	print(pid, &answer);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"pid", required_argument, NULL, 'p'},
		{"park", required_argument, NULL, GS_STAGE},
		{"activate", required_argument, NULL, GS_BRING_BACK},
		{"state", no_argument, NULL, GS_ASK},
		{"timeout", required_argument, NULL, 't'},
		{"help", no_argument, NULL, 'h'},
		{},
	};
	unsigned long pid = 0, limit_s = DEFAULT_LIMIT_S;
	const char *path = NULL;
	int kind = 0, option;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		switch (option) {
		case 'p':
			if (!read_number(optarg, 1UL << 30, &pid))
				return wrong("this is no pid: ", optarg);
			break;
		case 't':
			if (!read_number(optarg, 86400, &limit_s))
				return wrong("this is no number of seconds: ", optarg);
			break;
		case GS_STAGE:
		case GS_BRING_BACK:
		case GS_ASK:
			if (kind)
				return wrong("one thing at a time: --park, --activate or --state", "");
			kind = option;
			path = optarg;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			return wrong("this option is not known", "");
		}
	if (!pid || !kind || optind < argc)
		return wrong("--pid, and one of --park, --activate and --state, are needed", "");
	return request(pid, kind, path, limit_s);
}
