// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "CLinuxProcess.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <syslog.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static int add_descriptors(posix_spawn_file_actions_t *actions, const struct clinux_spawn *spawn) {
    int error = 0;
    if (spawn->terminal) {
        // Opened first in a new session, it becomes the controlling terminal.
        error = posix_spawn_file_actions_addopen(actions, 0, spawn->terminal, O_RDWR, 0);
        if (!error) error = posix_spawn_file_actions_adddup2(actions, 0, 1);
        if (!error) error = posix_spawn_file_actions_adddup2(actions, 0, 2);
    } else {
        for (int i = 0; i < 3 && !error; i++)
            error = posix_spawn_file_actions_adddup2(actions, spawn->descriptors[i], i);
    }
    if (!error && spawn->directory) error = posix_spawn_file_actions_addchdir_np(actions, spawn->directory);
    if (!error) error = posix_spawn_file_actions_addclosefrom_np(actions, 3);
    return error;
}

int clinux_spawn(const struct clinux_spawn *spawn) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int error = posix_spawn_file_actions_init(&actions);
    if (error) return -error;
    error = posix_spawnattr_init(&attributes);
    if (error) {
        posix_spawn_file_actions_destroy(&actions);
        return -error;
    }
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(
        &attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    pid_t process = 0;
    error = add_descriptors(&actions, spawn);
    if (!error)
        error = posix_spawn(&process, spawn->path, &actions, &attributes, spawn->arguments, spawn->environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error ? -error : process;
}

int clinux_pidfd_open(int process) {
    int descriptor = (int)syscall(SYS_pidfd_open, process, 0);
    return descriptor < 0 ? -errno : descriptor;
}

int clinux_reap(int process, int *code, int *signal, int *core) {
    int status = 0;
    pid_t result;
    do result = waitpid(process, &status, WNOHANG);
    while (result < 0 && errno == EINTR);
    if (result < 0) return -errno;
    if (result == 0) return 0;
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    *signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    *core = WIFSIGNALED(status) && WCOREDUMP(status) ? 1 : 0;
    return 1;
}

int clinux_signal_group(int process, int signal) {
    if (process <= 1) return -EINVAL;
    if (kill(-process, signal) == 0) return 0;
    if (errno != ESRCH) return -errno;
    return kill(process, signal) == 0 ? 0 : -errno;
}

int clinux_private_file(char *path_template) {
    int file = mkostemp(path_template, O_CLOEXEC);
    return file < 0 ? -errno : file;
}

int clinux_continue_later(int milliseconds) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGCONT};
    struct itimerspec once = {.it_value = {milliseconds / 1000, milliseconds % 1000 * 1000000L}};
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0) return -errno;
    return timer_settime(timer, 0, &once, NULL) == 0 ? 0 : -errno;
}

int clinux_terminal_open(char path[64]) {
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0) return -errno;
    if (grantpt(master) < 0 || unlockpt(master) < 0) {
        int error = errno;
        close(master);
        return -error;
    }
    int error = ptsname_r(master, path, 64);
    if (error) {
        close(master);
        return -error;
    }
    return master;
}

int clinux_terminal_resize(int master, uint16_t rows, uint16_t columns, uint16_t width, uint16_t height) {
    struct winsize size = {.ws_row = rows, .ws_col = columns, .ws_xpixel = width, .ws_ypixel = height};
    return ioctl(master, TIOCSWINSZ, &size) == 0 ? 0 : -errno;
}

// RFC 4254 section 8: opcode, what it means here.
enum mode_kind { MODE_CHARACTER, MODE_INPUT, MODE_LOCAL, MODE_OUTPUT, MODE_CONTROL };
static const struct mode {
    uint8_t opcode;
    uint8_t kind;
    uint32_t value;
} modes[] = {
    {1, MODE_CHARACTER, VINTR},    {2, MODE_CHARACTER, VQUIT},   {3, MODE_CHARACTER, VERASE},
    {4, MODE_CHARACTER, VKILL},    {5, MODE_CHARACTER, VEOF},    {6, MODE_CHARACTER, VEOL},
    {7, MODE_CHARACTER, VEOL2},    {8, MODE_CHARACTER, VSTART},  {9, MODE_CHARACTER, VSTOP},
    {10, MODE_CHARACTER, VSUSP},   {12, MODE_CHARACTER, VREPRINT}, {13, MODE_CHARACTER, VWERASE},
    {14, MODE_CHARACTER, VLNEXT},  {18, MODE_CHARACTER, VDISCARD},
    {30, MODE_INPUT, IGNPAR},      {31, MODE_INPUT, PARMRK},     {32, MODE_INPUT, INPCK},
    {33, MODE_INPUT, ISTRIP},      {34, MODE_INPUT, INLCR},      {35, MODE_INPUT, IGNCR},
    {36, MODE_INPUT, ICRNL},       {37, MODE_INPUT, IUCLC},      {38, MODE_INPUT, IXON},
    {39, MODE_INPUT, IXANY},       {40, MODE_INPUT, IXOFF},      {41, MODE_INPUT, IMAXBEL},
    {42, MODE_INPUT, IUTF8},
    {50, MODE_LOCAL, ISIG},        {51, MODE_LOCAL, ICANON},     {52, MODE_LOCAL, XCASE},
    {53, MODE_LOCAL, ECHO},        {54, MODE_LOCAL, ECHOE},      {55, MODE_LOCAL, ECHOK},
    {56, MODE_LOCAL, ECHONL},      {57, MODE_LOCAL, NOFLSH},     {58, MODE_LOCAL, TOSTOP},
    {59, MODE_LOCAL, IEXTEN},      {60, MODE_LOCAL, ECHOCTL},    {61, MODE_LOCAL, ECHOKE},
    {62, MODE_LOCAL, PENDIN},
    {70, MODE_OUTPUT, OPOST},      {71, MODE_OUTPUT, OLCUC},     {72, MODE_OUTPUT, ONLCR},
    {73, MODE_OUTPUT, OCRNL},      {74, MODE_OUTPUT, ONOCR},     {75, MODE_OUTPUT, ONLRET},
    {92, MODE_CONTROL, PARENB},    {93, MODE_CONTROL, PARODD},
};

static void set_flag(tcflag_t *flags, uint32_t flag, uint32_t on) {
    if (on) *flags |= flag;
    else *flags &= ~(tcflag_t)flag;
}

int clinux_terminal_set_modes(int master, const uint8_t *opcodes, const uint32_t *values, int count) {
    struct termios settings;
    if (tcgetattr(master, &settings) < 0) return -errno;
    for (int i = 0; i < count; i++) {
        for (size_t j = 0; j < sizeof modes / sizeof *modes; j++) {
            if (modes[j].opcode != opcodes[i]) continue;
            switch (modes[j].kind) {
            case MODE_CHARACTER:
                // 255 stands for "disabled", which Linux writes as 0.
                settings.c_cc[modes[j].value] = values[i] == 255 ? _POSIX_VDISABLE : (cc_t)values[i];
                break;
            case MODE_INPUT: set_flag(&settings.c_iflag, modes[j].value, values[i]); break;
            case MODE_LOCAL: set_flag(&settings.c_lflag, modes[j].value, values[i]); break;
            case MODE_OUTPUT: set_flag(&settings.c_oflag, modes[j].value, values[i]); break;
            default: set_flag(&settings.c_cflag, modes[j].value, values[i]); break;
            }
        }
    }
    return tcsetattr(master, TCSANOW, &settings) == 0 ? 0 : -errno;
}

int clinux_terminal_get_modes(int terminal, uint8_t *opcodes, uint32_t *values, int limit) {
    struct termios settings;
    if (tcgetattr(terminal, &settings) < 0) return -errno;
    int count = 0;
    for (size_t j = 0; j < sizeof modes / sizeof *modes && count < limit; j++) {
        uint32_t value = 0;
        switch (modes[j].kind) {
        case MODE_CHARACTER:
            value = settings.c_cc[modes[j].value];
            if (value == _POSIX_VDISABLE) value = 255;
            break;
        case MODE_INPUT: value = (settings.c_iflag & modes[j].value) != 0; break;
        case MODE_LOCAL: value = (settings.c_lflag & modes[j].value) != 0; break;
        case MODE_OUTPUT: value = (settings.c_oflag & modes[j].value) != 0; break;
        default: value = (settings.c_cflag & modes[j].value) != 0; break;
        }
        opcodes[count] = modes[j].opcode;
        values[count++] = value;
    }
    return count;
}

int64_t clinux_copy_range(int from, int64_t *from_offset, int to, int64_t *to_offset, uint64_t limit) {
    off64_t source = *from_offset, target = *to_offset;
    ssize_t count;
    do {
        count = copy_file_range(from, &source, to, &target, limit, 0);
    } while (count < 0 && errno == EINTR);
    if (count < 0) return -errno;
    *from_offset = source;
    *to_offset = target;
    return count;
}

static socklen_t to_sockaddr(const struct clinux_address *address, struct sockaddr_storage *out) {
    memset(out, 0, sizeof *out);
    if (address->is_v4) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)out;
        v4->sin_family = AF_INET;
        v4->sin_port = htons(address->port);
        v4->sin_addr.s_addr = htonl((uint32_t)address->low);
        return sizeof *v4;
    }
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address->port);
    for (int i = 0; i < 8; i++) {
        v6->sin6_addr.s6_addr[i] = (uint8_t)(address->high >> (56 - 8 * i));
        v6->sin6_addr.s6_addr[8 + i] = (uint8_t)(address->low >> (56 - 8 * i));
    }
    return sizeof *v6;
}

static void from_sockaddr(const struct sockaddr_storage *in, struct clinux_address *address) {
    memset(address, 0, sizeof *address);
    if (in->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)in;
        address->low = 0xffff00000000ull | ntohl(v4->sin_addr.s_addr);
        address->port = ntohs(v4->sin_port);
        address->is_v4 = 1;
    } else if (in->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)in;
        for (int i = 0; i < 8; i++) {
            address->high = address->high << 8 | v6->sin6_addr.s6_addr[i];
            address->low = address->low << 8 | v6->sin6_addr.s6_addr[8 + i];
        }
        address->port = ntohs(v6->sin6_port);
    }
}

static int unix_address(const char *path, struct sockaddr_un *out) {
    memset(out, 0, sizeof *out);
    out->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof out->sun_path) return -ENAMETOOLONG;
    strcpy(out->sun_path, path);
    return 0;
}

static int finish(int descriptor, int failed) {
    if (!failed) return descriptor;
    int error = errno;
    close(descriptor);
    return -error;
}

int clinux_tcp_connect(const struct clinux_address *address) {
    struct sockaddr_storage storage;
    socklen_t length = to_sockaddr(address, &storage);
    int descriptor = socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -errno;
    int one = 1;
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int result = connect(descriptor, (struct sockaddr *)&storage, length);
    return finish(descriptor, result < 0 && errno != EINPROGRESS);
}

int clinux_unix_connect(const char *path) {
    struct sockaddr_un address;
    int error = unix_address(path, &address);
    if (error) return error;
    int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -errno;
    return finish(descriptor, connect(descriptor, (struct sockaddr *)&address, sizeof address) < 0);
}

int clinux_connect_outcome(int descriptor) {
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &length) < 0) return -errno;
    return -error;
}

int clinux_tcp_listen(const struct clinux_address *address, int both_families) {
    struct sockaddr_storage storage;
    socklen_t length = to_sockaddr(address, &storage);
    int descriptor = socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -errno;
    int one = 1, only = both_families ? 0 : 1;
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (!address->is_v4) setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only);
    int failed = bind(descriptor, (struct sockaddr *)&storage, length) < 0 || listen(descriptor, 128) < 0;
    return finish(descriptor, failed);
}

int clinux_unix_listen(const char *path) {
    struct sockaddr_un address;
    int error = unix_address(path, &address);
    if (error) return error;
    int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -errno;
    // Before the name exists, so that nobody else can connect between bind and chmod.
    int failed = fchmod(descriptor, 0600) < 0;
    failed = failed || bind(descriptor, (struct sockaddr *)&address, sizeof address) < 0;
    return finish(descriptor, failed || listen(descriptor, 128) < 0);
}

int clinux_accept(int listener, struct clinux_address *peer) {
    struct sockaddr_storage storage = {0};
    socklen_t length = sizeof storage;
    int descriptor = accept4(listener, (struct sockaddr *)&storage, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (descriptor < 0) return -errno;
    from_sockaddr(&storage, peer);
    return descriptor;
}

void clinux_block_sigpipe(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

// Drops the mapped pages of code: they were read from the file, nobody wrote them, and those that are needed come
// back from the page cache. Segments that hold anything writable are left alone.
static int drop_code(struct dl_phdr_info *object, size_t size, void *context) {
    (void)size;
    (void)context;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int index = 0; index < object->dlpi_phnum; index++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[index];
        if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X) || (segment->p_flags & PF_W)) continue;
        // Only whole pages of the segment: its ends may share a page with a neighbour.
        uintptr_t start = (object->dlpi_addr + segment->p_vaddr + page - 1) & ~(page - 1);
        uintptr_t end = (object->dlpi_addr + segment->p_vaddr + segment->p_filesz) & ~(page - 1);
        if (start < end) madvise((void *)start, end - start, MADV_DONTNEED);
    }
    return 0;
}

void clinux_return_large_blocks(int bytes) { (void)mallopt(M_MMAP_THRESHOLD, bytes); }

void clinux_trim_memory(void) {
    malloc_trim(0);
    dl_iterate_phdr(drop_code, NULL);
}

void clinux_log(const char *text, int is_error) {
    syslog(LOG_DAEMON | (is_error ? LOG_ERR : LOG_NOTICE), "%s", text);
}
