/* SPDX-License-Identifier: GPL-2.0-only */
#define _GNU_SOURCE
#include "criu-log.h"
#include "criu-plugin.h"
#include "plugin.h"
#include "cr_options.h"
#include "pid.h"
#include "pstree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpuckpt_cuda_options.h"
#include "gpuckpt_cuda_plugin.h"
#include "gpuckpt_cuda_staging.h"
#include "gpuckpt_cuda_staging_client.h"

#undef LOG_PREFIX
#define LOG_PREFIX "gpuckpt: "

/* What is asked of one program. */
struct question {
	pid_t pid;
	int socket;
	enum gs_request_kind kind;
	struct timespec start;
	bool failed;
};

static void file_name(pid_t pid, char *name, size_t size)
{
	snprintf(name, size, GC_STAGING_FILE, (int)gc_proc_status_number(pid, "NSpid"));
}

static int open_file(pid_t pid, int flags)
{
	char name[64];

	file_name(pid, name, sizeof(name));
	return openat(criu_get_image_dir(), name, flags | O_CLOEXEC, 0600);
}

static void remove_file(pid_t pid)
{
	char name[64];

	file_name(pid, name, sizeof(name));
	unlinkat(criu_get_image_dir(), name, 0);
}

/* For the calls and the work of a program to end: CRIU's limit, or else ours, or none. */
static uint32_t limit_ms(void)
{
	unsigned int limit_s = opts.timeout ?: gc_options.timeout_s;

	return limit_s && limit_s < UINT32_MAX / 1000 ? limit_s * 1000 : UINT32_MAX;
}

/* Sends one request and closes the file: the program has its own copy then. */
static bool ask(struct question *question, enum gs_request_kind kind, int file)
{
	struct gs_request request = {
		.magic = GS_MAGIC,
		.kind = kind,
		.limit_ms = limit_ms(),
		.number = kind,
	};
	bool sent;

	question->kind = kind;
	clock_gettime(CLOCK_MONOTONIC, &question->start);
	sent = gc_staging_ask(question->socket, &request, file);
	if (!sent)
		pr_perror("The staging library in pid %d cannot be asked", question->pid);
	if (file >= 0)
		close(file);
	return sent;
}

/* Waits for one answer, and logs it as a span. False, with a message, when it is a refusal or does not come. */
static bool await(struct question *question, const char *span, struct gs_answer *answer)
{
	int limit_ms = gc_options.timeout_s ? (int)gc_options.timeout_s * 1000 : -1;
	bool answered = gc_staging_answer(question->socket, question->kind, limit_ms, answer);
	uint64_t carried = answered ? answer->bytes - answer->zero_bytes - answer->dropped_bytes : 0;
	struct timespec end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	gc_span(span, question->pid, &question->start, &end, carried,
		!answered ? "timeout" : (answer->refused ? "refused" : "ok"));
	if (!answered)
		pr_err("the staging library in pid %d does not answer\n", question->pid);
	else if (answer->refused)
		pr_warn("the staging library in pid %d: %s\n", question->pid, answer->text);
	return answered && !answer->refused;
}

/* --- dump --- */

static bool can_put_aside(struct task *task)
{
	return !task->staging_asked && !task->failed && task->initial == CU_PROCESS_STATE_RUNNING;
}

/* GS_STAGE, or GS_ASK where memory stays with the driver: a streamed image has no folder to put another file in. */
static enum gs_request_kind what_to_ask(void)
{
	return gc_options.staging && !opts.stream ? GS_STAGE : GS_ASK;
}

static bool begin_to_put_aside(struct task *task, struct question *question)
{
	int file = -1;

	task->staging_asked = true;
	*question = (struct question){.pid = task->pid, .socket = gc_staging_connect(task->pid)};
	if (question->socket < 0)
		return false;
	if (what_to_ask() == GS_STAGE)
		file = open_file(task->pid, O_RDWR | O_CREAT | O_TRUNC);
	if (what_to_ask() == GS_STAGE && file < 0)
		pr_perror("Cannot create a staging file for pid %d in the image folder", task->pid);
	if (ask(question, file < 0 ? GS_ASK : GS_STAGE, file))
		return true;
	close(question->socket);
	return false;
}

/* 0, or -1 where the memory is away already, by a request that was not ours. */
static int finish_putting_aside(struct task *task, struct question *question)
{
	struct gs_answer answer = {};
	bool done = await(question, question->kind == GS_STAGE ? "gpu-stage" : "gpu-ask", &answer);

	close(question->socket);
	task->staged = done && question->kind == GS_STAGE;
	if (task->staged)
		return 0;
	if (question->kind == GS_STAGE)
		remove_file(task->pid);
	if (answer.staged) {
		pr_err("pid %d cannot be checkpointed: its GPU memory is parked; bring it back with gpuckpt-park\n",
		       task->pid);
		return -1;
	}
	if (gc_options.staging)
		pr_warn("pid %d: the driver carries its GPU memory, which takes longer\n", task->pid);
	return 0;
}

int gc_staging_put_aside(void)
{
	struct question *questions = calloc(gc_nr_tasks + 1, sizeof(*questions));
	unsigned int alarm_s;
	int ret = 0;

	if (!questions) {
		pr_err("No memory to ask %zu processes for their GPU memory\n", gc_nr_tasks);
		return -1;
	}
	/* CRIU's limit is for freezing the tree. */
	alarm_s = alarm(0);
	for (size_t n = 0; n < gc_nr_tasks; n++)
		questions[n].failed = !can_put_aside(&gc_tasks[n]) || !begin_to_put_aside(&gc_tasks[n], &questions[n]);
	for (size_t n = 0; n < gc_nr_tasks; n++)
		if (!questions[n].failed && finish_putting_aside(&gc_tasks[n], &questions[n]))
			ret = -1;
	alarm(alarm_s);
	free(questions);
	return ret;
}

void gc_staging_put_back(void)
{
	for (size_t n = 0; n < gc_nr_tasks; n++) {
		struct question question = {.pid = gc_tasks[n].pid};

		if (!gc_tasks[n].staged)
			continue;
		question.socket = gc_staging_connect(question.pid);
		if (question.socket < 0 || !ask(&question, GS_BRING_BACK, open_file(question.pid, O_RDONLY)))
			pr_err("pid %d waits for its GPU memory, which is in its staging file; see gpuckpt-park\n",
			       question.pid);
		if (question.socket >= 0)
			close(question.socket);
	}
}

/* --- restore --- */

/* 1: the program was asked, 0: there is nothing to ask, -1: it was staged and cannot be asked. */
static int begin_to_bring_back(pid_t pid, struct question *question)
{
	int file = open_file(pid, O_RDONLY);

	*question = (struct question){.pid = pid, .socket = gc_staging_connect(pid)};
	if (question->socket >= 0 && ask(question, GS_BRING_BACK, file))
		return 1;
	if (question->socket >= 0) {
		close(question->socket);
		return -1;
	}
	if (file < 0)
		return 0;
	close(file);
	pr_err("pid %d has GPU memory in a staging file, but no staging library that takes it back\n", pid);
	return -1;
}

static bool finish_bringing_back(struct question *question)
{
	struct gs_answer answer = {};
	bool is_back = await(question, "gpu-bring-back", &answer);

	close(question->socket);
	if (!is_back)
		pr_err("pid %d is ended: it does not have its GPU memory\n", question->pid);
	return is_back;
}

static int bring_all_back(void)
{
	struct question *questions;
	struct pstree_item *item;
	size_t count = 0;
	int asked, ret = 0;

	for_each_pstree_item(item) count++;
	questions = calloc(count + 1, sizeof(*questions));
	if (!questions) {
		pr_err("No memory to ask %zu processes for their GPU memory\n", count);
		return -1;
	}
	count = 0;
	for_each_pstree_item(item)
	{
		asked = task_alive(item) ? begin_to_bring_back(item->pid->real, &questions[count]) : 0;
		count += asked > 0;
		ret = asked < 0 ? -1 : ret;
	}
	for (size_t n = 0; n < count; n++)
		if (!finish_bringing_back(&questions[n]))
			ret = -1;
	free(questions);
	return ret;
}

/* Called for each task, when all of them run. A program waits at its next driver call until its memory is back. */
static int tasks_run(int pid)
{
	static bool asked;
	static int result;

	(void)pid;
	if (!asked) {
		asked = true;
		result = opts.stream ? 0 : bring_all_back();
	}
	return result;
}
CR_PLUGIN_REGISTER_HOOK(CR_PLUGIN_HOOK__TASKS_RUN, tasks_run)
