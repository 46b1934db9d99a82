/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "settings.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_MIN_MIB 2
#define DEFAULT_THREADS 8
#define MAX_THREADS 64
#define MAX_MIB (1UL << 20)

static struct gs_settings settings;
static pthread_once_t once = PTHREAD_ONCE_INIT;

void gs_say(const char *format, ...)
{
	char line[512];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	if (length > 0)
		dprintf(STDERR_FILENO, "gpuckpt_staging: %s\n", line);
}

static bool read_number(const char *name, unsigned long otherwise, unsigned long least, unsigned long most,
			unsigned long *number)
{
	const char *text = getenv(name);
	char *end;

	*number = otherwise;
	if (!text || !*text)
		return true;
	errno = 0;
	*number = strtoul(text, &end, 10);
	if (*text >= '0' && *text <= '9' && !*end && !errno && *number >= least && *number <= most)
		return true;
	gs_say("%s=%s is not a number from %lu to %lu; nothing is staged", name, text, least, most);
	return false;
}

static void read_settings(void)
{
	const char *text = getenv("GPUCKPT_STAGING");
	unsigned long mib, threads;

	if (text && *text && strcmp(text, "0") && strcmp(text, "1")) {
		gs_say("GPUCKPT_STAGING=%s is neither 0 nor 1; nothing is staged", text);
		return;
	}
	if (!read_number("GPUCKPT_STAGING_MIN_MIB", DEFAULT_MIN_MIB, 1, MAX_MIB, &mib) ||
	    !read_number("GPUCKPT_STAGING_THREADS", DEFAULT_THREADS, 1, MAX_THREADS, &threads))
		return;
	settings.on = !text || strcmp(text, "0");
	settings.min_bytes = mib << 20;
	settings.threads = threads;
}

const struct gs_settings *gs_settings(void)
{
	pthread_once(&once, read_settings);
	return &settings;
}
