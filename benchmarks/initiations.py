#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sends valid WireGuard initiations of many peers and counts the responses: the load of `wireguard.py`'s handshakes.
Everything is computed before the clock starts. Needs libsodium.

    initiations.py HOST PORT SERVER-KEY-HEX PEERS ROUNDS IN-FLIGHT RATE
    initiations.py --flood HOST PORT SERVER-KEY-HEX RATE SECONDS ADDRESS...

A flood is one message with right MAC1, of nobody's, again and again from several own addresses.
"""

import ctypes
import ctypes.util
import hashlib
import hmac
import json
import os
import socket
import struct
import sys
import time

sodium = ctypes.CDLL(ctypes.util.find_library("sodium") or "libsodium.so.23")


def private_key(number):
    return hashlib.blake2s(b"benchmark peer %d" % number).digest()


def public_key(secret):
    out = ctypes.create_string_buffer(32)
    sodium.crypto_scalarmult_base(out, secret)
    return out.raw


def shared(secret, point):
    out = ctypes.create_string_buffer(32)
    sodium.crypto_scalarmult(out, secret, point)
    return out.raw


def digest(*parts):
    return hashlib.blake2s(b"".join(parts)).digest()


def derive(key, data, count):
    secret = hmac.new(key, data, hashlib.blake2s).digest()
    result, last = [], b""
    for number in range(1, count + 1):
        last = hmac.new(secret, last + bytes([number]), hashlib.blake2s).digest()
        result.append(last)
    return result


def sealed(key, text, data):
    out = ctypes.create_string_buffer(len(text) + 16)
    sodium.crypto_aead_chacha20poly1305_ietf_encrypt(
        out, None, text, ctypes.c_ulonglong(len(text)), data, ctypes.c_ulonglong(len(data)), None, bytes(12), key)
    return out.raw


CHAIN = digest(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
HASH = digest(CHAIN, b"WireGuard v1 zx2c4 Jason@zx2c4.com")


def initiation(secret, own, static_shared, server, index, moment):
    """Whitepaper 5.4.2."""
    ephemeral = os.urandom(32)
    public = public_key(ephemeral)
    state = digest(HASH, server)
    chain = derive(CHAIN, public, 1)[0]
    state = digest(state, public)
    chain, key = derive(chain, shared(ephemeral, server), 2)
    static = sealed(key, own, state)
    state = digest(state, static)
    chain, key = derive(chain, static_shared, 2)
    stamp = struct.pack(">QI", 0x400000000000000A + moment // 10**9, moment % 10**9)
    message = struct.pack("<II", 1, index) + public + static + sealed(key, stamp, state)
    mac1 = hashlib.blake2s(message, key=digest(b"mac1----", server), digest_size=16).digest()
    return message + mac1 + bytes(16)


def flood(host, port, server, rate, seconds, addresses):
    secret = os.urandom(32)
    message = initiation(secret, public_key(secret), shared(secret, server), server, 1, time.time_ns())
    sockets = []
    for address in addresses:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind((address, 0))
        udp.connect((host, port))
        udp.setblocking(False)
        sockets.append(udp)
    print("ready", flush=True)
    sent = cookies = 0
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        while sent < passed * rate:
            for udp in sockets:
                try:
                    udp.send(message)
                except (BlockingIOError, ConnectionRefusedError):
                    pass
            sent += len(sockets)
        for udp in sockets:
            try:
                while udp.recv(256):
                    cookies += 1
            except (BlockingIOError, ConnectionRefusedError):
                pass
    print(json.dumps({"seconds": time.monotonic() - begin, "sent": sent, "cookies": cookies}))


def main():
    if sys.argv[1] == "--flood":
        host, port, server, rate, seconds = sys.argv[2:7]
        return flood(host, int(port), bytes.fromhex(server), int(rate), float(seconds), sys.argv[7:])
    host, port, server = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
    peers, rounds, in_flight, rate = map(int, sys.argv[4:8])
    secrets = [private_key(number) for number in range(peers)]
    publics = [public_key(secret) for secret in secrets]
    statics = [shared(secret, server) for secret in secrets]
    now = time.time_ns()
    messages = [
        initiation(secrets[p], publics[p], statics[p], server, r * peers + p, now + r * 10**9)
        for r in range(rounds) for p in range(peers)]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    udp.connect((host, port))
    udp.settimeout(0.2)
    print("ready", flush=True)
    sys.stdin.readline()
    answered = cookies = sent = flying = 0
    begin = time.monotonic()
    while sent < len(messages) or flying > 0:
        while sent < len(messages) and flying < in_flight and time.monotonic() >= begin + sent / rate:
            udp.send(messages[sent])
            sent += 1
            flying += 1
        if flying == 0:
            continue
        try:
            kind = udp.recv(256)[0]
        except socket.timeout:
            flying = 0
            continue
        flying = max(0, flying - 1)
        answered += kind == 2
        cookies += kind == 3
    print(json.dumps({"seconds": time.monotonic() - begin, "answered": answered, "cookies": cookies}))


if __name__ == "__main__":
    main()
