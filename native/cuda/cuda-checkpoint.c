/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A command with the options, output and exit codes of NVIDIA's cuda-checkpoint, on the same driver API as our plugin.
 * It serves nodes that lack NVIDIA's binary, and stock CRIU on them.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpuckpt_cuda_driver.h"
#include "gpuckpt_cuda_proc.h"

enum operation { OP_NONE, OP_GET_STATE, OP_GET_RESTORE_TID, OP_ACTION, OP_TOGGLE };

static struct {
	enum operation operation;
	const char *action;
	const char *device_map;
	pid_t pid;
	unsigned int timeout_ms;
	bool timeout_given;
} options;

static struct gc_driver driver;
static struct gc_device_map map;

static const char usage[] =
	"CUDA checkpoint and restore utility, of gpuckpt (on the CUDA driver API, driver 570 or newer).\n"
	"\n"
	"Operations:\n"
	"--get-state --pid PID\n"
	"\tPrints the CUDA state of the process: running, locked, checkpointed or failed\n"
	"--get-restore-tid --pid PID\n"
	"\tPrints the thread id of the process's CUDA restore thread\n"
	"--action lock | checkpoint | restore | unlock --pid PID [--timeout MS] [--device-map MAP]\n"
	"\tDoes one step; --timeout limits lock, --device-map renumbers the GPUs of restore\n"
	"--toggle --pid PID\n"
	"\tFrom running to checkpointed, or back\n"
	"--help|-h\n"
	"\tPrints this text\n"
	"\n"
	"Options:\n"
	"--pid|-p PID\n"
	"--timeout|-t MS\tmilliseconds; 0: wait without limit\n"
	"--device-map|-d OLDUUID=NEWUUID,...\tall GPUs of the process, UUIDs as `nvidia-smi -L` prints them; driver "
	"580 or newer\n";

static void __attribute__((noreturn)) die(const char *cause)
{
	fprintf(stderr, "cuda-checkpoint: %s\n", cause);
	exit(EXIT_FAILURE);
}

static unsigned int parse_number(const char *text, const char *what)
{
	unsigned long value;
	char message[128], *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *end || !*text || *text == '-' || value > INT_MAX) {
		snprintf(message, sizeof(message), "%s '%.40s' is not a number", what, text);
		die(message);
	}
	return value;
}

static void choose(enum operation operation)
{
	if (options.operation != OP_NONE)
		die("name one operation only (see --help)");
	options.operation = operation;
}

static void parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{"get-state", no_argument, NULL, 's'},
		{"get-restore-tid", no_argument, NULL, 'g'},
		{"action", required_argument, NULL, 'a'},
		{"toggle", no_argument, NULL, 'T'},
		{"pid", required_argument, NULL, 'p'},
		{"timeout", required_argument, NULL, 't'},
		{"device-map", required_argument, NULL, 'd'},
		{"help", no_argument, NULL, 'h'},
		{},
	};
	int choice;

	while ((choice = getopt_long(argc, argv, "p:t:d:h", longs, NULL)) != -1) {
		switch (choice) {
		case 's':
			choose(OP_GET_STATE);
			break;
		case 'g':
			choose(OP_GET_RESTORE_TID);
			break;
		case 'a':
			choose(OP_ACTION);
			options.action = optarg;
			break;
		case 'T':
			choose(OP_TOGGLE);
			break;
		case 'p':
			options.pid = parse_number(optarg, "--pid");
			break;
		case 't':
			options.timeout_ms = parse_number(optarg, "--timeout");
			options.timeout_given = true;
			break;
		case 'd':
			options.device_map = optarg;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(EXIT_SUCCESS);
		default:
			exit(EXIT_FAILURE);
		}
	}
	if (optind < argc)
		die("unexpected argument (see --help)");
}

static bool is_action(const char *name)
{
	return options.operation == OP_ACTION && !strcmp(options.action, name);
}

static void validate(void)
{
	char why[256];

	if (options.operation == OP_NONE)
		die("name an operation (see --help)");
	if (options.pid <= 0)
		die("--pid is missing");
	if (options.operation == OP_ACTION && !is_action("lock") && !is_action("checkpoint") && !is_action("restore") &&
	    !is_action("unlock"))
		die("--action must be lock, checkpoint, restore or unlock");
	if (options.timeout_given && !is_action("lock"))
		die("--timeout is for --action lock only");
	if (!options.device_map)
		return;
	if (!is_action("restore"))
		die("--device-map is for --action restore only");
	if (gc_device_map_parse(options.device_map, &map, why, sizeof(why)))
		die(why);
}

/* CRIU's plugin asks for the state of a thread; the driver knows processes. */
static pid_t process_of(pid_t tid)
{
	long pid = gc_proc_status_number(tid, "Tgid");

	if (pid < 0)
		die("no such process");
	return pid;
}

static int report(CUresult result, const char *what)
{
	if (result == CUDA_SUCCESS)
		return EXIT_SUCCESS;
	fprintf(stderr, "cuda-checkpoint: %s of pid %d failed: %s\n", what, options.pid,
		gc_driver_error(&driver, result));
	return EXIT_FAILURE;
}

static int print_state(void)
{
	CUprocessState state;
	CUresult result = driver.get_state(options.pid, &state);

	if (result == CUDA_SUCCESS)
		puts(gc_state_name(state));
	return report(result, "get-state");
}

static int print_restore_tid(void)
{
	int tid;
	CUresult result = driver.get_restore_tid(options.pid, &tid);

	if (result == CUDA_SUCCESS)
		printf("%d\n", tid);
	return report(result, "get-restore-tid");
}

static int act(void)
{
	if (is_action("lock"))
		return report(gc_driver_lock(&driver, options.pid, options.timeout_ms), "lock");
	if (is_action("checkpoint"))
		return report(gc_driver_checkpoint(&driver, options.pid), "checkpoint");
	if (is_action("restore"))
		return report(gc_driver_restore(&driver, options.pid, &map), "restore");
	return report(gc_driver_unlock(&driver, options.pid), "unlock");
}

static int suspend(void)
{
	if (report(gc_driver_lock(&driver, options.pid, 0), "lock"))
		return EXIT_FAILURE;
	if (!report(gc_driver_checkpoint(&driver, options.pid), "checkpoint"))
		return EXIT_SUCCESS;
	report(gc_driver_unlock(&driver, options.pid), "unlock");
	return EXIT_FAILURE;
}

static int resume(void)
{
	return report(gc_driver_restore(&driver, options.pid, NULL), "restore")
		       ?: report(gc_driver_unlock(&driver, options.pid), "unlock");
}

static int toggle(void)
{
	CUprocessState state;

	if (report(driver.get_state(options.pid, &state), "get-state"))
		return EXIT_FAILURE;
	if (state == CU_PROCESS_STATE_RUNNING)
		return suspend();
	if (state == CU_PROCESS_STATE_CHECKPOINTED)
		return resume();
	fprintf(stderr, "cuda-checkpoint: pid %d is %s: only a running or checkpointed process can be toggled\n",
		options.pid, gc_state_name(state));
	return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
	char why[CUDA_WHY_SIZE];

	parse(argc, argv);
	validate();
	if (gc_driver_open(&driver, CUDA_DRIVER_FOR_CHECKPOINT, why, sizeof(why)))
		die(why);
	if (map.count && gc_device_map_supported(&driver, why, sizeof(why)))
		die(why);
	options.pid = process_of(options.pid);

	switch (options.operation) {
	case OP_GET_STATE:
		return print_state();
	case OP_GET_RESTORE_TID:
		return print_restore_tid();
	case OP_ACTION:
		return act();
	default:
		return toggle();
	}
}
