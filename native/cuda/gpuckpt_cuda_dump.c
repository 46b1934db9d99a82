/* SPDX-License-Identifier: GPL-2.0-only */
/* The hooks of a dump: lock the tree before it is frozen, checkpoint it when it is. */
#include "criu-log.h"
#include "plugin.h"
#include "cr_options.h"
#include "util.h"

#include <stdlib.h>

#include "gpuckpt_cuda_options.h"
#include "gpuckpt_cuda_plugin.h"
#include "gpuckpt_cuda_ranges.h"
#include "gpuckpt_cuda_staging.h"
#include "gpuckpt_cuda_tasks.h"

#undef LOG_PREFIX
#define LOG_PREFIX "gpuckpt: "

static bool announced;
static bool checkpointed;

/* Tracks pid, which runs, if the driver knows it. -1 only when the driver knows it and yet cannot say more. */
static int identify(pid_t pid)
{
	CUprocessState state;
	CUresult result;
	int tid;

	if (!gc_is_cuda_process(pid, &tid, &result))
		return 0;
	result = gc_driver.get_state(pid, &state);
	if (result != CUDA_SUCCESS) {
		pr_err("the driver does not tell the CUDA state of pid %d: %s\n", pid, gc_result_name(result));
		return -1;
	}
	if (state == CU_PROCESS_STATE_FAILED) {
		pr_err("pid %d is in CUDA state failed and cannot be checkpointed; restart it\n", pid);
		return -1;
	}
	return gc_add_task(pid, tid, state);
}

static int announce_plugin(void)
{
	if (announced || !gc_nr_tasks)
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
	char device[64], why[CUDA_WHY_SIZE];
	int ret;

	if (gc_find_task(pid) || !gc_proc_maps_libcuda(pid))
		return 0;
	ret = gc_reach_driver(pid, why, sizeof(why));
	if (!ret)
		return identify(pid);
	if (ret == GPUCKPT_CUDA_PASS)
		return ret;
	if (gc_proc_holds_gpu_device(pid, device, sizeof(device))) {
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

int gc_pause(pid_t pid)
{
	static const struct driver_call lock = {
		.span = "cuda-lock",
		.verb = "lock",
		.run = gc_call_lock,
		.reaches = CU_PROCESS_STATE_LOCKED,
	};
	struct pid_list tree = {};
	int ret;

	if (gc_options.backend == BACKEND_CUDA_CHECKPOINT)
		return GPUCKPT_CUDA_PASS;

	/* The first call names the root: lock the whole tree before any of it is frozen. */
	ret = gc_proc_descendants(pid, &tree);
	if (ret)
		pr_err("No memory to list the processes below pid %d\n", pid);
	else
		ret = consider_all(&tree);
	free(tree.pids);
	if (ret)
		return ret;

	if (gc_staging_put_aside())
		return -1;
	gc_run_call(&lock, gc_is_running, NULL);
	if (gc_any_failed() || announce_plugin())
		return -1;
	return 0;
}

static uint64_t record_parked(struct task *task)
{
	uint64_t bytes;

	if (task->result != CUDA_SUCCESS)
		return 0;
	bytes = gc_ranges_record(task->pid, &task->memory);
	if (!bytes && !task->staged)
		pr_warn("pid %d was checkpointed, but its memory did not grow: it held no GPU memory\n", task->pid);
	return bytes;
}

/* A process that somebody else had checkpointed before: where its data lies is not known, but that it has some is. */
static void record_parked_by_others(void)
{
	static const struct range_list unknown;

	for (size_t n = 0; n < gc_nr_tasks; n++)
		if (gc_tasks[n].initial == CU_PROCESS_STATE_CHECKPOINTED)
			gc_ranges_write(gc_tasks[n].pid, &unknown);
}

static void checkpoint_all(void)
{
	static const struct driver_call checkpoint = {
		.span = "cuda-checkpoint",
		.verb = "checkpoint",
		.run = gc_call_checkpoint,
		.reaches = CU_PROCESS_STATE_CHECKPOINTED,
		.bytes = record_parked,
	};

	for (size_t n = 0; n < gc_nr_tasks; n++)
		if (gc_proc_anonymous_ranges(gc_tasks[n].pid, &gc_tasks[n].memory))
			pr_warn("Cannot read the memory map of pid %d\n", gc_tasks[n].pid);

	record_parked_by_others();
	gc_resume_threads(gc_is_locked);
	gc_run_call(&checkpoint, gc_is_locked, gc_interrupt_threads);
}

int gc_refuse_unsaved(pid_t pid)
{
	char device[64];
	CUresult result = CUDA_SUCCESS;
	int tid;

	if (!gc_proc_holds_gpu_device(pid, device, sizeof(device)))
		return 0;
	if (gc_driver.handle)
		result = gc_driver.get_restore_tid(pid, &tid);

	if (gc_driver.handle && result == CUDA_SUCCESS)
		pr_err("pid %d initialised CUDA while it was being frozen; checkpoint again\n", pid);
	else if (gc_driver.handle && gc_driver_unreachable(result))
		pr_err("pid %d has %s open and the driver cannot be asked about it: %s\n", pid, device,
		       gc_result_name(result));
	else
		pr_err("pid %d has %s open, but no CUDA state that could be saved (NVML, graphics, or a fork of a CUDA "
		       "process?); close it before the checkpoint\n",
		       pid, device);
	return -1;
}

int gc_checkpoint(pid_t pid)
{
	struct task *task;

	if (gc_options.backend == BACKEND_CUDA_CHECKPOINT)
		return GPUCKPT_CUDA_PASS;

	if (!checkpointed) {
		checkpointed = true;
		checkpoint_all();
	}
	task = gc_find_task(pid);
	if (!task)
		return gc_refuse_unsaved(pid);
	return task->failed || !gc_is_checkpointed(task) ? -1 : 0;
}
