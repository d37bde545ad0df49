/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "CNgtcp2.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <string.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

int aspen_udp_open(const struct sockaddr *address, socklen_t length) {
    int fd = socket(address->sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    if (address->sa_family == AF_INET6) {
        int zero = 0;
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    }
    if (bind(fd, address, length) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

/* Whoever handed the socket over may have given it more than we are allowed to ask for. */
static void enlarge(int fd, int option, int bytes) {
    int now = 0; /* twice what was asked for, as the kernel counts */
    socklen_t length = sizeof now;
    if (getsockopt(fd, SOL_SOCKET, option, &now, &length) == 0 && now / 2 >= bytes) return;
    (void)setsockopt(fd, SOL_SOCKET, option, &bytes, sizeof bytes);
}

void aspen_udp_configure(int fd, int bytes) {
    /* Each is an improvement only: a socket that refuses one still works. */
    enlarge(fd, SO_RCVBUF, bytes);
    enlarge(fd, SO_SNDBUF, bytes);
    /* QUIC finds the path's MTU itself (RFC 9000 section 14.2): packets must not be fragmented. */
    int probe = IP_PMTUDISC_PROBE;
    (void)setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &probe, sizeof probe);
    int probe6 = IPV6_PMTUDISC_PROBE;
    (void)setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &probe6, sizeof probe6);
}

bool aspen_udp_has_segmentation(int fd) {
    int value = 0;
    socklen_t length = sizeof value;
    return getsockopt(fd, SOL_UDP, UDP_SEGMENT, &value, &length) == 0;
}

int aspen_udp_send(int fd, const uint8_t *bytes, size_t length, uint16_t segment,
                   const struct sockaddr *remote, socklen_t remote_length,
                   const struct sockaddr *source) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(struct in6_pktinfo))];
    } control;
    struct iovec data = {.iov_base = (void *)bytes, .iov_len = length};
    struct msghdr message = {
        .msg_name = (void *)remote,
        .msg_namelen = remote_length,
        .msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    memset(&control, 0, sizeof control);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    size_t used = 0;
    if (segment > 0) {
        header->cmsg_level = SOL_UDP;
        header->cmsg_type = UDP_SEGMENT;
        header->cmsg_len = CMSG_LEN(sizeof segment);
        memcpy(CMSG_DATA(header), &segment, sizeof segment);
        used += CMSG_SPACE(sizeof segment);
        header = CMSG_NXTHDR(&message, header);
    }
    if (source != NULL && source->sa_family == AF_INET) {
        struct in_pktinfo info = {.ipi_spec_dst = ((const struct sockaddr_in *)source)->sin_addr};
        header->cmsg_level = IPPROTO_IP;
        header->cmsg_type = IP_PKTINFO;
        header->cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(header), &info, sizeof info);
        used += CMSG_SPACE(sizeof info);
    } else if (source != NULL && source->sa_family == AF_INET6) {
        struct in6_pktinfo info = {.ipi6_addr = ((const struct sockaddr_in6 *)source)->sin6_addr};
        header->cmsg_level = IPPROTO_IPV6;
        header->cmsg_type = IPV6_PKTINFO;
        header->cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(header), &info, sizeof info);
        used += CMSG_SPACE(sizeof info);
    }
    message.msg_controllen = used;
    if (used == 0) message.msg_control = NULL;
    for (;;) {
        if (sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return 0;
        if (errno != EINTR) return -errno;
    }
}
