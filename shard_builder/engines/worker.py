"""What a worker process of the `processes` engine runs: take a task, work, send the result back.

Started by `processes.py` with the numbers SOCKET BOARD SLOT, never by hand: a fresh interpreter that imports only what
its tasks need. Nothing of the parent's `__main__` is imported again.
"""

import mmap
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection

SLOT_BYTES = 8  # one counter per worker on the shared board: how far its task is


def main() -> None:
    socket, board_file, slot = (int(argument) for argument in sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    connection = Connection(socket)
    board = mmap.mmap(board_file, 0)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()

    def report(position: int) -> None:
        board[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] = position.to_bytes(SLOT_BYTES, "little")

    while True:
        request = requests.get()
        report(0)
        try:
            function, arguments, reports = pickle.loads(request)
            result = function(*arguments, report) if reports else function(*arguments)
            assert "torch" not in sys.modules, f"{function} imported torch into an image worker"
            answer = pickle.dumps(("result", result))
        except Exception as error:
            answer = _pickled_error(error)
        connection.send_bytes(answer)


def _receive(connection: Connection, requests: "queue.SimpleQueue[bytes]") -> None:
    """Queue requests; the end of the line means that the parent is gone, however it died: leave at once."""
    try:
        while True:
            requests.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


def _pickled_error(error: Exception) -> bytes:
    trace = traceback.format_exc()
    try:
        answer = pickle.dumps(("error", error, trace))
        pickle.loads(answer)  # some exceptions can be pickled but not restored
    except Exception:
        answer = pickle.dumps(("error", RuntimeError(repr(error)), trace))
    return answer
