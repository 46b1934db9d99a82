/* SPDX-License-Identifier: GPL-2.0-only */
/* The CUDA processes of the tree, and driver calls for many of them at once. */
#ifndef GPUCKPT_CUDA_TASKS_H
#define GPUCKPT_CUDA_TASKS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <compel/infect.h>

#include "gpuckpt_cuda_driver.h"
#include "gpuckpt_cuda_jobs.h"
#include "gpuckpt_cuda_proc.h"

/* A process that the driver knows. */
struct task {
	pid_t pid;
	int restore_tid;
	CUprocessState initial; /* as we found it */
	CUprocessState state;   /* as far as we brought it */
	bool failed;            /* a call failed: ask nothing more of it in this hook */
	bool hung;              /* a call did not come back: ask nothing more at all */
	bool thread_resumed;
	bool staging_asked; /* to put its GPU memory aside */
	bool staged;        /* it did: the memory is in a file */
	k_rtsigset_t sigset;
	struct range_list memory; /* before the checkpoint */
	struct gc_job *job;
	CUresult result;
};

/* One call of the driver API, as it is made for many tasks. */
struct driver_call {
	const char *span;
	const char *verb;
	gc_job_call run;
	CUprocessState reaches;
	uint64_t (*bytes)(struct task *task); /* for the span; NULL: none */
};

typedef bool (*task_filter)(const struct task *task);

extern struct gc_driver gc_driver; /* handle is NULL until it was needed */
extern struct task *gc_tasks;
extern size_t gc_nr_tasks;

/* 0 when the driver is open, GPUCKPT_CUDA_PASS when cuda-checkpoint has to serve, -1 (and why) when neither can. */
int gc_reach_driver(pid_t pid, char *why, size_t why_size);

/* One word for a result of a call, for spans and messages. */
const char *gc_result_name(CUresult result);

/* Whether the driver knows pid, and if so its restore thread. */
bool gc_is_cuda_process(pid_t pid, int *tid, CUresult *result);

struct task *gc_find_task(pid_t pid);
/* 0, or -1 with an error logged. */
int gc_add_task(pid_t pid, int restore_tid, CUprocessState state);
void gc_forget_tasks(void);

/* Makes the call for every wanted task at the same time; settle, if given, runs when the driver is done with them. */
void gc_run_call(const struct driver_call *call, task_filter wanted, void (*settle)(void));

/* Lets the restore threads of wanted tasks run, and stops all that run so. On CRIU's main thread only. */
void gc_resume_threads(task_filter wanted);
void gc_interrupt_threads(void);

bool gc_is_running(const struct task *task);
bool gc_is_locked(const struct task *task);
bool gc_is_checkpointed(const struct task *task);
bool gc_any_failed(void);

/* Every process back to the state that the dump found it in. */
void gc_put_back(void);

#endif
