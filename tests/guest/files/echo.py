"""Sends bytes to a TCP port that sends them back, and compares: python3 echo.py ADDRESS PORT BYTES."""

import random
import socket
import sys
import threading

address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = random.Random(1).randbytes(count)
connection = socket.create_connection((address, port), timeout=120)


def send():
    connection.sendall(data)


sender = threading.Thread(target=send)
sender.start()
got = bytearray()
while len(got) < count:
    piece = connection.recv(65536)
    if not piece:
        break
    got += piece
sender.join()
print("same" if bytes(got) == data else f"{len(got)} bytes of {count}, different")
connection.close()
