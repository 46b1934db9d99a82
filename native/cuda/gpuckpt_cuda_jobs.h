/* SPDX-License-Identifier: GPL-2.0-only */
/* The same driver call on several processes at once, each on a thread of its own. No CRIU in here. */
#ifndef GPUCKPT_CUDA_JOBS_H
#define GPUCKPT_CUDA_JOBS_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

#include "gpuckpt_cuda_driver.h"

/* Returned for a call that did not come back in time; no CUresult is negative. */
#define CUDA_JOB_TIMED_OUT (-1)

struct gc_job;
typedef CUresult (*gc_job_call)(const struct gc_job *job);

/* One driver call. Allocated with gc_job_new, freed with gc_job_free. */
struct gc_job {
	const struct gc_driver *driver;
	const struct gc_device_map *map;
	unsigned int lock_timeout_ms;
	pid_t pid;

	CUresult result;
	struct timespec start; /* CLOCK_MONOTONIC */
	struct timespec end;

	/* Private to gpuckpt_cuda_jobs.c. */
	gc_job_call call;
	pthread_t thread;
	bool started;
	bool abandoned;
	/* Written by the thread, read only after it was joined. */
	CUresult returned;
	struct timespec returned_at;
};

struct gc_job *gc_job_new(const struct gc_driver *driver, pid_t pid);

/*
 * Runs call for each job and waits for all of them, timeout_s at most (0: without limit).
 * A job whose thread cannot be started is run in place.
 */
void gc_jobs_run(struct gc_job **jobs, size_t count, gc_job_call call, unsigned int timeout_s);

/* Keeps the memory of an abandoned job: its thread may still come back from the driver and write there. */
void gc_job_free(struct gc_job *job);

CUresult gc_call_lock(const struct gc_job *job);
CUresult gc_call_checkpoint(const struct gc_job *job);
CUresult gc_call_restore(const struct gc_job *job);
CUresult gc_call_unlock(const struct gc_job *job);

#endif
