# SPDX-License-Identifier: GPL-3.0-or-later
"""Answer each connection with how many there were: a counter in memory, which must survive a restore."""

import itertools
import socket
import sys

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
for count in itertools.count(1):
    connection, _ = listener.accept()
    connection.sendall(b"%d\n" % count)
    connection.close()
