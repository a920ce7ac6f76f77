// SPDX-License-Identifier: Apache-2.0
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CLinux.h"
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <linux/if.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clinux_pipe2(int descriptors[2], int flags) { return pipe2(descriptors, flags); }
int clinux_eventfd(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }
int clinux_epoll_create(void) { return epoll_create1(EPOLL_CLOEXEC); }

int clinux_new_network_namespace(void) { return unshare(CLONE_NEWNET) == 0 ? 0 : -errno; }

static int with_interface(const char *name, unsigned long call, struct ifreq *request) {
    int descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) return -errno;
    snprintf(request->ifr_name, sizeof request->ifr_name, "%s", name);
    int result = ioctl(descriptor, call, request) < 0 ? -errno : 0;
    close(descriptor);
    return result;
}

int clinux_interface_set_mtu(const char *name, int mtu) {
    struct ifreq request = {0};
    request.ifr_mtu = mtu;
    return with_interface(name, SIOCSIFMTU, &request);
}

int clinux_interface_set_up(const char *name) {
    struct ifreq request = {0};
    int result = with_interface(name, SIOCGIFFLAGS, &request);
    if (result < 0) return result;
    request.ifr_flags |= IFF_UP;
    return with_interface(name, SIOCSIFFLAGS, &request);
}

int clinux_interface_add_address(const char *name, const struct clinux_address *address, int prefix_bits) {
    struct ifreq request = {0};
    int index = with_interface(name, SIOCGIFINDEX, &request);
    if (index < 0) return index;
    int descriptor = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (descriptor < 0) return -errno;
    struct {
        struct nlmsghdr header;
        struct ifaddrmsg message;
        char attributes[64];
    } packet;
    memset(&packet, 0, sizeof packet);
    int size = address->is_v4 ? 4 : 16;
    uint8_t bytes[16];
    uint32_t v4 = htobe32((uint32_t)address->low);
    uint64_t high = htobe64(address->high), low = htobe64(address->low);
    if (address->is_v4) memcpy(bytes, &v4, 4);
    else { memcpy(bytes, &high, 8); memcpy(bytes + 8, &low, 8); }
    packet.header.nlmsg_type = RTM_NEWADDR;
    packet.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    packet.message.ifa_family = address->is_v4 ? AF_INET : AF_INET6;
    packet.message.ifa_prefixlen = (unsigned char)prefix_bits;
    packet.message.ifa_flags = address->is_v4 ? 0 : IFA_F_NODAD;
    packet.message.ifa_index = (unsigned)request.ifr_ifindex;
    unsigned used = NLMSG_LENGTH(sizeof packet.message);
    for (int kind = IFA_ADDRESS; kind <= IFA_LOCAL; kind++) {
        struct rtattr *attribute = (struct rtattr *)((char *)&packet + NLMSG_ALIGN(used));
        attribute->rta_type = (unsigned short)kind;
        attribute->rta_len = (unsigned short)RTA_LENGTH(size);
        memcpy(RTA_DATA(attribute), bytes, (size_t)size);
        used = NLMSG_ALIGN(used) + RTA_ALIGN(attribute->rta_len);
    }
    packet.header.nlmsg_len = used;
    struct { struct nlmsghdr header; struct nlmsgerr error; char rest[256]; } reply;
    int result = 0;
    if (send(descriptor, &packet, used, 0) < 0 || recv(descriptor, &reply, sizeof reply, 0) < 0) result = -errno;
    else if (reply.header.nlmsg_type == NLMSG_ERROR) result = reply.error.error;
    close(descriptor);
    return result;
}

static void decode(const struct sockaddr *name, struct clinux_address *out) {
    if (name->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)name;
        out->high = 0;
        out->low = 0xffff00000000ull | be32toh(v4->sin_addr.s_addr);
        out->port = be16toh(v4->sin_port);
        out->is_v4 = 1;
        out->scope = 0;
        return;
    }
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)name;
    uint64_t words[2];
    memcpy(words, &v6->sin6_addr, 16);
    out->high = be64toh(words[0]);
    out->low = be64toh(words[1]);
    out->port = be16toh(v6->sin6_port);
    out->is_v4 = 0;
    out->scope = v6->sin6_scope_id;
}

static socklen_t encode(const struct clinux_address *address, struct sockaddr_in6 *out) {
    if (address->is_v4) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)out;
        memset(v4, 0, sizeof *v4);
        v4->sin_family = AF_INET;
        v4->sin_port = htobe16(address->port);
        v4->sin_addr.s_addr = htobe32((uint32_t)address->low);
        return sizeof *v4;
    }
    memset(out, 0, sizeof *out);
    out->sin6_family = AF_INET6;
    out->sin6_port = htobe16(address->port);
    out->sin6_scope_id = address->scope;
    uint64_t words[2] = {htobe64(address->high), htobe64(address->low)};
    memcpy(&out->sin6_addr, words, 16);
    return sizeof *out;
}

int clinux_interface_addresses(struct clinux_interface_address *out, int capacity) {
    struct ifaddrs *list;
    if (getifaddrs(&list) < 0) return -errno;
    int count = 0;
    for (struct ifaddrs *entry = list; entry && count < capacity; entry = entry->ifa_next) {
        if (!entry->ifa_addr) continue;
        if (entry->ifa_addr->sa_family != AF_INET && entry->ifa_addr->sa_family != AF_INET6) continue;
        decode(entry->ifa_addr, &out[count].address);
        snprintf(out[count].name, sizeof out[count].name, "%s", entry->ifa_name);
        out[count].is_up = (entry->ifa_flags & IFF_UP) != 0;
        out[count].is_loopback = (entry->ifa_flags & IFF_LOOPBACK) != 0;
        count++;
    }
    freeifaddrs(list);
    return count;
}

int clinux_link_monitor_open(void) {
    int descriptor = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
    if (descriptor < 0) return -errno;
    struct sockaddr_nl name = {.nl_family = AF_NETLINK};
    name.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE;
    if (bind(descriptor, (struct sockaddr *)&name, sizeof name) < 0) {
        int code = errno;
        close(descriptor);
        return -code;
    }
    return descriptor;
}

int clinux_link_monitor_drain(int descriptor) {
    _Alignas(16) char buffer[16384];
    int changes = 0;
    for (;;) {
        ssize_t got = recv(descriptor, buffer, sizeof buffer, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == ENOBUFS) { changes++; continue; }  // messages were lost: something did change
        if (got < 0) return errno == EAGAIN ? changes : -errno;
        unsigned left = (unsigned)got;
        for (struct nlmsghdr *m = (struct nlmsghdr *)buffer; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
            if (m->nlmsg_type >= RTM_NEWLINK && m->nlmsg_type <= RTM_DELROUTE) changes++;
        }
    }
}

int clinux_epoll_wait(int descriptor, void *events, int capacity, int64_t nanoseconds) {
    static volatile int missing = 0;  // the kernel's answer does not change while we run
    if (nanoseconds > 0 && !missing) {
        struct timespec limit = {nanoseconds / 1000000000, nanoseconds % 1000000000};
        long count = syscall(441, descriptor, events, capacity, &limit, (void *)0, (size_t)8);
        if (count >= 0) return (int)count;
        if (errno != ENOSYS && errno != EPERM) return -errno;
        missing = 1;
    }
    int64_t milliseconds = nanoseconds < 0 ? -1 : (nanoseconds + 999999) / 1000000;
    if (milliseconds > 0x7fffffff) milliseconds = 0x7fffffff;
    int count = epoll_wait(descriptor, events, capacity, (int)milliseconds);
    return count < 0 ? -errno : count;
}

int clinux_enter_network_namespace(const char *path) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return -errno;
    int result = setns(descriptor, CLONE_NEWNET) < 0 ? -errno : 0;
    close(descriptor);
    return result;
}

int clinux_ioctl_int(int descriptor, unsigned long request, int *value) {
    return ioctl(descriptor, request, value) < 0 ? -errno : 0;
}

int clinux_descriptor_kind(int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status) < 0) return 0;
    if (S_ISFIFO(status.st_mode)) return 4;
    if (!S_ISSOCK(status.st_mode)) return 5;
    int type = 0, domain = 0;
    socklen_t size = sizeof type;
    if (getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size) < 0) return 0;
    size = sizeof domain;
    if (getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0) return 0;
    int internet = domain == AF_INET || domain == AF_INET6;
    if (type != SOCK_STREAM) return internet ? 6 : 3;
    return internet ? 1 : 2;
}

void clinux_reset_on_close(int descriptor) {
    struct linger linger = {1, 0};
    (void)setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
}

void clinux_no_delay(int descriptor) {
    int on = 1;
    (void)setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

void clinux_unsent_low_water(int descriptor, int bytes) {
    (void)setsockopt(descriptor, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &bytes, sizeof bytes);
}

void clinux_tcp_patience(int descriptor, int unacknowledged_ms, int idle_seconds) {
    unsigned limit = (unsigned)unacknowledged_ms;
    int on = 1;
    (void)setsockopt(descriptor, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit, sizeof limit);
    (void)setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPIDLE, &idle_seconds, sizeof idle_seconds);
    (void)setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

int clinux_thread_start(void *(*body)(void *), void *argument, const char *name, uint64_t *handle) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 2 << 20);
    pthread_t thread;
    // Signals are for the program's own threads; a broken pipe shows as EPIPE here.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&thread, &attributes, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (code != 0) return -code;
    char short_name[16];
    snprintf(short_name, sizeof short_name, "%s", name);
    pthread_setname_np(thread, short_name);
    *handle = (uint64_t)thread;
    return 0;
}

void clinux_thread_join(uint64_t handle) { pthread_join((pthread_t)handle, NULL); }

void clinux_thread_detach(uint64_t handle) { pthread_detach((pthread_t)handle); }

int clinux_resolve(const char *host, uint16_t port, int family, struct clinux_address *out, int capacity) {
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM}, *list;
    hints.ai_family = family == 4 ? AF_INET : family == 6 ? AF_INET6 : AF_UNSPEC;
    if (getaddrinfo(host, NULL, &hints, &list) != 0) return 0;
    int count = 0;
    for (struct addrinfo *entry = list; entry && count < capacity; entry = entry->ai_next) {
        if (entry->ai_family != AF_INET && entry->ai_family != AF_INET6) continue;
        decode(entry->ai_addr, &out[count]);
        out[count++].port = port;
    }
    freeaddrinfo(list);
    return count;
}

// MARK: UDP

#define OPTION_UDP_SEGMENT 103
#define OPTION_UDP_GRO 104

int clinux_udp_open(const struct clinux_address *local) {
    int family = local->is_v4 ? AF_INET : AF_INET6;
    int descriptor = socket(family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -errno;
    int on = 1;
    struct sockaddr_in6 name;
    socklen_t size = encode(local, &name);
    if ((!local->is_v4 && setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) < 0)
        || bind(descriptor, (struct sockaddr *)&name, size) < 0) {
        int code = errno;
        close(descriptor);
        return -code;
    }
    return descriptor;
}

int clinux_udp_dont_fragment(int descriptor, int is_v4) {
    int value = is_v4 ? IP_PMTUDISC_DO : IPV6_PMTUDISC_DO;
    int level = is_v4 ? IPPROTO_IP : IPPROTO_IPV6, option = is_v4 ? IP_MTU_DISCOVER : IPV6_MTU_DISCOVER;
    return setsockopt(descriptor, level, option, &value, sizeof value) < 0 ? -errno : 0;
}

int clinux_udp_enable_gro(int descriptor, int on) {
    return setsockopt(descriptor, IPPROTO_UDP, OPTION_UDP_GRO, &on, sizeof on) < 0 ? -errno : 0;
}

int clinux_udp_probe_gso(int descriptor) {
    int value = 0;
    socklen_t size = sizeof value;
    return getsockopt(descriptor, IPPROTO_UDP, OPTION_UDP_SEGMENT, &value, &size) < 0 ? -errno : 0;
}

int clinux_udp_report_destination(int descriptor, int is_v4) {
    int on = 1;
    int level = is_v4 ? IPPROTO_IP : IPPROTO_IPV6, option = is_v4 ? IP_PKTINFO : IPV6_RECVPKTINFO;
    return setsockopt(descriptor, level, option, &on, sizeof on) < 0 ? -errno : 0;
}

static int raise_buffer(int descriptor, int force, int plain, int bytes) {
    if (setsockopt(descriptor, SOL_SOCKET, force, &bytes, sizeof bytes) < 0)
        (void)setsockopt(descriptor, SOL_SOCKET, plain, &bytes, sizeof bytes);
    int value = 0;
    socklen_t size = sizeof value;
    getsockopt(descriptor, SOL_SOCKET, plain, &value, &size);
    return value / 2;  // socket(7): the kernel doubles the value for its own use
}

int clinux_udp_buffers(int descriptor, int bytes) {
    int receive = raise_buffer(descriptor, SO_RCVBUFFORCE, SO_RCVBUF, bytes);
    int send = raise_buffer(descriptor, SO_SNDBUFFORCE, SO_SNDBUF, bytes);
    return receive < send ? receive : send;
}

int clinux_set_mark(int descriptor, uint32_t mark) {
    return setsockopt(descriptor, SOL_SOCKET, SO_MARK, &mark, sizeof mark) < 0 ? -errno : 0;
}

int clinux_local_address(int descriptor, struct clinux_address *out) {
    struct sockaddr_in6 name;
    socklen_t size = sizeof name;
    if (getsockname(descriptor, (struct sockaddr *)&name, &size) < 0) return -errno;
    decode((struct sockaddr *)&name, out);
    return 0;
}

struct clinux_receive_batch {
    struct mmsghdr headers[CLINUX_RECEIVE_SLOTS];
    struct iovec vectors[CLINUX_RECEIVE_SLOTS];
    struct sockaddr_in6 names[CLINUX_RECEIVE_SLOTS];
    // Segment size and destination: 24 + 40 bytes.
    _Alignas(16) char control[CLINUX_RECEIVE_SLOTS][64];
};

// The own address in a control message, with the interface where the address means nothing without it.
static void take_local(const struct cmsghdr *c, struct clinux_received *out) {
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
        struct in_pktinfo info;
        memcpy(&info, CMSG_DATA(c), sizeof info);
        out->local = (struct clinux_address){
            .low = 0xffff00000000ull | be32toh(info.ipi_spec_dst.s_addr), .is_v4 = 1};
        out->has_local = 1;
    } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
        struct in6_pktinfo info;
        uint64_t words[2];
        memcpy(&info, CMSG_DATA(c), sizeof info);
        memcpy(words, &info.ipi6_addr, 16);
        out->local = (struct clinux_address){.high = be64toh(words[0]), .low = be64toh(words[1])};
        if (IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr)) out->local.scope = info.ipi6_ifindex;
        out->has_local = 1;
    }
}

struct clinux_receive_batch *clinux_receive_batch_new(void *memory, uint32_t slot_bytes) {
    struct clinux_receive_batch *batch = calloc(1, sizeof *batch);
    if (!batch) abort();
    for (int i = 0; i < CLINUX_RECEIVE_SLOTS; i++) {
        batch->vectors[i].iov_base = (char *)memory + (size_t)i * slot_bytes;
        batch->vectors[i].iov_len = slot_bytes;
        batch->headers[i].msg_hdr.msg_iov = &batch->vectors[i];
        batch->headers[i].msg_hdr.msg_iovlen = 1;
        batch->headers[i].msg_hdr.msg_name = &batch->names[i];
        batch->headers[i].msg_hdr.msg_control = batch->control[i];
        batch->headers[i].msg_hdr.msg_namelen = sizeof batch->names[i];
        batch->headers[i].msg_hdr.msg_controllen = sizeof batch->control[i];
    }
    return batch;
}

void clinux_receive_batch_free(struct clinux_receive_batch *batch) { free(batch); }

int clinux_receive(int descriptor, struct clinux_receive_batch *batch, struct clinux_received *out, int limit) {
    int count;
    if (limit < 1 || limit > CLINUX_RECEIVE_SLOTS) limit = CLINUX_RECEIVE_SLOTS;
    do count = recvmmsg(descriptor, batch->headers, (unsigned)limit, MSG_DONTWAIT, NULL);
    while (count < 0 && errno == EINTR);
    if (count < 0) return -errno;
    for (int i = 0; i < count; i++) {
        struct msghdr *header = &batch->headers[i].msg_hdr;
        out[i].length = (header->msg_flags & MSG_TRUNC) ? 0 : batch->headers[i].msg_len;
        out[i].segment = out[i].length;
        out[i].has_local = 0;
        decode((struct sockaddr *)&batch->names[i], &out[i].source);
        for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
            if (c->cmsg_level != IPPROTO_UDP || c->cmsg_type != OPTION_UDP_GRO) {
                take_local(c, &out[i]);
                continue;
            }
            int size;
            memcpy(&size, CMSG_DATA(c), sizeof size);
            if (size > 0) out[i].segment = (uint32_t)size;
        }
        header->msg_namelen = sizeof batch->names[i];
        header->msg_controllen = sizeof batch->control[i];
    }
    return count;
}

// Segment size and own address: 24 + 40 bytes.
struct run_control {
    _Alignas(struct cmsghdr) char bytes[CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(struct in6_pktinfo))];
};

// Writes the own address that a message shall leave from; returns the bytes that it takes.
static size_t put_local(void *place, const struct clinux_address *local) {
    struct cmsghdr *c = place;
    if (local->is_v4) {
        struct in_pktinfo info = {.ipi_spec_dst.s_addr = htobe32((uint32_t)local->low)};
        c->cmsg_level = IPPROTO_IP;
        c->cmsg_type = IP_PKTINFO;
        c->cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(c), &info, sizeof info);
        return CMSG_SPACE(sizeof info);
    }
    struct in6_pktinfo info = {.ipi6_ifindex = local->scope};
    uint64_t words[2] = {htobe64(local->high), htobe64(local->low)};
    memcpy(&info.ipi6_addr, words, 16);
    c->cmsg_level = IPPROTO_IPV6;
    c->cmsg_type = IPV6_PKTINFO;
    c->cmsg_len = CMSG_LEN(sizeof info);
    memcpy(CMSG_DATA(c), &info, sizeof info);
    return CMSG_SPACE(sizeof info);
}

static void fill(struct mmsghdr *message, struct iovec *vector, struct sockaddr_in6 *name,
                 struct run_control *control, const void *memory, const struct clinux_run *run) {
    vector->iov_base = (char *)memory + run->offset;
    vector->iov_len = run->length;
    memset(message, 0, sizeof *message);
    message->msg_hdr.msg_iov = vector;
    message->msg_hdr.msg_iovlen = 1;
    message->msg_hdr.msg_name = name;
    message->msg_hdr.msg_namelen = encode(&run->destination, name);
    size_t used = 0;
    if (run->segment < run->length) {
        struct cmsghdr *c = (struct cmsghdr *)control->bytes;
        c->cmsg_level = IPPROTO_UDP;
        c->cmsg_type = OPTION_UDP_SEGMENT;
        c->cmsg_len = CMSG_LEN(sizeof(uint16_t));
        uint16_t size = (uint16_t)run->segment;
        memcpy(CMSG_DATA(c), &size, sizeof size);
        used = CMSG_SPACE(sizeof size);
    }
    if (run->has_local) used += put_local(control->bytes + used, &run->local);
    if (used == 0) return;
    message->msg_hdr.msg_control = control->bytes;
    message->msg_hdr.msg_controllen = used;
}

int clinux_send_runs(int descriptor, const void *memory, const struct clinux_run *runs, int count) {
    struct mmsghdr messages[CLINUX_SEND_MESSAGES];
    struct iovec vectors[CLINUX_SEND_MESSAGES];
    struct sockaddr_in6 names[CLINUX_SEND_MESSAGES];
    struct run_control controls[CLINUX_SEND_MESSAGES];
    if (count > CLINUX_SEND_MESSAGES) count = CLINUX_SEND_MESSAGES;
    for (int i = 0; i < count; i++) fill(&messages[i], &vectors[i], &names[i], &controls[i], memory, &runs[i]);
    int sent;
    if (count == 1)
        do sent = sendmsg(descriptor, &messages[0].msg_hdr, MSG_DONTWAIT) < 0 ? -1 : 1; while (sent < 0 && errno == EINTR);
    else
        do sent = sendmmsg(descriptor, messages, (unsigned)count, MSG_DONTWAIT); while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

static void fill_answer(struct mmsghdr *message, struct iovec *vector, struct sockaddr_in6 *name,
                        struct run_control *control, const void *memory, const struct clinux_answer *answer) {
    vector->iov_base = (char *)memory + answer->offset;
    vector->iov_len = answer->length;
    memset(message, 0, sizeof *message);
    message->msg_hdr.msg_iov = vector;
    message->msg_hdr.msg_iovlen = 1;
    message->msg_hdr.msg_name = name;
    message->msg_hdr.msg_namelen = encode(&answer->destination, name);
    if (!answer->has_local) return;
    message->msg_hdr.msg_control = control->bytes;
    message->msg_hdr.msg_controllen = put_local(control->bytes, &answer->local);
}

int clinux_send_answers(int descriptor, const void *memory, const struct clinux_answer *answers, int count) {
    struct mmsghdr messages[CLINUX_SEND_MESSAGES];
    struct iovec vectors[CLINUX_SEND_MESSAGES];
    struct sockaddr_in6 names[CLINUX_SEND_MESSAGES];
    struct run_control controls[CLINUX_SEND_MESSAGES];
    if (count > CLINUX_SEND_MESSAGES) count = CLINUX_SEND_MESSAGES;
    for (int i = 0; i < count; i++)
        fill_answer(&messages[i], &vectors[i], &names[i], &controls[i], memory, &answers[i]);
    int sent;
    do sent = sendmmsg(descriptor, messages, (unsigned)count, MSG_DONTWAIT); while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

int clinux_send_plain(int descriptor, const void *memory, const struct clinux_run *run, uint32_t skip) {
    struct mmsghdr messages[CLINUX_SEND_MESSAGES];
    struct iovec vectors[CLINUX_SEND_MESSAGES];
    struct sockaddr_in6 names[CLINUX_SEND_MESSAGES];
    struct run_control controls[CLINUX_SEND_MESSAGES];
    uint32_t segment = run->segment ? run->segment : run->length;
    int count = 0;
    for (uint32_t done = skip * segment; done < run->length && count < CLINUX_SEND_MESSAGES; done += segment) {
        struct clinux_run part = *run;
        part.offset += done;
        part.length = run->length - done < segment ? run->length - done : segment;
        part.segment = part.length;
        fill(&messages[count], &vectors[count], &names[count], &controls[count], memory, &part);
        count++;
    }
    int sent;
    do sent = sendmmsg(descriptor, messages, (unsigned)count, MSG_DONTWAIT); while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}
