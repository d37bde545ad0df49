/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vfs_internal.h"

typedef struct {
    char *prefix;
    aspen_vfs_observer observer;
    void *context;
#ifdef ASPEN_TEST_BUILD
    aspen_vfs_bug bug;
#endif
} entry;

atomic_int observers_present;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static entry entries[ASPEN_VFS_OBSERVERS_MAX];

int aspen_vfs_observe(const char *prefix, aspen_vfs_observer observer, void *context) {
    int number = -1;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < ASPEN_VFS_OBSERVERS_MAX && number < 0; i++) {
        if (entries[i].prefix) continue;
        entries[i].prefix = strdup(prefix);
        if (!entries[i].prefix) break;
        entries[i].observer = observer;
        entries[i].context = context;
        number = i;
        atomic_fetch_add(&observers_present, 1);
    }
    pthread_mutex_unlock(&mutex);
    return number;
}

void aspen_vfs_unobserve(int number) {
    if (number < 0 || number >= ASPEN_VFS_OBSERVERS_MAX) return;
    pthread_mutex_lock(&mutex);
    if (entries[number].prefix) {
        free(entries[number].prefix);
        entries[number] = (entry){0};
        atomic_fetch_sub(&observers_present, 1);
    }
    pthread_mutex_unlock(&mutex);
}

static int matches(const entry *e, const char *path) {
    return e->prefix && strncmp(path, e->prefix, strlen(e->prefix)) == 0;
}

int observe_before(const aspen_vfs_event *event) {
    if (!atomic_load_explicit(&observers_present, memory_order_relaxed)) return 0;
    int failure = 0;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < ASPEN_VFS_OBSERVERS_MAX && !failure; i++)
        if (matches(&entries[i], event->path) && entries[i].observer.before)
            failure = entries[i].observer.before(entries[i].context, event);
    pthread_mutex_unlock(&mutex);
    return failure;
}

void observe_after(const aspen_vfs_event *event) {
    if (!atomic_load_explicit(&observers_present, memory_order_relaxed)) return;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < ASPEN_VFS_OBSERVERS_MAX; i++)
        if (matches(&entries[i], event->path) && entries[i].observer.after)
            entries[i].observer.after(entries[i].context, event);
    pthread_mutex_unlock(&mutex);
}

#ifdef ASPEN_TEST_BUILD
void aspen_vfs_plant(int observer, aspen_vfs_bug bug) {
    if (observer < 0 || observer >= ASPEN_VFS_OBSERVERS_MAX) return;
    pthread_mutex_lock(&mutex);
    if (entries[observer].prefix) entries[observer].bug = bug;
    pthread_mutex_unlock(&mutex);
}

aspen_vfs_bug planted_bug(const char *path) {
    aspen_vfs_bug bug = ASPEN_VFS_NO_BUG;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < ASPEN_VFS_OBSERVERS_MAX && bug == ASPEN_VFS_NO_BUG; i++)
        if (matches(&entries[i], path)) bug = entries[i].bug;
    pthread_mutex_unlock(&mutex);
    return bug;
}
#endif

/* ---- Operations on names that SQLite has none for ---- */

static int sync_path(const char *path, aspen_vfs_event_kind kind, int flags) {
    aspen_vfs_event event = {.kind = kind, .path = path};
    int failure = observe_before(&event);
    if (failure) return failure;
    int descriptor = open(path, flags | O_CLOEXEC);
    if (descriptor < 0) return errno;
    failure = fsync(descriptor) == 0 ? 0 : errno;
    close(descriptor);
    if (!failure) observe_after(&event);
    return failure;
}

int aspen_vfs_sync_directory(const char *path) {
    return sync_path(path, ASPEN_VFS_SYNC_DIRECTORY, O_RDONLY | O_DIRECTORY);
}

int sync_directory_of(const char *path) {
    const char *slash = strrchr(path, '/');
    char *directory = slash ? strndup(path, (size_t)(slash - path)) : NULL;
    if (!directory) return ENOMEM;
    int failure = aspen_vfs_sync_directory(directory);
    free(directory);
    return failure;
}

int aspen_vfs_sync_file(const char *path) {
    return sync_path(path, ASPEN_VFS_SYNC, O_RDWR);
}

static int rewrite_block(const char *path, int descriptor, char *block, ssize_t count, off_t at) {
    aspen_vfs_event event = {
        .kind = ASPEN_VFS_WRITE, .path = path, .offset = at, .bytes = block, .count = count};
    int failure = observe_before(&event);
    for (ssize_t done = 0; !failure && done < count;) {
        ssize_t written = pwrite(descriptor, block + done, (size_t)(count - done), at + done);
        if (written < 0 && errno != EINTR) failure = errno;
        if (written > 0) done += written;
    }
    if (!failure) observe_after(&event);
    return failure;
}

int aspen_vfs_rewrite_file(const char *path) {
    enum { BLOCK_BYTES = 1 << 20 };
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return errno == ENOENT ? 0 : errno;
    char *block = malloc(BLOCK_BYTES);
    int failure = block ? 0 : ENOMEM;
    off_t at = 0;
    while (!failure) {
        ssize_t count = pread(descriptor, block, BLOCK_BYTES, at);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) failure = errno;
        if (count <= 0) break;
        failure = rewrite_block(path, descriptor, block, count, at);
        at += count;
    }
    free(block);
    close(descriptor);
    return failure || at == 0 ? failure : aspen_vfs_sync_file(path);
}

int aspen_vfs_rename(const char *from, const char *to) {
    aspen_vfs_event event = {.kind = ASPEN_VFS_RENAME, .path = from, .to = to};
    int failure = observe_before(&event);
    if (failure) return failure;
    if (rename(from, to) != 0) return errno;
    observe_after(&event);
    return 0;
}

int aspen_vfs_remove(const char *path) {
    aspen_vfs_event event = {.kind = ASPEN_VFS_DELETE, .path = path};
    int failure = observe_before(&event);
    if (failure) return failure;
    if (unlink(path) != 0) return errno;
    observe_after(&event);
    return 0;
}

int aspen_vfs_unnamed_file(const char *directory) {
    int descriptor = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (descriptor >= 0) return descriptor;
    if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT) return -errno;
    /* Not every file system can do that: one with a name, for a moment. */
    char path[4096];
    if (snprintf(path, sizeof path, "%s/.spool.XXXXXX", directory) >= (int)sizeof path)
        return -ENAMETOOLONG;
    descriptor = mkostemp(path, O_CLOEXEC);
    if (descriptor < 0) return -errno;
    unlink(path);
    return descriptor;
}

void aspen_vfs_write_behind_all(int descriptor) {
    (void)sync_file_range(descriptor, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE);
}

void aspen_vfs_write_behind(int descriptor, uint64_t offset, uint64_t count, uint64_t behind) {
    (void)sync_file_range(descriptor, (off_t)offset, (off_t)count, SYNC_FILE_RANGE_WRITE);
    if (behind > offset) behind = offset;
    if (behind > 0) {
        (void)sync_file_range(descriptor, (off_t)(offset - behind), (off_t)behind,
                              SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE
                                  | SYNC_FILE_RANGE_WAIT_AFTER);
    }
}

void aspen_vfs_discard(int descriptor, uint64_t offset, uint64_t count) {
    (void)fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                    (off_t)count);
}
