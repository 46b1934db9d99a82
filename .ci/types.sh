#!/bin/sh
# mypy on all Python but the tests: the report package, plug-ins, modules, what roles bring to nodes, and the checks.
# module_utils is checked under the name that Ansible gives it.
set -eu
cd -- "$(dirname -- "$0")/.."

# ansible.module_utils.ckpt exists only inside Ansible: a tree of that shape tells mypy where it lies
tree=build/types
mkdir -p "$tree/ansible/module_utils"
ln -sfn "$PWD/module_utils/ckpt" "$tree/ansible/module_utils/ckpt"

mypy -p gpuckpt_report -p gpuckpt_console
mypy filter_plugins
mypy callback_plugins
MYPYPATH=$tree mypy action_plugins
MYPYPATH=$tree mypy -p ansible.module_utils.ckpt
MYPYPATH=$tree mypy library
for filters in roles/*/filter_plugins; do MYPYPATH=$tree mypy "$filters"; done
mypy .ci/*.py

# scripts find those next to them, as on a node
plugin=roles/inference_server/files/vllm_plugin
MYPYPATH=$(echo roles/*/files | tr ' ' :) mypy roles/*/files/*.py roles/inference_server/files/vllm_launcher/*.py
MYPYPATH=$plugin mypy -p gpuckpt_vllm
