/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * gpuckpt-pool: keeps the GPUs of this node initialised.
 *
 * As a service it holds them until SIGTERM, where persistence mode is off. With --once it does so during one restore,
 * for as long as standard output stays open at the other end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "gpuckpt_cuda_driver.h"

#define STATUS_FILE "/run/gpuckpt/pool.status"
#define MAX_DEVICES 64

/* As LSB has it for `status` actions. */
#define EXIT_NOT_RUNNING 3

static struct {
	bool once;
	bool status;
	bool contexts;
	const char *status_file;
} options = {.contexts = true, .status_file = STATUS_FILE};

struct device_job {
	pthread_t thread;
	bool started;
	int ordinal;
	CUresult result;
};

static struct gc_driver driver;
static struct device_job device_jobs[MAX_DEVICES];
static int device_count;
static struct timespec init_start, init_end;
static char failure[CUDA_WHY_SIZE]; /* empty: ready. Written by the initialising thread before it signals. */
static int finished = -1;           /* eventfd */

static const char usage[] =
	"Usage:\n"
	"  gpuckpt-pool [--no-contexts] [--status-file FILE]   hold the GPUs until SIGTERM\n"
	"  gpuckpt-pool --once [--no-contexts]                 hold them while standard output stays open\n"
	"  gpuckpt-pool --status [--status-file FILE]          print the state of the running pool\n"
	"\n"
	"  --no-contexts       initialise the driver only: no context, no GPU memory\n"
	"  --status-file FILE  default " STATUS_FILE "\n"
	"\n"
	"CUDA_VISIBLE_DEVICES limits the GPUs. --status exits with 0 (ready), 1 (starting, failed) or 3 (not "
	"running).\n";

static void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(failure, sizeof(failure), format, arguments);
	va_end(arguments);
}

/* --- initialisation, on threads of its own: a hanging driver must not keep us from ending --- */

static void *retain_context(void *argument)
{
	struct device_job *job = argument;
	CUcontext context;
	CUdevice device;

	job->result = driver.device_get(&device, job->ordinal);
	if (job->result == CUDA_SUCCESS)
		job->result = driver.primary_ctx_retain(&context, device);
	return NULL;
}

static int retain_contexts(void)
{
	int n;

	for (n = 0; n < device_count; n++) {
		struct device_job *job = &device_jobs[n];

		job->ordinal = n;
		job->started = !pthread_create(&job->thread, NULL, retain_context, job);
		if (!job->started)
			retain_context(job);
	}
	for (n = 0; n < device_count; n++)
		if (device_jobs[n].started)
			pthread_join(device_jobs[n].thread, NULL);
	for (n = 0; n < device_count; n++)
		if (device_jobs[n].result != CUDA_SUCCESS) {
			fail("no context on GPU %d: %s", n, gc_driver_error(&driver, device_jobs[n].result));
			return -1;
		}
	return 0;
}

static int initialise(void)
{
	CUresult result;

	if (gc_driver_open(&driver, CUDA_DRIVER_FOR_CONTEXTS, failure, sizeof(failure)))
		return -1;
	result = driver.init(0);
	if (result == CUDA_SUCCESS)
		result = driver.device_get_count(&device_count);
	if (result != CUDA_SUCCESS) {
		fail("the driver cannot be initialised: %s", gc_driver_error(&driver, result));
		return -1;
	}
	if (device_count > MAX_DEVICES)
		device_count = MAX_DEVICES;
	return options.contexts ? retain_contexts() : 0;
}

static void *run_initialisation(void *unused)
{
	uint64_t one = 1;

	clock_gettime(CLOCK_MONOTONIC, &init_start);
	initialise();
	clock_gettime(CLOCK_MONOTONIC, &init_end);
	if (write(finished, &one, sizeof(one)) != sizeof(one))
		_exit(1);
	return unused;
}

static void release_contexts(void)
{
	CUdevice device;

	if (!options.contexts)
		return;
	for (int n = 0; n < device_count; n++)
		if (device_jobs[n].result == CUDA_SUCCESS && driver.device_get(&device, n) == CUDA_SUCCESS)
			driver.primary_ctx_release(device);
}

/* --- telling others --- */

static int held_contexts(void)
{
	return options.contexts ? device_count : 0;
}

static void describe(char *text, size_t size)
{
	if (*failure)
		snprintf(text, size, "failed %s\n", failure);
	else
		snprintf(text, size, "ready devices=%d contexts=%d start=%ld.%06ld end=%ld.%06ld\n", device_count,
			 held_contexts(), (long)init_start.tv_sec, init_start.tv_nsec / 1000, (long)init_end.tv_sec,
			 init_end.tv_nsec / 1000);
}

/* systemd's readiness protocol: one datagram. */
static void notify_systemd(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length;
	int fd;

	if (!path || !*path || strlen(path) >= sizeof(address.sun_path))
		return;
	length = strlen(path);
	memcpy(address.sun_path, path, length);
	if (address.sun_path[0] == '@')
		address.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (sendto(fd, state, strlen(state), 0, (struct sockaddr *)&address,
		   offsetof(struct sockaddr_un, sun_path) + length) < 0)
		fprintf(stderr, "gpuckpt-pool: cannot notify systemd: %s\n", strerror(errno));
	close(fd);
}

/* The status file is locked for as long as a pool lives: a stale one tells nothing. */
static int open_status_file(void)
{
	struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int fd;

	fd = open(options.status_file, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0) {
		fprintf(stderr,
			"gpuckpt-pool: cannot create %s: %s; create its folder or name another with --status-file\n",
			options.status_file, strerror(errno));
		return -1;
	}
	if (fcntl(fd, F_OFD_SETLK, &whole)) {
		fprintf(stderr, "gpuckpt-pool: another pool holds %s; stop it first\n", options.status_file);
		close(fd);
		return -1;
	}
	return fd;
}

static void write_status(int fd, const char *text)
{
	if (ftruncate(fd, 0) || pwrite(fd, text, strlen(text), 0) < 0)
		fprintf(stderr, "gpuckpt-pool: cannot write %s: %s\n", options.status_file, strerror(errno));
}

static int print_status(void)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int fd = open(options.status_file, O_RDONLY | O_CLOEXEC);
	char text[640];
	ssize_t length;

	/* Only asked, not taken: a pool that starts at this moment must not find the file locked. */
	if (fd < 0 || fcntl(fd, F_OFD_GETLK, &lock) || lock.l_type == F_UNLCK) {
		puts("not running");
		return EXIT_NOT_RUNNING;
	}
	length = pread(fd, text, sizeof(text) - 1, 0);
	text[length > 0 ? length : 0] = '\0';
	fputs(length > 0 ? text : "starting\n", stdout);
	return strncmp(text, "ready ", 6) ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* --- life --- */

static int block_signals(void)
{
	sigset_t ends;

	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &ends, SFD_CLOEXEC);
}

static void announce(int status_fd)
{
	char text[640];

	describe(text, sizeof(text));
	if (options.once) {
		if (write(STDOUT_FILENO, text, strlen(text)) < 0)
			fprintf(stderr, "gpuckpt-pool: nobody reads standard output: %s\n", strerror(errno));
		return;
	}
	write_status(status_fd, text);
	printf("gpuckpt-pool: %s", text);
	fflush(stdout);
	if (!*failure)
		notify_systemd("READY=1");
}

/* Runs until the end is asked for, or the initialisation fails. The exit status. */
static int hold(int signals, int status_fd)
{
	struct pollfd fds[] = {
		{.fd = finished, .events = POLLIN},
		{.fd = signals, .events = POLLIN},
		{.fd = options.once ? STDOUT_FILENO : -1, .events = POLLIN | POLLRDHUP},
	};

	for (;;) {
		if (poll(fds, 3, -1) < 0 && errno != EINTR)
			return EXIT_FAILURE;
		if (fds[0].revents) {
			announce(status_fd);
			if (*failure)
				return EXIT_FAILURE;
			fds[0].fd = -1;
			fds[0].revents = 0;
		}
		if (fds[1].revents || fds[2].revents) {
			/* Still initialising: the driver cleans up when we exit. */
			if (fds[0].fd < 0)
				release_contexts();
			return EXIT_SUCCESS;
		}
	}
}

static int run(void)
{
	int signals = block_signals(), status_fd = -1, ret;
	pthread_t thread;

	if (!options.once) {
		status_fd = open_status_file();
		if (status_fd < 0)
			return EXIT_FAILURE;
		write_status(status_fd, "starting\n");
	}
	finished = eventfd(0, EFD_CLOEXEC);
	if (finished < 0 || signals < 0 || pthread_create(&thread, NULL, run_initialisation, NULL)) {
		fprintf(stderr, "gpuckpt-pool: cannot start: %s\n", strerror(errno));
		return EXIT_FAILURE;
	}
	ret = hold(signals, status_fd);
	if (status_fd >= 0)
		notify_systemd("STOPPING=1");
	fflush(NULL);
	/* Not exit(): its handlers could wait for a driver call that hangs. */
	_exit(ret);
}

static void parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{"once", no_argument, NULL, 'o'},        {"status", no_argument, NULL, 's'},
		{"no-contexts", no_argument, NULL, 'n'}, {"status-file", required_argument, NULL, 'f'},
		{"help", no_argument, NULL, 'h'},        {},
	};
	int choice;

	while ((choice = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (choice) {
		case 'o':
			options.once = true;
			break;
		case 's':
			options.status = true;
			break;
		case 'n':
			options.contexts = false;
			break;
		case 'f':
			options.status_file = optarg;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(EXIT_SUCCESS);
		default:
			fputs(usage, stderr);
			exit(EXIT_FAILURE);
		}
	}
	if (optind < argc) {
		fprintf(stderr, "gpuckpt-pool: unexpected argument '%s'\n%s", argv[optind], usage);
		exit(EXIT_FAILURE);
	}
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	return options.status ? print_status() : run();
}
