/* SPDX-License-Identifier: GPL-2.0-only */
#include "criu-log.h"
#include "plugin.h"
#include "cr_options.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "gpuckpt_cuda_options.h"
#include "gpuckpt_cuda_plugin.h"
#include "gpuckpt_cuda_tasks.h"

#undef LOG_PREFIX
#define LOG_PREFIX "gpuckpt: "

/* What a lock may take beyond the limit that the driver itself was given. */
#define LOCK_GRACE_S 2

struct gc_driver gc_driver;
struct task *gc_tasks;
size_t gc_nr_tasks;

void gc_span(const char *name, pid_t pid, const struct timespec *start, const struct timespec *end, uint64_t bytes,
	     const char *note)
{
	pr_info("span name=%s pid=%d start=%ld.%06ld end=%ld.%06ld bytes=%" PRIu64 " note=%s\n", name, pid,
		(long)start->tv_sec, start->tv_nsec / 1000, (long)end->tv_sec, end->tv_nsec / 1000, bytes, note);
}

const char *gc_result_name(CUresult result)
{
	if (result == CUDA_SUCCESS)
		return "ok";
	if (result == CUDA_JOB_TIMED_OUT)
		return "timeout";
	return gc_driver_error(&gc_driver, result);
}

int gc_reach_driver(pid_t pid, char *why, size_t why_size)
{
	struct timespec start, end;
	int ret;

	if (gc_options.backend == BACKEND_CUDA_CHECKPOINT)
		return GPUCKPT_CUDA_PASS;
	if (gc_driver.handle)
		return 0;

	clock_gettime(CLOCK_MONOTONIC, &start);
	ret = gc_driver_open(&gc_driver, CUDA_DRIVER_FOR_CHECKPOINT, why, why_size);
	clock_gettime(CLOCK_MONOTONIC, &end);
	gc_span("driver-open", pid, &start, &end, 0, ret ? "failed" : "ok");

	if (!ret && gc_options.map.count && gc_device_map_supported(&gc_driver, why, why_size))
		return -1;
	if (!ret)
		return 0;

	/* cuda-checkpoint, as CRIU calls it, knows no device map. */
	if (gc_options.backend == BACKEND_AUTO && !gc_options.map.count &&
	    cuda_checkpoint_supports_flag("--action") == 1) {
		pr_warn("%s; falling back to cuda-checkpoint\n", why);
		gc_options.backend = BACKEND_CUDA_CHECKPOINT;
		return GPUCKPT_CUDA_PASS;
	}
	return -1;
}

struct task *gc_find_task(pid_t pid)
{
	for (size_t n = 0; n < gc_nr_tasks; n++)
		if (gc_tasks[n].pid == pid)
			return &gc_tasks[n];
	return NULL;
}

int gc_add_task(pid_t pid, int restore_tid, CUprocessState state)
{
	struct task *grown = realloc(gc_tasks, (gc_nr_tasks + 1) * sizeof(*grown));

	if (!grown) {
		pr_err("No memory to track CUDA process %d\n", pid);
		return -1;
	}
	gc_tasks = grown;
	gc_tasks[gc_nr_tasks++] =
		(struct task){.pid = pid, .restore_tid = restore_tid, .initial = state, .state = state};
	return 0;
}

void gc_forget_tasks(void)
{
	for (size_t n = 0; n < gc_nr_tasks; n++)
		free(gc_tasks[n].memory.ranges);
	free(gc_tasks);
	gc_tasks = NULL;
	gc_nr_tasks = 0;
}

bool gc_is_cuda_process(pid_t pid, int *tid, CUresult *result)
{
	*result = gc_driver.get_restore_tid(pid, tid);
	if (*result == CUDA_SUCCESS)
		pr_info("pid %d is a CUDA process, its restore thread %d\n", pid, *tid);
	else
		pr_info("pid %d is no CUDA process (%s)\n", pid, gc_result_name(*result));
	return *result == CUDA_SUCCESS;
}

/* Asks the driver what came of a call. Only while the restore thread runs: a frozen process may not answer. */
static void confirm_call(const struct driver_call *call, struct task *task)
{
	CUprocessState state;

	task->result = task->job->result;
	if (task->result != CUDA_SUCCESS)
		return;
	task->result = gc_driver.get_state(task->pid, &state);
	if (task->result == CUDA_SUCCESS)
		task->state = state;
	task->failed = task->state != call->reaches;
}

static void report_call(const struct driver_call *call, struct task *task)
{
	uint64_t bytes = call->bytes ? call->bytes(task) : 0;
	char title[64];

	gc_proc_title(task->pid, title, sizeof(title));
	gc_span(call->span, task->pid, &task->job->start, &task->job->end, bytes, gc_result_name(task->result));
	if (task->result != CUDA_SUCCESS) {
		pr_err("CUDA %s of pid %d (%s) failed: %s\n", call->verb, task->pid, title,
		       gc_result_name(task->result));
		task->failed = true;
		task->hung = task->result == CUDA_JOB_TIMED_OUT;
	} else if (task->failed) {
		pr_err("CUDA %s of pid %d (%s) succeeded, but its state is %s instead of %s\n", call->verb, task->pid,
		       title, gc_state_name(task->state), gc_state_name(call->reaches));
	}
}

static unsigned int lock_timeout_s(void)
{
	/* CRIU's own limit for freezing the tree, and ours: the shorter one. */
	if (!gc_options.timeout_s || (opts.timeout && opts.timeout < gc_options.timeout_s))
		return opts.timeout;
	return gc_options.timeout_s;
}

static unsigned int call_timeout_s(const struct driver_call *call)
{
	if (call->run != gc_call_lock)
		return gc_options.timeout_s;
	return lock_timeout_s() ? lock_timeout_s() + LOCK_GRACE_S : 0;
}

void gc_run_call(const struct driver_call *call, task_filter wanted, void (*settle)(void))
{
	struct gc_job **jobs = calloc(gc_nr_tasks + 1, sizeof(*jobs));
	size_t count = 0, n;

	for (n = 0; n < gc_nr_tasks; n++) {
		struct task *task = &gc_tasks[n];

		if (task->failed || task->hung || !wanted(task))
			continue;
		task->job = jobs ? gc_job_new(&gc_driver, task->pid) : NULL;
		if (!task->job) {
			pr_err("No memory for the CUDA %s of pid %d\n", call->verb, task->pid);
			task->failed = true;
			continue;
		}
		task->job->map = &gc_options.map;
		task->job->lock_timeout_ms = lock_timeout_s() * 1000;
		jobs[count++] = task->job;
	}

	gc_jobs_run(jobs, count, call->run, call_timeout_s(call));
	for (n = 0; n < gc_nr_tasks; n++)
		if (gc_tasks[n].job)
			confirm_call(call, &gc_tasks[n]);
	if (settle)
		settle();

	for (n = 0; n < gc_nr_tasks; n++) {
		struct task *task = &gc_tasks[n];

		if (!task->job)
			continue;
		report_call(call, task);
		gc_job_free(task->job);
		task->job = NULL;
	}
	free(jobs);
}

bool gc_is_running(const struct task *task)
{
	return task->state == CU_PROCESS_STATE_RUNNING;
}

bool gc_is_locked(const struct task *task)
{
	return task->state == CU_PROCESS_STATE_LOCKED;
}

bool gc_is_checkpointed(const struct task *task)
{
	return task->state == CU_PROCESS_STATE_CHECKPOINTED;
}

bool gc_any_failed(void)
{
	for (size_t n = 0; n < gc_nr_tasks; n++)
		if (gc_tasks[n].failed)
			return true;
	return false;
}

/* The driver works inside the target, on its restore thread: that one must run while all others stay frozen. */
void gc_resume_threads(task_filter wanted)
{
	for (size_t n = 0; n < gc_nr_tasks; n++) {
		struct task *task = &gc_tasks[n];

		if (task->failed || task->hung || !wanted(task))
			continue;
		/* A task that we did not seize (yet) runs anyway. */
		if (gc_proc_status_number(task->restore_tid, "TracerPid") != getpid())
			continue;
		if (resume_restore_thread(task->restore_tid, &task->sigset))
			task->failed = true;
		else
			task->thread_resumed = true;
	}
}

void gc_interrupt_threads(void)
{
	for (size_t n = 0; n < gc_nr_tasks; n++) {
		struct task *task = &gc_tasks[n];

		if (!task->thread_resumed)
			continue;
		task->thread_resumed = false;
		if (interrupt_restore_thread(task->restore_tid, &task->sigset))
			task->failed = true;
	}
}
