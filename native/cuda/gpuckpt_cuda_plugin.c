/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * CUDA processes over the driver API.
 *
 * CRIU calls its hooks for one pid at a time. The first call of each hook handles all CUDA processes of the tree at
 * once, and later calls only hand out what came of it. Driver calls run on threads, one per process. Everything that
 * touches ptrace stays on the main thread, because only the thread that seized a task may trace it.
 *
 * Here: the plugin's life, and what the cuda-checkpoint backend (CRIU's own code) needs. The hooks are in
 * gpuckpt_cuda_dump.c and gpuckpt_cuda_restore.c.
 */
#include "criu-log.h"
#include "plugin.h"
#include "cr_options.h"
#include "pid.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpuckpt_cuda_options.h"
#include "gpuckpt_cuda_plugin.h"
#include "gpuckpt_cuda_pool.h"
#include "gpuckpt_cuda_ranges.h"
#include "gpuckpt_cuda_tasks.h"

#undef LOG_PREFIX
#define LOG_PREFIX "gpuckpt: "

static struct range_list memory_before;

void gc_action_begin(const char *action, pid_t pid, struct timespec *start)
{
	if (!strcmp(action, "checkpoint") && gc_proc_anonymous_ranges(pid, &memory_before))
		pr_warn("Cannot read the memory map of pid %d\n", pid);
	clock_gettime(CLOCK_MONOTONIC, start);
}

void gc_action_end(const char *action, pid_t pid, const struct timespec *start, int status)
{
	struct timespec end;
	uint64_t bytes = 0;
	char name[32];

	clock_gettime(CLOCK_MONOTONIC, &end);
	if (!strcmp(action, "checkpoint") && !status)
		bytes = gc_ranges_record(pid, &memory_before);
	else if (!strcmp(action, "restore"))
		gc_ranges_read(pid, &bytes);
	snprintf(name, sizeof(name), "cuda-%s", action);
	gc_span(name, pid, start, &end, bytes, status ? "failed" : "ok");
}

int gc_refuse_lost(pid_t pid)
{
	uint64_t bytes;

	if (!gc_ranges_read(pid, &bytes))
		return 0;
	pr_err("pid %d was a CUDA process at the dump, but the driver does not know it now\n", pid);
	return -1;
}

int gc_unavailable(int stage)
{
	if (stage != CR_PLUGIN_STAGE__RESTORE)
		return 0;
	pr_err("the images hold CUDA state, but this node has no GPU or no way to reach its driver (see above)\n");
	return -1;
}

int gc_init(int stage)
{
	if (gc_options_read())
		return -1;
	if (stage == CR_PLUGIN_STAGE__RESTORE && gc_options.pool)
		gc_pool_start();
	return gc_options.backend == BACKEND_CUDA_CHECKPOINT ? GPUCKPT_CUDA_PASS : 0;
}

void gc_fini(int stage, int failed)
{
	if (stage == CR_PLUGIN_STAGE__DUMP && gc_nr_tasks && (failed || opts.final_state == TASK_ALIVE))
		gc_put_back();
	if (stage == CR_PLUGIN_STAGE__RESTORE && failed)
		gc_pool_release();
	else if (stage == CR_PLUGIN_STAGE__RESTORE)
		gc_pool_let_go();
	gc_forget_tasks();
	free(memory_before.ranges);
}
