/* SPDX-License-Identifier: GPL-2.0-only */
#define _GNU_SOURCE
#include "gpuckpt_cuda_jobs.h"

#include <signal.h>
#include <stdlib.h>

CUresult gc_call_lock(const struct gc_job *job)
{
	return gc_driver_lock(job->driver, job->pid, job->lock_timeout_ms);
}

CUresult gc_call_checkpoint(const struct gc_job *job)
{
	return gc_driver_checkpoint(job->driver, job->pid);
}

CUresult gc_call_restore(const struct gc_job *job)
{
	return gc_driver_restore(job->driver, job->pid, job->map);
}

CUresult gc_call_unlock(const struct gc_job *job)
{
	return gc_driver_unlock(job->driver, job->pid);
}

struct gc_job *gc_job_new(const struct gc_driver *driver, pid_t pid)
{
	struct gc_job *job = calloc(1, sizeof(*job));

	if (job) {
		job->driver = driver;
		job->pid = pid;
	}
	return job;
}

static void *run_job(void *argument)
{
	struct gc_job *job = argument;

	job->returned = job->call(job);
	clock_gettime(CLOCK_MONOTONIC, &job->returned_at);
	return NULL;
}

static void start_job(struct gc_job *job, gc_job_call call)
{
	job->call = call;
	clock_gettime(CLOCK_MONOTONIC, &job->start);
	job->started = !pthread_create(&job->thread, NULL, run_job, job);
	if (!job->started)
		run_job(job);
}

static int join_job(struct gc_job *job, const struct timespec *deadline)
{
	if (!job->started)
		return 0;
	return deadline ? pthread_clockjoin_np(job->thread, NULL, CLOCK_MONOTONIC, deadline)
			: pthread_join(job->thread, NULL);
}

static void finish_job(struct gc_job *job, const struct timespec *deadline)
{
	if (join_job(job, deadline)) {
		pthread_detach(job->thread);
		job->abandoned = true;
		job->result = CUDA_JOB_TIMED_OUT;
		clock_gettime(CLOCK_MONOTONIC, &job->end);
		return;
	}
	job->result = job->returned;
	job->end = job->returned_at;
}

void gc_jobs_run(struct gc_job **jobs, size_t count, gc_job_call call, unsigned int timeout_s)
{
	struct timespec deadline;
	sigset_t all, old;
	size_t n;

	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += timeout_s;

	/* Signals are the main thread's business (CRIU's SIGCHLD and SIGALRM). */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (n = 0; n < count; n++)
		start_job(jobs[n], call);
	pthread_sigmask(SIG_SETMASK, &old, NULL);

	for (n = 0; n < count; n++)
		finish_job(jobs[n], timeout_s ? &deadline : NULL);
}

void gc_job_free(struct gc_job *job)
{
	if (job && !job->abandoned)
		free(job);
}
