// SPDX-License-Identifier: GPL-2.0-only
/* The switches arrive as environment variables, because podman and runc pass no options of ours through. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/compiler.h"
#include "copy-team.h"
#include "log.h"
#include "span.h"
#include "switches.h"

#define DEFAULT_MAPPED_MIN_KB 64
#define DEFAULT_FREEZE_POLL_MS 100
#define DEFAULT_MAX_MAP_COUNT 65530
#define MAX_RESTORE_THREADS 256
#define OVERCOMMIT_NEVER 2 /* of vm.overcommit_memory */

long span_clock_offset_us;

static struct switches loaded = {
	.mapped_min_bytes = DEFAULT_MAPPED_MIN_KB << 10,
	.restore_threads = 1,
	.freeze_poll_ms = DEFAULT_FREEZE_POLL_MS,
	.hw_breakpoints = true,
	.max_map_count = DEFAULT_MAX_MAP_COUNT,
};

const struct switches *switches(void)
{
	return &loaded;
}

static const char *setting(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

static int load_number(const char *name, unsigned long min, unsigned long max, unsigned long *out)
{
	const char *value = setting(name);
	unsigned long number;
	char *end;

	if (!value)
		return 0;
	errno = 0;
	number = strtoul(value, &end, 10);
	if (errno || *end || value[0] == '-' || number < min || number > max) {
		pr_err("%s=%s is not a number from %lu to %lu; fix it or unset it\n", name, value, min, max);
		return -1;
	}
	*out = number;
	return 0;
}

static int load_word(const char *name, const char *const words[], unsigned n, unsigned *out)
{
	const char *value = setting(name);
	unsigned i;

	if (!value)
		return 0;
	for (i = 0; i < n; i++) {
		if (!strcmp(value, words[i])) {
			*out = i;
			return 0;
		}
	}
	pr_err("%s=%s is not known; fix it or unset it. Known are:\n", name, value);
	for (i = 0; i < n; i++)
		pr_err("  %s=%s\n", name, words[i]);
	return -1;
}

/* A setting of the node's kernel; `otherwise` where it cannot be read. */
static unsigned long read_kernel_number(const char *path, unsigned long otherwise)
{
	FILE *f = fopen(path, "re");
	unsigned long number;

	if (!f)
		return otherwise;
	if (fscanf(f, "%lu", &number) != 1)
		number = otherwise;
	fclose(f);
	return number;
}

int switches_load(void)
{
	static const char *const on_off[] = {"0", "1"};
	static const char *const scopes[] = {"all", "driver"};
	static const char *const redumps[] = {"standalone", "delta"};
	static const char *const allocator_words[] = {"aside", "trust"};
	unsigned mapped = 0, scope = MAPPED_SCOPE_ALL, redump = MAPPED_REDUMP_STANDALONE, driver_huge = 0, populate = 0;
	unsigned allocators = MAPPED_ALLOCATORS_ASIDE, breakpoints = 1;
	unsigned long min_kb = DEFAULT_MAPPED_MIN_KB, threads = 1, poll_ms = DEFAULT_FREEZE_POLL_MS;
	int ret = 0;

	span_clock_offset_us = span_clock_us(CLOCK_MONOTONIC) - span_clock_us(CLOCK_REALTIME);

	ret |= load_word("CRIU_MAPPED_RESTORE", on_off, ARRAY_SIZE(on_off), &mapped);
	ret |= load_word("CRIU_MAPPED_SCOPE", scopes, ARRAY_SIZE(scopes), &scope);
	ret |= load_word("CRIU_MAPPED_REDUMP", redumps, ARRAY_SIZE(redumps), &redump);
	ret |= load_word("CRIU_MAPPED_ALLOCATORS", allocator_words, ARRAY_SIZE(allocator_words), &allocators);
	ret |= load_word("CRIU_DRIVER_HUGE_PAGES", on_off, ARRAY_SIZE(on_off), &driver_huge);
	ret |= load_word("CRIU_DRIVER_POPULATE", on_off, ARRAY_SIZE(on_off), &populate);
	ret |= load_word("CRIU_HW_BREAKPOINTS", on_off, ARRAY_SIZE(on_off), &breakpoints);
	ret |= load_number("CRIU_MAPPED_MIN_KB", 1, 1 << 30, &min_kb);
	ret |= load_number("CRIU_RESTORE_THREADS", 1, MAX_RESTORE_THREADS, &threads);
	ret |= load_number("CRIU_FREEZE_POLL_MS", 1, DEFAULT_FREEZE_POLL_MS, &poll_ms);
	if (ret)
		return -1;

	if (!COPY_TEAM_HAS_THREADS && threads > 1) {
		pr_warn("CRIU_RESTORE_THREADS=%lu: one thread reads on this processor's architecture\n", threads);
		threads = 1;
	}

	loaded.mapped_restore = mapped;
	loaded.mapped_scope = scope;
	loaded.mapped_redump = redump;
	loaded.mapped_allocators = allocators;
	loaded.mapped_min_bytes = min_kb << 10;
	loaded.restore_threads = threads;
	loaded.driver_huge_pages = driver_huge;
	loaded.driver_populate = populate;
	loaded.freeze_poll_ms = poll_ms;
	loaded.hw_breakpoints = breakpoints;
	loaded.max_map_count = read_kernel_number("/proc/sys/vm/max_map_count", DEFAULT_MAX_MAP_COUNT);
	loaded.noreserve_is_kept = read_kernel_number("/proc/sys/vm/overcommit_memory", 0) != OVERCOMMIT_NEVER;
	return 0;
}
