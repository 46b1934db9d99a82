/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * CUDA processes over the driver API.
 *
 * CRIU calls its hooks for one pid at a time; the first call of each hook handles all CUDA processes of the tree at
 * once, later calls only hand out what came of it. Driver calls run on threads, one per process. Everything that
 * touches ptrace stays on the main thread, because only the thread that seized a task may trace it.
 */
#define _GNU_SOURCE
#include "criu-log.h"
#include "plugin.h"
#include "cr_options.h"
#include "pstree.h"
#include "util.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpuckpt_cuda_jobs.h"
#include "gpuckpt_cuda_plugin.h"
#include "gpuckpt_cuda_pool.h"
#include "gpuckpt_cuda_proc.h"
#include "gpuckpt_cuda_ranges.h"

#undef LOG_PREFIX
#define LOG_PREFIX "gpuckpt: "

#define DEFAULT_TIMEOUT_S 300
#define DEFAULT_POOL_WAIT_S 10
/* What a lock may take beyond the limit that the driver itself was given. */
#define LOCK_GRACE_S 2
#define WHY_SIZE 512

enum backend { BACKEND_AUTO, BACKEND_DRIVER_API, BACKEND_CUDA_CHECKPOINT };

/* A process that the driver knows. */
struct task {
	pid_t pid;
	int restore_tid;
	CUprocessState initial; /* as we found it */
	CUprocessState state;   /* as far as we brought it */
	bool failed;            /* a call failed: ask nothing more of it in this hook */
	bool hung;              /* a call did not come back: ask nothing more at all */
	bool thread_resumed;
	k_rtsigset_t sigset;
	struct range_list memory; /* before the checkpoint */
	struct cuda_job *job;
	CUresult result;
};

/* One call of the driver API, as it is made for many tasks. */
struct driver_call {
	const char *span;
	const char *verb;
	cuda_job_call run;
	CUprocessState reaches;
	uint64_t (*bytes)(struct task *task); /* for the span; NULL: none */
};

static struct {
	enum backend backend;
	unsigned int timeout_s;
	unsigned int pool_wait_s;
	bool pool;
	struct cuda_device_map map;
} options;

static struct cuda_driver driver;
static struct task *tasks;
static size_t nr_tasks;
static bool restored;
static bool checkpointed;
static bool announced;

/* --- switches --- */

static int read_seconds(const char *name, unsigned int *seconds, unsigned int otherwise)
{
	const char *text = getenv(name);
	char *end;
	unsigned long value;

	*seconds = otherwise;
	if (!text || !*text)
		return 0;
	value = strtoul(text, &end, 10);
	if (*end || *text == '-' || value > 86400) {
		pr_err("%s=%s is not a number of seconds (0 to 86400; 0: without limit)\n", name, text);
		return -1;
	}
	*seconds = value;
	return 0;
}

static int read_backend(void)
{
	const char *text = getenv("CRIU_CUDA_BACKEND");

	if (!text || !*text || !strcmp(text, "auto"))
		options.backend = BACKEND_AUTO;
	else if (!strcmp(text, "driver-api"))
		options.backend = BACKEND_DRIVER_API;
	else if (!strcmp(text, "cuda-checkpoint"))
		options.backend = BACKEND_CUDA_CHECKPOINT;
	else {
		pr_err("CRIU_CUDA_BACKEND=%s is none of auto, driver-api, cuda-checkpoint\n", text);
		return -1;
	}
	return 0;
}

static int read_pool_switch(void)
{
	const char *text = getenv("CRIU_CUDA_CONTEXT_POOL");

	if (text && *text && strcmp(text, "0") && strcmp(text, "1")) {
		pr_err("CRIU_CUDA_CONTEXT_POOL=%s is neither 0 nor 1\n", text);
		return -1;
	}
	options.pool = text && *text == '1';
	return 0;
}

static int read_device_map(void)
{
	const char *text = getenv("CRIU_CUDA_DEVICE_MAP");
	char why[WHY_SIZE];

	options.map.count = 0;
	if (!text || !*text)
		return 0;
	if (cuda_device_map_parse(text, &options.map, why, sizeof(why))) {
		pr_err("CRIU_CUDA_DEVICE_MAP: %s\n", why);
		return -1;
	}
	if (options.backend == BACKEND_CUDA_CHECKPOINT) {
		pr_err("CRIU_CUDA_DEVICE_MAP needs CRIU_CUDA_BACKEND=driver-api\n");
		return -1;
	}
	return 0;
}

static int read_options(void)
{
	return read_backend() || read_pool_switch() || read_device_map() ||
			       read_seconds("CRIU_CUDA_TIMEOUT_S", &options.timeout_s, DEFAULT_TIMEOUT_S) ||
			       read_seconds("CRIU_CUDA_POOL_WAIT_S", &options.pool_wait_s, DEFAULT_POOL_WAIT_S)
		       ? -1
		       : 0;
}

/* --- spans --- */

void gpuckpt_cuda_span(const char *name, pid_t pid, const struct timespec *start, const struct timespec *end,
		       uint64_t bytes, const char *note)
{
	pr_info("span name=%s pid=%d start=%ld.%06ld end=%ld.%06ld bytes=%" PRIu64 " note=%s\n", name, pid,
		(long)start->tv_sec, start->tv_nsec / 1000, (long)end->tv_sec, end->tv_nsec / 1000, bytes, note);
}

static const char *result_name(CUresult result)
{
	if (result == CUDA_SUCCESS)
		return "ok";
	if (result == CUDA_JOB_TIMED_OUT)
		return "timeout";
	return cuda_driver_error(&driver, result);
}

/* --- the driver --- */

/* 0 when the driver is open, GPUCKPT_CUDA_PASS when cuda-checkpoint has to serve, -1 (and why) when neither can. */
static int reach_driver(pid_t pid, char *why, size_t why_size)
{
	struct timespec start, end;
	int ret;

	if (options.backend == BACKEND_CUDA_CHECKPOINT)
		return GPUCKPT_CUDA_PASS;
	if (driver.handle)
		return 0;

	clock_gettime(CLOCK_MONOTONIC, &start);
	ret = cuda_driver_open(&driver, CUDA_DRIVER_FOR_CHECKPOINT, why, why_size);
	clock_gettime(CLOCK_MONOTONIC, &end);
	gpuckpt_cuda_span("driver-open", pid, &start, &end, 0, ret ? "failed" : "ok");

	if (!ret && options.map.count && cuda_device_map_supported(&driver, why, why_size))
		return -1;
	if (!ret)
		return 0;

	/* cuda-checkpoint, as CRIU calls it, knows no device map. */
	if (options.backend == BACKEND_AUTO && !options.map.count && cuda_checkpoint_supports_flag("--action") == 1) {
		pr_warn("%s; falling back to cuda-checkpoint\n", why);
		options.backend = BACKEND_CUDA_CHECKPOINT;
		return GPUCKPT_CUDA_PASS;
	}
	return -1;
}

/* --- tasks --- */

static struct task *find_task(pid_t pid)
{
	for (size_t n = 0; n < nr_tasks; n++)
		if (tasks[n].pid == pid)
			return &tasks[n];
	return NULL;
}

static int add_task(pid_t pid, int restore_tid, CUprocessState state)
{
	struct task *grown = realloc(tasks, (nr_tasks + 1) * sizeof(*grown));

	if (!grown) {
		pr_err("No memory to track CUDA process %d\n", pid);
		return -1;
	}
	tasks = grown;
	tasks[nr_tasks++] = (struct task){.pid = pid, .restore_tid = restore_tid, .initial = state, .state = state};
	return 0;
}

static void forget_tasks(void)
{
	for (size_t n = 0; n < nr_tasks; n++)
		free(tasks[n].memory.ranges);
	free(tasks);
	tasks = NULL;
	nr_tasks = 0;
}

/* Whether the driver knows pid, and if so its restore thread. */
static bool is_cuda_process(pid_t pid, int *tid, CUresult *result)
{
	*result = driver.get_restore_tid(pid, tid);
	if (*result == CUDA_SUCCESS)
		pr_info("pid %d is a CUDA process, its restore thread %d\n", pid, *tid);
	else
		pr_info("pid %d is no CUDA process (%s)\n", pid, result_name(*result));
	return *result == CUDA_SUCCESS;
}

/* Tracks pid, which runs, if the driver knows it. -1 only when the driver knows it and yet cannot say more. */
static int identify(pid_t pid)
{
	CUprocessState state;
	CUresult result;
	int tid;

	if (!is_cuda_process(pid, &tid, &result))
		return 0;
	result = driver.get_state(pid, &state);
	if (result != CUDA_SUCCESS) {
		pr_err("the driver does not tell the CUDA state of pid %d: %s\n", pid, result_name(result));
		return -1;
	}
	if (state == CU_PROCESS_STATE_FAILED) {
		pr_err("pid %d is in CUDA state failed and cannot be checkpointed; restart it\n", pid);
		return -1;
	}
	return add_task(pid, tid, state);
}

/* --- driver calls for many tasks at once --- */

/* Asks the driver what came of a call. Only while the restore thread runs: a frozen process may not answer. */
static void confirm_call(const struct driver_call *call, struct task *task)
{
	CUprocessState state;

	task->result = task->job->result;
	if (task->result != CUDA_SUCCESS)
		return;
	task->result = driver.get_state(task->pid, &state);
	if (task->result == CUDA_SUCCESS)
		task->state = state;
	task->failed = task->state != call->reaches;
}

static void report_call(const struct driver_call *call, struct task *task)
{
	uint64_t bytes = call->bytes ? call->bytes(task) : 0;

	gpuckpt_cuda_span(call->span, task->pid, &task->job->start, &task->job->end, bytes, result_name(task->result));
	if (task->result != CUDA_SUCCESS) {
		pr_err("CUDA %s of pid %d failed: %s\n", call->verb, task->pid, result_name(task->result));
		task->failed = true;
		task->hung = task->result == CUDA_JOB_TIMED_OUT;
	} else if (task->failed) {
		pr_err("CUDA %s of pid %d succeeded, but its state is %s instead of %s\n", call->verb, task->pid,
		       cuda_state_name(task->state), cuda_state_name(call->reaches));
	}
}

static unsigned int lock_timeout_s(void)
{
	/* CRIU's own limit for freezing the tree, and ours: the shorter one. */
	if (!options.timeout_s || (opts.timeout && opts.timeout < options.timeout_s))
		return opts.timeout;
	return options.timeout_s;
}

static unsigned int call_timeout_s(const struct driver_call *call)
{
	if (call->run != cuda_call_lock)
		return options.timeout_s;
	return lock_timeout_s() ? lock_timeout_s() + LOCK_GRACE_S : 0;
}

typedef bool (*task_filter)(const struct task *task);

/* Makes the call for every wanted task at the same time; settle, if given, runs when the driver is done with them. */
static void run_call(const struct driver_call *call, task_filter wanted, void (*settle)(void))
{
	struct cuda_job **jobs = calloc(nr_tasks + 1, sizeof(*jobs));
	size_t count = 0, n;

	for (n = 0; n < nr_tasks; n++) {
		struct task *task = &tasks[n];

		if (task->failed || task->hung || !wanted(task))
			continue;
		task->job = jobs ? cuda_job_new(&driver, task->pid) : NULL;
		if (!task->job) {
			pr_err("No memory for the CUDA %s of pid %d\n", call->verb, task->pid);
			task->failed = true;
			continue;
		}
		task->job->map = &options.map;
		task->job->lock_timeout_ms = lock_timeout_s() * 1000;
		jobs[count++] = task->job;
	}

	cuda_jobs_run(jobs, count, call->run, call_timeout_s(call));
	for (n = 0; n < nr_tasks; n++)
		if (tasks[n].job)
			confirm_call(call, &tasks[n]);
	if (settle)
		settle();

	for (n = 0; n < nr_tasks; n++) {
		struct task *task = &tasks[n];

		if (!task->job)
			continue;
		report_call(call, task);
		cuda_job_free(task->job);
		task->job = NULL;
	}
	free(jobs);
}

static bool is_running(const struct task *task)
{
	return task->state == CU_PROCESS_STATE_RUNNING;
}

static bool is_locked(const struct task *task)
{
	return task->state == CU_PROCESS_STATE_LOCKED;
}

static bool is_checkpointed(const struct task *task)
{
	return task->state == CU_PROCESS_STATE_CHECKPOINTED;
}

static bool any_failed(void)
{
	for (size_t n = 0; n < nr_tasks; n++)
		if (tasks[n].failed)
			return true;
	return false;
}

/* --- restore threads --- */

/* The driver works inside the target, on its restore thread: that one must run while all others stay frozen. */
static void resume_threads(task_filter wanted)
{
	for (size_t n = 0; n < nr_tasks; n++) {
		struct task *task = &tasks[n];

		if (task->failed || task->hung || !wanted(task))
			continue;
		/* A task that we did not seize (yet) runs anyway. */
		if (proc_status_number(task->restore_tid, "TracerPid") != getpid())
			continue;
		if (resume_restore_thread(task->restore_tid, &task->sigset))
			task->failed = true;
		else
			task->thread_resumed = true;
	}
}

static void interrupt_threads(void)
{
	for (size_t n = 0; n < nr_tasks; n++) {
		struct task *task = &tasks[n];

		if (!task->thread_resumed)
			continue;
		task->thread_resumed = false;
		if (interrupt_restore_thread(task->restore_tid, &task->sigset))
			task->failed = true;
	}
}

/* --- dump: lock --- */

static int announce_plugin(void)
{
	if (announced || !nr_tasks)
		return 0;
	if (add_inventory_plugin(CR_PLUGIN_DESC.name)) {
		pr_err("Failed to add the CUDA plugin to the inventory image\n");
		return -1;
	}
	announced = true;
	return 0;
}

/* Tracks pid if it is a CUDA process. 0, GPUCKPT_CUDA_PASS or -1. */
static int consider(pid_t pid)
{
	char device[64], why[WHY_SIZE];
	int ret;

	if (find_task(pid) || !proc_maps_libcuda(pid))
		return 0;
	ret = reach_driver(pid, why, sizeof(why));
	if (!ret)
		return identify(pid);
	if (ret == GPUCKPT_CUDA_PASS)
		return ret;
	if (proc_holds_gpu_device(pid, device, sizeof(device))) {
		pr_err("pid %d has %s open and its GPU memory cannot be taken: %s\n", pid, device, why);
		return -1;
	}
	/* The library alone (a framework that found no GPU) holds nothing that could be lost. */
	pr_info("pid %d has the driver library loaded, but no GPU open (%s)\n", pid, why);
	return 0;
}

static int consider_all(const struct pid_list *pids)
{
	int ret = 0;

	for (size_t n = 0; n < pids->count && !ret; n++)
		ret = consider(pids->pids[n]);
	return ret;
}

int gpuckpt_cuda_pause(pid_t pid)
{
	static const struct driver_call lock = {
		.span = "cuda-lock",
		.verb = "lock",
		.run = cuda_call_lock,
		.reaches = CU_PROCESS_STATE_LOCKED,
	};
	struct pid_list tree = {};
	int ret;

	if (options.backend == BACKEND_CUDA_CHECKPOINT)
		return GPUCKPT_CUDA_PASS;

	/* The first call names the root: lock the whole tree before any of it is frozen. */
	ret = proc_descendants(pid, &tree);
	if (ret)
		pr_err("No memory to list the processes below pid %d\n", pid);
	else
		ret = consider_all(&tree);
	free(tree.pids);
	if (ret)
		return ret;

	run_call(&lock, is_running, NULL);
	if (any_failed() || announce_plugin())
		return -1;
	return 0;
}

/* --- dump: checkpoint --- */

static uint64_t record_ranges(pid_t pid, const struct range_list *before)
{
	struct range_list after = {}, parked = {};
	uint64_t bytes = 0;

	if (proc_anonymous_ranges(pid, &after) || range_difference(&after, before, &parked)) {
		pr_warn("Cannot tell which memory of pid %d the driver parked GPU data in\n", pid);
		parked.count = 0;
	}
	bytes = range_total_bytes(&parked);
	cuda_ranges_write(pid, &parked);
	free(after.ranges);
	free(parked.ranges);
	return bytes;
}

static uint64_t record_parked(struct task *task)
{
	uint64_t bytes;

	if (task->result != CUDA_SUCCESS)
		return 0;
	bytes = record_ranges(task->pid, &task->memory);
	if (!bytes)
		pr_warn("pid %d was checkpointed, but its memory did not grow: it held no GPU memory\n", task->pid);
	return bytes;
}

/* A process that somebody else had checkpointed before: where its data lies is not known, but that it has some is. */
static void record_parked_by_others(void)
{
	static const struct range_list unknown;

	for (size_t n = 0; n < nr_tasks; n++)
		if (tasks[n].initial == CU_PROCESS_STATE_CHECKPOINTED)
			cuda_ranges_write(tasks[n].pid, &unknown);
}

static void checkpoint_all(void)
{
	static const struct driver_call checkpoint = {
		.span = "cuda-checkpoint",
		.verb = "checkpoint",
		.run = cuda_call_checkpoint,
		.reaches = CU_PROCESS_STATE_CHECKPOINTED,
		.bytes = record_parked,
	};

	for (size_t n = 0; n < nr_tasks; n++)
		if (proc_anonymous_ranges(tasks[n].pid, &tasks[n].memory))
			pr_warn("Cannot read the memory map of pid %d\n", tasks[n].pid);

	record_parked_by_others();
	resume_threads(is_locked);
	run_call(&checkpoint, is_locked, interrupt_threads);
}

int gpuckpt_cuda_refuse_unsaved(pid_t pid)
{
	char device[64];
	CUresult result = CUDA_SUCCESS;
	int tid;

	if (!proc_holds_gpu_device(pid, device, sizeof(device)))
		return 0;
	if (driver.handle)
		result = driver.get_restore_tid(pid, &tid);

	if (driver.handle && result == CUDA_SUCCESS)
		pr_err("pid %d initialised CUDA while it was being frozen; checkpoint again\n", pid);
	else if (driver.handle && cuda_driver_unreachable(result))
		pr_err("pid %d has %s open and the driver cannot be asked about it: %s\n", pid, device,
		       result_name(result));
	else
		pr_err("pid %d has %s open, but no CUDA state that could be saved (NVML, graphics, or a fork of a CUDA "
		       "process?); close it before the checkpoint\n",
		       pid, device);
	return -1;
}

int gpuckpt_cuda_checkpoint(pid_t pid)
{
	struct task *task;

	if (options.backend == BACKEND_CUDA_CHECKPOINT)
		return GPUCKPT_CUDA_PASS;

	if (!checkpointed) {
		checkpointed = true;
		checkpoint_all();
	}
	task = find_task(pid);
	if (!task)
		return gpuckpt_cuda_refuse_unsaved(pid);
	return task->failed || !is_checkpointed(task) ? -1 : 0;
}

/* --- restore, and putting back after a dump --- */

static uint64_t parked_bytes(struct task *task)
{
	uint64_t bytes;

	cuda_ranges_read(task->pid, &bytes);
	return bytes;
}

static const struct driver_call restore_call = {
	.span = "cuda-restore",
	.verb = "restore",
	.run = cuda_call_restore,
	.reaches = CU_PROCESS_STATE_LOCKED,
	.bytes = parked_bytes,
};

static const struct driver_call unlock_call = {
	.span = "cuda-unlock",
	.verb = "unlock",
	.run = cuda_call_unlock,
	.reaches = CU_PROCESS_STATE_RUNNING,
};

static bool out_of_memory(const struct task *task)
{
	return task->result == CUDA_ERROR_OUT_OF_MEMORY && is_checkpointed(task);
}

/* The pool's contexts take GPU memory of their own: give it back to who ran short of it. */
static void retry_without_pool(void)
{
	bool any = false;

	for (size_t n = 0; n < nr_tasks; n++)
		any = any || out_of_memory(&tasks[n]);
	if (!any || !gpuckpt_pool_release())
		return;

	pr_warn("GPU memory ran short; trying again without the context pool\n");
	for (size_t n = 0; n < nr_tasks; n++)
		if (out_of_memory(&tasks[n]))
			tasks[n].failed = false;
	run_call(&restore_call, out_of_memory, NULL);
}

static bool is_not_running(const struct task *task)
{
	return !is_running(task);
}

static void resume_all(void)
{
	resume_threads(is_not_running);
	run_call(&restore_call, is_checkpointed, NULL);
	retry_without_pool();
	run_call(&unlock_call, is_locked, NULL);
	interrupt_threads();
}

/* Tracks pid if it was a CUDA process at the dump. */
static int consider_restored(pid_t pid)
{
	char why[WHY_SIZE];
	CUresult result;
	uint64_t bytes;
	bool recorded = cuda_ranges_read(pid, &bytes);
	int ret, tid;

	if (!recorded && !proc_maps_libcuda(pid))
		return 0;
	ret = reach_driver(pid, why, sizeof(why));
	if (ret < 0)
		pr_err("pid %d holds checkpointed CUDA state that cannot be restored: %s\n", pid, why);
	if (ret)
		return ret;
	/* Not asked for its state, since it is frozen: in the images it was checkpointed. */
	if (is_cuda_process(pid, &tid, &result))
		return add_task(pid, tid, CU_PROCESS_STATE_CHECKPOINTED);

	if (recorded)
		pr_err("pid %d was a CUDA process at the dump, but the driver does not know it now: %s\n", pid,
		       result_name(result));
	else if (cuda_driver_unreachable(result))
		pr_err("the driver cannot be asked about pid %d: %s\n", pid, result_name(result));
	else
		return 0;
	return -1;
}

static int restore_tree(void)
{
	struct pstree_item *item;
	int ret = 0;

	for_each_pstree_item(item)
	{
		if (ret)
			return ret;
		if (task_alive(item))
			ret = consider_restored(item->pid->real);
	}
	if (ret)
		return ret;
	if (!nr_tasks) {
		pr_err("the images hold CUDA processes, but the driver finds none in the restored tree\n");
		return -1;
	}
	resume_all();
	return 0;
}

int gpuckpt_cuda_resume(pid_t pid)
{
	static int tree_result;
	struct task *task;

	if (!restored) {
		restored = true;
		if (options.pool)
			gpuckpt_pool_wait(options.pool_wait_s);
		if (options.backend != BACKEND_CUDA_CHECKPOINT)
			tree_result = restore_tree();
	}
	if (options.backend == BACKEND_CUDA_CHECKPOINT)
		return GPUCKPT_CUDA_PASS;
	if (tree_result)
		return tree_result;
	task = find_task(pid);
	return task && (task->failed || !is_running(task)) ? -1 : 0;
}

static bool has_to_go_back(const struct task *task)
{
	return task->state != task->initial;
}

static bool has_to_be_restored(const struct task *task)
{
	return has_to_go_back(task) && is_checkpointed(task);
}

static bool has_to_be_unlocked(const struct task *task)
{
	return has_to_go_back(task) && is_locked(task);
}

static bool is_any(const struct task *task)
{
	return task != NULL;
}

/* After a failed dump, or one that leaves the tree running: every process back to the state we found it in. */
static void put_back(void)
{
	size_t n;

	for (n = 0; n < nr_tasks; n++)
		tasks[n].failed = false;

	resume_threads(is_any);
	/* What a failed call left behind, only the driver knows. */
	for (n = 0; n < nr_tasks; n++)
		if (!tasks[n].hung)
			tasks[n].failed = driver.get_state(tasks[n].pid, &tasks[n].state) != CUDA_SUCCESS;
	run_call(&restore_call, has_to_be_restored, NULL);
	run_call(&unlock_call, has_to_be_unlocked, NULL);
	interrupt_threads();

	for (n = 0; n < nr_tasks; n++)
		if (tasks[n].hung || tasks[n].failed || has_to_go_back(&tasks[n]))
			pr_err("pid %d stays in CUDA state %s and will hang at its next CUDA call; try cuda-checkpoint "
			       "--action restore (if checkpointed) and unlock, else restart it\n",
			       tasks[n].pid, cuda_state_name(tasks[n].state));
}

/* --- the cuda-checkpoint backend, which handles one process after another --- */

static struct range_list memory_before;

void gpuckpt_cuda_action_begin(const char *action, pid_t pid, struct timespec *start)
{
	if (!strcmp(action, "checkpoint") && proc_anonymous_ranges(pid, &memory_before))
		pr_warn("Cannot read the memory map of pid %d\n", pid);
	clock_gettime(CLOCK_MONOTONIC, start);
}

void gpuckpt_cuda_action_end(const char *action, pid_t pid, const struct timespec *start, int status)
{
	struct timespec end;
	uint64_t bytes = 0;
	char name[32];

	clock_gettime(CLOCK_MONOTONIC, &end);
	if (!strcmp(action, "checkpoint") && !status)
		bytes = record_ranges(pid, &memory_before);
	else if (!strcmp(action, "restore"))
		cuda_ranges_read(pid, &bytes);
	snprintf(name, sizeof(name), "cuda-%s", action);
	gpuckpt_cuda_span(name, pid, start, &end, bytes, status ? "failed" : "ok");
}

int gpuckpt_cuda_refuse_lost(pid_t pid)
{
	uint64_t bytes;

	if (!cuda_ranges_read(pid, &bytes))
		return 0;
	pr_err("pid %d was a CUDA process at the dump, but the driver does not know it now\n", pid);
	return -1;
}

/* --- the plugin's life --- */

int gpuckpt_cuda_unavailable(int stage)
{
	if (stage != CR_PLUGIN_STAGE__RESTORE)
		return 0;
	pr_err("the images hold CUDA state, but this node has no GPU or no way to reach its driver (see above)\n");
	return -1;
}

int gpuckpt_cuda_init(int stage)
{
	if (read_options())
		return -1;
	if (stage == CR_PLUGIN_STAGE__RESTORE && options.pool)
		gpuckpt_pool_start();
	return options.backend == BACKEND_CUDA_CHECKPOINT ? GPUCKPT_CUDA_PASS : 0;
}

void gpuckpt_cuda_fini(int stage, int failed)
{
	if (stage == CR_PLUGIN_STAGE__DUMP && nr_tasks && (failed || opts.final_state == TASK_ALIVE))
		put_back();
	if (stage == CR_PLUGIN_STAGE__RESTORE)
		gpuckpt_pool_release();
	forget_tasks();
	free(memory_before.ranges);
}
