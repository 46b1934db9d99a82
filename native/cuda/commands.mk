# SPDX-License-Identifier: GPL-2.0-only
# The commands that stand next to CRIU: `make -f commands.mk O=FOLDER all`.
# CFLAGS adds to the flags below (the tests build with sanitizers).
O ?= .
CUDA_CFLAGS := -std=gnu11 -O2 -g -Wall -Wextra -Werror -Wno-missing-field-initializers

COMMANDS := $(O)/cuda-checkpoint $(O)/gpuckpt-pool
HEADERS := $(wildcard *.h)

all: $(COMMANDS)

$(O)/cuda-checkpoint: cuda-checkpoint.c gpuckpt_cuda_driver.c gpuckpt_cuda_proc.c
$(O)/gpuckpt-pool: gpuckpt-pool.c gpuckpt_cuda_driver.c

$(COMMANDS): $(HEADERS) commands.mk
	$(CC) $(CUDA_CFLAGS) $(CFLAGS) -o $@ $(filter %.c,$^) -pthread -ldl

clean:
	rm -f $(COMMANDS)

.PHONY: all clean
