/* SPDX-License-Identifier: GPL-2.0-only */
#include "criu-log.h"

#include <stdlib.h>
#include <string.h>

#include "gpuckpt_cuda_options.h"

#undef LOG_PREFIX
#define LOG_PREFIX "gpuckpt: "

#define DEFAULT_TIMEOUT_S 300
#define DEFAULT_POOL_WAIT_S 10

struct gc_options gc_options;

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
		gc_options.backend = BACKEND_AUTO;
	else if (!strcmp(text, "driver-api"))
		gc_options.backend = BACKEND_DRIVER_API;
	else if (!strcmp(text, "cuda-checkpoint"))
		gc_options.backend = BACKEND_CUDA_CHECKPOINT;
	else {
		pr_err("CRIU_CUDA_BACKEND=%s is none of auto, driver-api, cuda-checkpoint\n", text);
		return -1;
	}
	return 0;
}

static int read_on_off(const char *name, bool *on, bool otherwise)
{
	const char *text = getenv(name);

	if (text && *text && strcmp(text, "0") && strcmp(text, "1")) {
		pr_err("%s=%s is neither 0 nor 1\n", name, text);
		return -1;
	}
	*on = text && *text ? *text == '1' : otherwise;
	return 0;
}

static int read_device_map(void)
{
	const char *text = getenv("CRIU_CUDA_DEVICE_MAP");
	char why[CUDA_WHY_SIZE];

	gc_options.map.count = 0;
	if (!text || !*text)
		return 0;
	if (gc_device_map_parse(text, &gc_options.map, why, sizeof(why))) {
		pr_err("CRIU_CUDA_DEVICE_MAP: %s\n", why);
		return -1;
	}
	if (gc_options.backend == BACKEND_CUDA_CHECKPOINT) {
		pr_err("CRIU_CUDA_DEVICE_MAP needs CRIU_CUDA_BACKEND=driver-api\n");
		return -1;
	}
	return 0;
}

int gc_options_read(void)
{
	return read_backend() || read_on_off("CRIU_CUDA_CONTEXT_POOL", &gc_options.pool, false) ||
			       read_on_off("CRIU_CUDA_POOL_CONTEXTS", &gc_options.pool_contexts, false) ||
			       read_on_off("CRIU_CUDA_STAGING", &gc_options.staging, true) || read_device_map() ||
			       read_seconds("CRIU_CUDA_TIMEOUT_S", &gc_options.timeout_s, DEFAULT_TIMEOUT_S) ||
			       read_seconds("CRIU_CUDA_POOL_WAIT_S", &gc_options.pool_wait_s, DEFAULT_POOL_WAIT_S)
		       ? -1
		       : 0;
}
