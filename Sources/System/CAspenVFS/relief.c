/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whoever keeps space back for the time when a disk is full is asked here for some of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vfs_internal.h"

typedef struct {
    char *prefix;
    int (*relieve)(void *context);
    void *context;
} entry;

static entry entries[ASPEN_VFS_OBSERVERS_MAX];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

int aspen_vfs_relieve(const char *prefix, int (*relieve)(void *context), void *context) {
    char *copy = strdup(prefix);
    if (!copy) return -1;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < ASPEN_VFS_OBSERVERS_MAX; i++) {
        if (entries[i].prefix) continue;
        entries[i] = (entry){.prefix = copy, .relieve = relieve, .context = context};
        pthread_mutex_unlock(&mutex);
        return i;
    }
    pthread_mutex_unlock(&mutex);
    free(copy);
    return -1;
}

void aspen_vfs_unrelieve(int number) {
    if (number < 0 || number >= ASPEN_VFS_OBSERVERS_MAX) return;
    pthread_mutex_lock(&mutex);
    free(entries[number].prefix);
    entries[number] = (entry){0};
    pthread_mutex_unlock(&mutex);
}

int relieve(const char *path) {
    int is_relieved = 0;
    if (!path) return 0;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < ASPEN_VFS_OBSERVERS_MAX && !is_relieved; i++) {
        if (entries[i].prefix && strncmp(path, entries[i].prefix, strlen(entries[i].prefix)) == 0)
            is_relieved = entries[i].relieve(entries[i].context);
    }
    pthread_mutex_unlock(&mutex);
    return is_relieved;
}

static int allocate(const char *path, int descriptor, off_t end, off_t count) {
    aspen_vfs_event event = {
        .kind = ASPEN_VFS_ALLOCATE, .path = path, .offset = end, .count = count};
    int failure = observe_before(&event);
    if (failure) return failure;
    int code;
    do code = fallocate(descriptor, FALLOC_FL_KEEP_SIZE, end, count);
    while (code != 0 && errno == EINTR);
    return code == 0 ? 0 : errno;
}

int aspen_vfs_allocate(const char *path, uint64_t count) {
    struct stat status;
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return errno;
    int failure = fstat(descriptor, &status) == 0 ? 0 : errno;
    if (!failure) {
        do failure = allocate(path, descriptor, status.st_size, (off_t)count);
        while ((failure == ENOSPC || failure == EDQUOT) && relieve(path));
    }
    close(descriptor);
    return failure == EDQUOT ? ENOSPC : failure;
}
