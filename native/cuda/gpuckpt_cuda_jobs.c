/* SPDX-License-Identifier: GPL-2.0-only */
#define _GNU_SOURCE
#include "gpuckpt_cuda_jobs.h"

#include <signal.h>
#include <stdlib.h>

CUresult cuda_call_lock(const struct cuda_job *job)
{
	return cuda_driver_lock(job->driver, job->pid, job->lock_timeout_ms);
}

CUresult cuda_call_checkpoint(const struct cuda_job *job)
{
	return cuda_driver_checkpoint(job->driver, job->pid);
}

CUresult cuda_call_restore(const struct cuda_job *job)
{
	return cuda_driver_restore(job->driver, job->pid, job->map);
}

CUresult cuda_call_unlock(const struct cuda_job *job)
{
	return cuda_driver_unlock(job->driver, job->pid);
}

struct cuda_job *cuda_job_new(const struct cuda_driver *driver, pid_t pid)
{
	struct cuda_job *job = calloc(1, sizeof(*job));

	if (job) {
		job->driver = driver;
		job->pid = pid;
	}
	return job;
}

static void *run_job(void *argument)
{
	struct cuda_job *job = argument;

	job->returned = job->call(job);
	clock_gettime(CLOCK_MONOTONIC, &job->returned_at);
	return NULL;
}

static void start_job(struct cuda_job *job, cuda_job_call call)
{
	job->call = call;
	clock_gettime(CLOCK_MONOTONIC, &job->start);
	job->started = !pthread_create(&job->thread, NULL, run_job, job);
	if (!job->started)
		run_job(job);
}

static int join_job(struct cuda_job *job, const struct timespec *deadline)
{
	if (!job->started)
		return 0;
	return deadline ? pthread_clockjoin_np(job->thread, NULL, CLOCK_MONOTONIC, deadline)
			: pthread_join(job->thread, NULL);
}

static void finish_job(struct cuda_job *job, const struct timespec *deadline)
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

void cuda_jobs_run(struct cuda_job **jobs, size_t count, cuda_job_call call, unsigned int timeout_s)
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

void cuda_job_free(struct cuda_job *job)
{
	if (job && !job->abandoned)
		free(job);
}
