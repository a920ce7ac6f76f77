// SPDX-License-Identifier: Apache-2.0
// Child processes, terminals and stream sockets for LinuxIO. Every call returns a value or -errno; descriptors are
// close-on-exec.
#ifndef CLINUX_PROCESS_H
#define CLINUX_PROCESS_H
#include <stdint.h>
#include "CLinuxUDP.h"

struct clinux_spawn {
    const char *path;
    char *const *arguments;
    char *const *environment;
    // May be null: the parent's.
    const char *directory;
    // Path of a terminal's slave that becomes the controlling terminal and 0, 1, 2; or null.
    const char *terminal;
    // Descriptors that become 0, 1, 2 when `terminal` is null.
    int descriptors[3];
};

// Starts a program in a session of its own, signals at their defaults, every other descriptor closed. Returns the
// process id; a program that cannot be executed is an error.
int clinux_spawn(const struct clinux_spawn *spawn);
int clinux_pidfd_open(int process);
// Reaps without waiting: 1 ended (then *code or *signal is set, and *core), 0 still running.
int clinux_reap(int process, int *code, int *signal, int *core);
// Signals the process group; the process itself where it has no group any more.
int clinux_signal_group(int process, int signal);

// A new terminal: its master, non-blocking; the slave's path goes to `path` of 64 bytes.
int clinux_terminal_open(char path[64]);
int clinux_terminal_resize(int master, uint16_t rows, uint16_t columns, uint16_t width, uint16_t height);
// Applies modes encoded as in RFC 4254 section 8.
int clinux_terminal_set_modes(int master, const uint8_t *opcodes, const uint32_t *values, int count);
// Reads the modes of a terminal; returns how many, at most `limit`, or -errno.
int clinux_terminal_get_modes(int terminal, uint8_t *opcodes, uint32_t *values, int limit);

// copy_file_range(2), moving both offsets; -errno on failure.
int64_t clinux_copy_range(int from, int64_t *from_offset, int to, int64_t *to_offset, uint64_t limit);

// Starts a non-blocking connect; the socket becomes writable when it is decided.
int clinux_tcp_connect(const struct clinux_address *address);
int clinux_unix_connect(const char *path);
// The outcome of such a connect: 0 or -errno.
int clinux_connect_outcome(int socket);
// Non-blocking listeners.
int clinux_tcp_listen(const struct clinux_address *address, int both_families);
int clinux_unix_listen(const char *path);
// A new file for its owner alone, close-on-exec, whose name replaces the template; -errno on failure.
int clinux_private_file(char *path_template);
// A timer of the kernel that continues this process (SIGCONT) after so long, also while it is stopped; -errno on failure.
int clinux_continue_later(int milliseconds);
// Accepts a non-blocking connection; the peer's address, where it has one, goes to `peer`.
int clinux_accept(int listener, struct clinux_address *peer);
// Writes a line to the system's log.
void clinux_log(const char *text, int is_error);
// Blocks SIGPIPE in the calling thread, so that a write into a closed pipe is an error and no death.
void clinux_block_sigpipe(void);
// Returns free memory of all threads to the system, and mapped pages of code; the needed ones come back by themselves.
void clinux_trim_memory(void);
// Blocks of so many bytes and more are returned to the system when they are freed.
void clinux_return_large_blocks(int bytes);

#endif
