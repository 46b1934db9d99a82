/* SPDX-License-Identifier: GPL-2.0-only */
/* The hook of a restore, and putting processes back after a dump that failed or left them running. */
#include "criu-log.h"
#include "plugin.h"
#include "cr_options.h"
#include "pstree.h"

#include "gpuckpt_cuda_options.h"
#include "gpuckpt_cuda_plugin.h"
#include "gpuckpt_cuda_pool.h"
#include "gpuckpt_cuda_ranges.h"
#include "gpuckpt_cuda_staging.h"
#include "gpuckpt_cuda_tasks.h"

#undef LOG_PREFIX
#define LOG_PREFIX "gpuckpt: "

static bool restored;

static uint64_t parked_bytes(struct task *task)
{
	uint64_t bytes;

	gc_ranges_read(task->pid, &bytes);
	return bytes;
}

static const struct driver_call restore_call = {
	.span = "cuda-restore",
	.verb = "restore",
	.run = gc_call_restore,
	.reaches = CU_PROCESS_STATE_LOCKED,
	.bytes = parked_bytes,
};

static const struct driver_call unlock_call = {
	.span = "cuda-unlock",
	.verb = "unlock",
	.run = gc_call_unlock,
	.reaches = CU_PROCESS_STATE_RUNNING,
};

static bool out_of_memory(const struct task *task)
{
	return task->result == CUDA_ERROR_OUT_OF_MEMORY && gc_is_checkpointed(task);
}

/* The pool's contexts take GPU memory of their own: give it back to who ran short of it. */
static void retry_without_pool(void)
{
	bool any = false;

	for (size_t n = 0; n < gc_nr_tasks; n++)
		any = any || out_of_memory(&gc_tasks[n]);
	if (!any || !gc_pool_release())
		return;

	pr_warn("GPU memory ran short; trying again without the context pool\n");
	for (size_t n = 0; n < gc_nr_tasks; n++)
		if (out_of_memory(&gc_tasks[n]))
			gc_tasks[n].failed = false;
	gc_run_call(&restore_call, out_of_memory, NULL);
}

static bool is_not_running(const struct task *task)
{
	return !gc_is_running(task);
}

static void resume_all(void)
{
	gc_resume_threads(is_not_running);
	gc_run_call(&restore_call, gc_is_checkpointed, NULL);
	retry_without_pool();
	/* Ranks of a server wait for one another: none may run where one is missing. The restore fails as a whole. */
	if (!gc_any_failed())
		gc_run_call(&unlock_call, gc_is_locked, NULL);
	gc_interrupt_threads();
}

/* Tracks pid if it was a CUDA process at the dump. */
static int consider_restored(pid_t pid)
{
	char why[CUDA_WHY_SIZE];
	CUresult result;
	uint64_t bytes;
	bool recorded = gc_ranges_read(pid, &bytes);
	int ret, tid;

	if (!recorded && !gc_proc_maps_libcuda(pid))
		return 0;
	ret = gc_reach_driver(pid, why, sizeof(why));
	if (ret < 0)
		pr_err("pid %d holds checkpointed CUDA state that cannot be restored: %s\n", pid, why);
	if (ret)
		return ret;
	/* Not asked for its state, since it is frozen: in the images it was checkpointed. */
	if (gc_is_cuda_process(pid, &tid, &result))
		return gc_add_task(pid, tid, CU_PROCESS_STATE_CHECKPOINTED);

	if (recorded)
		pr_err("pid %d was a CUDA process at the dump, but the driver does not know it now: %s\n", pid,
		       gc_result_name(result));
	else if (gc_driver_unreachable(result))
		pr_err("the driver cannot be asked about pid %d: %s\n", pid, gc_result_name(result));
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
	if (!gc_nr_tasks) {
		pr_err("the images hold CUDA processes, but the driver finds none in the restored tree\n");
		return -1;
	}
	resume_all();
	return 0;
}

int gc_resume(pid_t pid)
{
	static int tree_result;
	struct task *task;

	if (!restored) {
		restored = true;
		if (gc_options.pool)
			gc_pool_wait(gc_options.pool_wait_s);
		if (gc_options.backend != BACKEND_CUDA_CHECKPOINT)
			tree_result = restore_tree();
	}
	if (gc_options.backend == BACKEND_CUDA_CHECKPOINT)
		return GPUCKPT_CUDA_PASS;
	if (tree_result)
		return tree_result;
	task = gc_find_task(pid);
	return task && (task->failed || !gc_is_running(task)) ? -1 : 0;
}

static bool has_to_go_back(const struct task *task)
{
	return task->state != task->initial;
}

static bool has_to_be_restored(const struct task *task)
{
	return has_to_go_back(task) && gc_is_checkpointed(task);
}

static bool has_to_be_unlocked(const struct task *task)
{
	return has_to_go_back(task) && gc_is_locked(task);
}

static bool is_any(const struct task *task)
{
	return task != NULL;
}

/* After a failed dump, or one that leaves the tree running: every process back to the state we found it in. */
void gc_put_back(void)
{
	size_t n;

	for (n = 0; n < gc_nr_tasks; n++)
		gc_tasks[n].failed = false;

	gc_resume_threads(is_any);
	/* What a failed call left behind, only the driver knows. */
	for (n = 0; n < gc_nr_tasks; n++)
		if (!gc_tasks[n].hung)
			gc_tasks[n].failed = gc_driver.get_state(gc_tasks[n].pid, &gc_tasks[n].state) != CUDA_SUCCESS;
	gc_run_call(&restore_call, has_to_be_restored, NULL);
	gc_run_call(&unlock_call, has_to_be_unlocked, NULL);
	gc_interrupt_threads();
	gc_staging_put_back();

	for (n = 0; n < gc_nr_tasks; n++)
		if (gc_tasks[n].hung || gc_tasks[n].failed || has_to_go_back(&gc_tasks[n]))
			pr_err("pid %d stays in CUDA state %s and will hang at its next CUDA call; try cuda-checkpoint "
			       "--action restore (if checkpointed) and unlock, else restart it\n",
			       gc_tasks[n].pid, gc_state_name(gc_tasks[n].state));
}
