#!/bin/sh
# mypy on what is imported: the report package, the plug-ins, and module_utils under the name Ansible gives it.
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
