#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Joins the records of a run, one file each, to records.jsonl next to their folder, and says so.
# No records are no error.
# usage: join_records.sh RUN_DIR
cd "$1/records" 2>/dev/null && ls ./*.json >/dev/null 2>&1 || exit 0
umask 077
# one record is one line; sed ends each in a newline
# shellcheck disable=SC1003  # nothing is escaped: $a\ is a command of sed
sed -s '$a\' ./*.json >../records.jsonl && echo joined
