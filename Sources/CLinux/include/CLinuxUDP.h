// SPDX-License-Identifier: Apache-2.0
// UDP in bursts: recvmmsg with UDP_GRO, sendmmsg with UDP_SEGMENT. Control messages cannot be built in Swift.
#ifndef CLINUX_UDP_H
#define CLINUX_UDP_H
#include <stdint.h>

#define CLINUX_RECEIVE_SLOTS 32
#define CLINUX_SEND_MESSAGES 64

// An address and port in host order; IPv4 in the low 32 bits of `low` above 0xffff.
struct clinux_address {
    uint64_t high, low;
    uint16_t port;
    uint8_t is_v4;
    // Number of the interface that a link-local IPv6 address belongs to; 0 for none.
    uint32_t scope;
};

// One received message: `length` bytes, made of datagrams of `segment` bytes each (the last may be shorter).
struct clinux_received {
    struct clinux_address source;
    uint32_t length;
    uint32_t segment;
    // The own address that it was sent to, where clinux_udp_report_destination is on; else has_local is 0.
    struct clinux_address local;
    uint8_t has_local;
};

// One datagram to send from a chosen own address: bytes [offset, offset + length) of the memory.
struct clinux_answer {
    struct clinux_address destination, local;
    uint32_t offset, length;
    uint8_t has_local;
};

// One message to send: bytes [offset, offset + length) of the memory, cut by the kernel every `segment` bytes. Leaves
// from the own address `local` where has_local is not 0.
struct clinux_run {
    struct clinux_address destination, local;
    uint32_t offset, length, segment;
    uint8_t has_local;
};

// Message headers, vectors, names and control memory of one recvmmsg.
struct clinux_receive_batch;

// Binds a UDP socket of the family (4 or 6) to the address; returns the descriptor or -errno.
int clinux_udp_open(const struct clinux_address *local);
// Options of path-selection.md section 7; each returns 0 or -errno.
int clinux_udp_dont_fragment(int descriptor, int is_v4);
int clinux_udp_enable_gro(int descriptor, int on);
int clinux_udp_probe_gso(int descriptor);
// Received datagrams tell the address that they were sent to (IP_PKTINFO, IPV6_RECVPKTINFO).
int clinux_udp_report_destination(int descriptor, int is_v4);
// Raises both buffers to `bytes`, FORCE first; returns the smaller size that the kernel reports.
int clinux_udp_buffers(int descriptor, int bytes);
int clinux_local_address(int descriptor, struct clinux_address *out);
int clinux_set_mark(int descriptor, uint32_t mark);

// A batch over CLINUX_RECEIVE_SLOTS slots of memory; freed with free().
struct clinux_receive_batch *clinux_receive_batch_new(void *memory, uint32_t slot_bytes);
void clinux_receive_batch_free(struct clinux_receive_batch *batch);
// Receives at most `limit` messages without waiting; returns their number or -errno.
int clinux_receive(int descriptor, struct clinux_receive_batch *batch, struct clinux_received *out, int limit);
// Sends runs without waiting; returns the number of runs sent completely or -errno if the first failed.
int clinux_send_runs(int descriptor, const void *memory, const struct clinux_run *runs, int count);
// Sends datagrams without waiting; returns how many were sent or -errno if the first failed.
int clinux_send_answers(int descriptor, const void *memory, const struct clinux_answer *answers, int count);
// Sends one run as single datagrams; returns the number of datagrams sent, or -errno if the first failed.
int clinux_send_plain(int descriptor, const void *memory, const struct clinux_run *run, uint32_t skip);

#endif
