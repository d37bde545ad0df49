/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "CAspenSystem.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

int aspen_send_with_fd(int socket, const void *bytes, size_t count, int fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec data = {.iov_base = (void *)bytes, .iov_len = count};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    ssize_t sent;
    do {
        sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    /* An answer is smaller than any socket's buffer: part of it is as bad as nothing. */
    return sent == (ssize_t)count ? 0 : sent < 0 ? -errno : -EAGAIN;
}

ssize_t aspen_receive_with_fd(int socket, void *buffer, size_t size, int *fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control;
    struct iovec data = {.iov_base = buffer, .iov_len = size};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    *fd = -1;
    ssize_t count;
    do {
        count = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    } while (count < 0 && errno == EINTR);
    if (count < 0) return -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c != NULL; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        size_t held = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < held; i++) {
            int next;
            memcpy(&next, CMSG_DATA(c) + i * sizeof(int), sizeof next);
            if (*fd < 0) *fd = next;
            else close(next);
        }
    }
    return count;
}

int aspen_begin_connect(const uint8_t *address, size_t count, uint16_t port, int is_stream) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    if (count == 4) memcpy(&v4.sin_addr, address, 4);
    else if (count == 16) memcpy(&v6.sin6_addr, address, 16);
    else return -EINVAL;
    int fd = socket(count == 4 ? AF_INET : AF_INET6,
                    (is_stream ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    if (connect(fd, count == 4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6,
                count == 4 ? sizeof v4 : sizeof v6) != 0 &&
        errno != EINPROGRESS) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int aspen_socket_error(int fd) {
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) return -errno;
    return -error;
}

int aspen_accept_in_children(int listener, int max) {
    int running = 0;
    for (;;) {
        while (running > 0 && waitpid(-1, NULL, running < max ? WNOHANG : 0) > 0) running--;
        struct pollfd interest = {.fd = listener, .events = POLLIN};
        /* Now and then those who have ended are looked for, should nobody call. */
        if (poll(&interest, 1, running > 0 ? 1000 : -1) < 0 && errno != EINTR) return -errno;
        if ((interest.revents & POLLIN) == 0) {
            if (interest.revents != 0) return -EBADF;
            continue;
        }
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) continue;
            return -errno;
        }
        pid_t parent = getpid();
        pid_t child = fork();
        if (child == 0) {
            close(listener);
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) _exit(0); /* the parent died before prctl took effect */
            return fd;
        }
        close(fd);
        if (child > 0) running++;
    }
}
