# SPDX-License-Identifier: GPL-2.0-only
# The commands that stand next to CRIU, and the staging library: `make -f commands.mk O=FOLDER all`.
# CFLAGS adds to the flags below (the tests build with sanitizers).
O ?= .
CUDA_CFLAGS := -std=gnu11 -O2 -g -Wall -Wextra -Werror -Wno-missing-field-initializers

COMMANDS := $(O)/cuda-checkpoint $(O)/gpuckpt-pool $(O)/gpuckpt-park
HEADERS := $(wildcard *.h)
LIBRARY := $(O)/libgpuckpt_staging.so

all: $(COMMANDS) $(LIBRARY)

$(O)/cuda-checkpoint: cuda-checkpoint.c gpuckpt_cuda_driver.c gpuckpt_cuda_proc.c
$(O)/gpuckpt-pool: gpuckpt-pool.c gpuckpt_cuda_driver.c
$(O)/gpuckpt-park: gpuckpt-park.c gpuckpt_cuda_staging_client.c

$(COMMANDS): $(HEADERS) commands.mk
	$(CC) $(CUDA_CFLAGS) $(CFLAGS) -o $@ $(filter %.c,$^) -pthread -ldl

# Loaded into programs, so it shows them nothing but what it means to.
$(LIBRARY): $(wildcard ../staging/*.c ../staging/*.h) gpuckpt_cuda_abi.h gpuckpt_cuda_staging_wire.h commands.mk
	$(CC) $(CUDA_CFLAGS) $(CFLAGS) -I. -fPIC -fvisibility=hidden -shared -Wl,-z,nodelete -o $@ $(filter %.c,$^) -pthread -ldl

clean:
	rm -f $(COMMANDS) $(LIBRARY)

.PHONY: all clean
