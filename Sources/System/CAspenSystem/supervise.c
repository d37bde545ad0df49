/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "CAspenSystem.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Between fork and exec: moves the descriptors into place without one overwriting another. */
static void place_descriptors(const int *fds, int count, int error) {
    int moved[64];
    int base = 3 + count + 1;
    for (int i = 0; i < count; i++) {
        moved[i] = fcntl(fds[i], F_DUPFD, base);
        if (moved[i] < 0) _exit(127);
    }
    dup2(error, 1);
    dup2(error, 2);
    for (int i = 0; i < count; i++)
        if (dup2(moved[i], 3 + i) < 0) _exit(127);
    close_range(3 + (unsigned)count, ~0U, 0);
}

pid_t aspen_spawn(const char *path, char *const arguments[], char *const environment[],
                  const int *fds, int count, int error) {
    if (count > 64) return -EINVAL;
    pid_t parent = getpid();
    pid_t child = fork();
    if (child < 0) return -errno;
    if (child > 0) return child;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(0); /* the parent died before prctl took effect */
    setpgid(0, 0);                     /* Ctrl-C is for the supervisor, which stops us in order */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    int input = open("/dev/null", O_RDONLY);
    if (input >= 0) dup2(input, 0);
    place_descriptors(fds, count, error);
    execve(path, arguments, environment);
    _exit(127);
}

static const int all_seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;

int aspen_memory_file(const char *name, const void *bytes, size_t count) {
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -errno;
    /* The mode is for whoever opens it through /proc/PID/fd: by default it is 0777. */
    if (fchmod(fd, 0600) != 0 || write(fd, bytes, count) != (ssize_t)count ||
        fcntl(fd, F_ADD_SEALS, all_seals) != 0) {
        close(fd);
        return -EIO;
    }
    return fd;
}

int aspen_is_sealed(int fd) {
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & all_seals) == all_seals;
}

void aspen_wipe_argument(char **arguments, int index) {
    memset(arguments[index], 'x', strlen(arguments[index]));
}

void aspen_wipe_environment(const char *name) {
    extern char **environ;
    size_t length = strlen(name);
    for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
        if (strncmp(*entry, name, length) != 0 || (*entry)[length] != '=') continue;
        char *value = *entry + length + 1;
        memset(value, 'x', strlen(value));
    }
    unsetenv(name);
}

int aspen_bind_datagram(const char *host, uint16_t port) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr *address;
    socklen_t length;
    if (inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
        address = (struct sockaddr *)&v4;
        length = sizeof v4;
    } else if (inet_pton(AF_INET6, host, &v6.sin6_addr) == 1) {
        address = (struct sockaddr *)&v6;
        length = sizeof v6;
    } else {
        return -EINVAL;
    }
    int fd = socket(address->sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    int size = 4 << 20;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (bind(fd, address, length) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

static int bind_unix(const char *path, int kind) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, kind | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    unlink(path);
    mode_t old = umask(0177);
    int result = bind(fd, (struct sockaddr *)&address, sizeof address);
    int error = errno;
    umask(old);
    if (result != 0) {
        close(fd);
        return -error;
    }
    return fd;
}

int aspen_listen_unix(const char *path) {
    int fd = bind_unix(path, SOCK_STREAM);
    if (fd >= 0 && listen(fd, 128) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int aspen_bind_unix_datagram(const char *path) {
    int fd = bind_unix(path, SOCK_DGRAM);
    int on = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
    return fd;
}

ssize_t aspen_receive_notification(int socket, void *buffer, size_t size, pid_t *sender, int *fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = buffer, .iov_len = size};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    *sender = 0;
    *fd = -1;
    ssize_t count = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (count < 0) return -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c != NULL; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET) continue;
        if (c->cmsg_type == SCM_CREDENTIALS) {
            struct ucred who;
            memcpy(&who, CMSG_DATA(c), sizeof who);
            *sender = who.pid;
        } else if (c->cmsg_type == SCM_RIGHTS) {
            size_t held = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            for (size_t i = 0; i < held; i++) {
                int next;
                memcpy(&next, CMSG_DATA(c) + i * sizeof(int), sizeof next);
                if (*fd < 0) *fd = next;
                else close(next);
            }
        }
    }
    return count;
}

int aspen_signal_descriptor(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGHUP);
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) return -errno;
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

int aspen_next_signal(int fd) {
    struct signalfd_siginfo info;
    ssize_t count = read(fd, &info, sizeof info);
    if (count != (ssize_t)sizeof info) return count < 0 ? -errno : -EIO;
    return (int)info.ssi_signo;
}
