/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vfs_internal.h"

/* The bytes that every SQLite locks (sqlite3 file format, "pending byte"): 1 GiB into the file,
   pending and reserved byte, then 510 for readers. */
#define LOCK_BYTES_START 0x40000000
#define LOCK_BYTES_COUNT 512

static pthread_mutex_t list_mutex = PTHREAD_MUTEX_INITIALIZER;
static shared *list;

shared *shared_acquire(const char *path, size_t length) {
    pthread_mutex_lock(&list_mutex);
    shared *s = list;
    while (s && (strlen(s->path) != length || memcmp(s->path, path, length) != 0)) s = s->next;
    if (!s) {
        s = calloc(1, sizeof *s);
        if (s) s->path = strndup(path, length);
        if (s && s->path) {
            s->lock_descriptor = -1;
            pthread_mutex_init(&s->mutex, NULL);
            s->next = list;
            list = s;
        } else {
            free(s);
            s = NULL;
        }
    }
    if (s) s->references++;
    pthread_mutex_unlock(&list_mutex);
    return s;
}

shared *shared_find(const char *path) {
    pthread_mutex_lock(&list_mutex);
    shared *s = list;
    while (s && strcmp(s->path, path) != 0) s = s->next;
    if (s) s->references++;
    pthread_mutex_unlock(&list_mutex);
    return s;
}

/* The lock goes with the last descriptor of the open file, and a process that is being started has
   copies of ours between fork and exec: closing ours would leave the lock to it for that long. */
static void admit_others(shared *s) {
    struct flock whole = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    if (s->lock_descriptor < 0) return;
    (void)fcntl(s->lock_descriptor, F_OFD_SETLK, &whole);
    close(s->lock_descriptor);
}

void shared_release(shared *s) {
    pthread_mutex_lock(&list_mutex);
    if (--s->references == 0) {
        shared **place = &list;
        while (*place != s) place = &(*place)->next;
        *place = s->next;
        deferral_end(s);
        shared_shm_forget(s);
        admit_others(s);
        pthread_mutex_destroy(&s->mutex);
        free(s->frames);
        free(s->path);
        free(s);
    }
    pthread_mutex_unlock(&list_mutex);
}

int shared_exclude_others(shared *s) {
    int rc = SQLITE_OK;
    pthread_mutex_lock(&s->mutex);
    if (s->lock_descriptor < 0) {
        int descriptor = open(s->path, O_RDWR | O_CLOEXEC);
        struct flock lock = {
            .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_BYTES_START,
            .l_len = LOCK_BYTES_COUNT};
        /* A lock of the open file, not of the process: closing another descriptor of the same file,
           as SQLite does, would drop a lock of the process. */
        if (descriptor < 0) {
            rc = SQLITE_IOERR_LOCK;
        } else if (fcntl(descriptor, F_OFD_SETLK, &lock) != 0) {
            rc = errno == EAGAIN || errno == EACCES ? SQLITE_BUSY : SQLITE_IOERR_LOCK;
            close(descriptor);
        } else {
            s->lock_descriptor = descriptor;
        }
    }
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

/* ---- File locks: SQLite's five levels (sqlite.org/lockingv3.html), among ourselves ---- */

int shared_lock(aspen_file *f, int level) {
    shared *s = f->shared;
    int rc = SQLITE_OK;
    if (level <= f->lock_level) return SQLITE_OK;
    pthread_mutex_lock(&s->mutex);
    if (f->lock_level == SQLITE_LOCK_NONE) {
        if (s->pender || s->excluder) rc = SQLITE_BUSY;
        else {
            s->sharers++;
            f->lock_level = SQLITE_LOCK_SHARED;
        }
    }
    if (rc == SQLITE_OK && level == SQLITE_LOCK_RESERVED) {
        if (s->reserver && s->reserver != f) rc = SQLITE_BUSY;
        else {
            s->reserver = f;
            f->lock_level = SQLITE_LOCK_RESERVED;
        }
    }
    if (rc == SQLITE_OK && level == SQLITE_LOCK_EXCLUSIVE) {
        if ((s->reserver && s->reserver != f) || (s->pender && s->pender != f)) rc = SQLITE_BUSY;
        else {
            s->pender = f;
            f->lock_level = SQLITE_LOCK_PENDING;
            if (s->sharers > 1) rc = SQLITE_BUSY;
            else {
                s->excluder = f;
                f->lock_level = SQLITE_LOCK_EXCLUSIVE;
            }
        }
    }
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

int shared_unlock(aspen_file *f, int level) {
    shared *s = f->shared;
    if (level >= f->lock_level) return SQLITE_OK;
    pthread_mutex_lock(&s->mutex);
    if (s->excluder == f) s->excluder = NULL;
    if (s->pender == f) s->pender = NULL;
    if (s->reserver == f) s->reserver = NULL;
    if (level == SQLITE_LOCK_NONE) s->sharers--;
    f->lock_level = level;
    pthread_mutex_unlock(&s->mutex);
    return SQLITE_OK;
}

int shared_is_reserved(aspen_file *f) {
    pthread_mutex_lock(&f->shared->mutex);
    int reserved = f->shared->reserver != NULL;
    pthread_mutex_unlock(&f->shared->mutex);
    return reserved;
}

/* ---- WAL index ---- */

int shared_shm_map(aspen_file *f, int region, int size, int extend, void volatile **out) {
    shared *s = f->shared;
    int rc = SQLITE_OK;
    *out = NULL;
    pthread_mutex_lock(&s->mutex);
    if (region >= s->region_count && extend) {
        void **regions = realloc(s->regions, (size_t)(region + 1) * sizeof *regions);
        if (regions) {
            s->regions = regions;
            while (s->region_count <= region) s->regions[s->region_count++] = NULL;
        } else {
            rc = SQLITE_NOMEM;
        }
    }
    if (rc == SQLITE_OK && region < s->region_count) {
        if (!s->regions[region] && extend) {
            s->regions[region] = calloc(1, (size_t)size);
            if (!s->regions[region]) rc = SQLITE_NOMEM;
        }
        *out = s->regions[region];
    }
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

int shared_shm_lock(aspen_file *f, int offset, int n, int flags) {
    shared *s = f->shared;
    uint16_t mask = (uint16_t)((1u << (offset + n)) - (1u << offset));
    int rc = SQLITE_OK;
    pthread_mutex_lock(&s->mutex);
    for (int i = offset; i < offset + n && !(flags & SQLITE_SHM_UNLOCK); i++) {
        int held = (f->shm_shared >> i) & 1;
        if (s->shm_locks[i].excluder && s->shm_locks[i].excluder != f) rc = SQLITE_BUSY;
        if ((flags & SQLITE_SHM_EXCLUSIVE) && s->shm_locks[i].sharers > held) rc = SQLITE_BUSY;
    }
    for (int i = offset; i < offset + n && rc == SQLITE_OK; i++) {
        int held = (f->shm_shared >> i) & 1;
        if (flags & SQLITE_SHM_UNLOCK) {
            s->shm_locks[i].sharers -= held;
            if (s->shm_locks[i].excluder == f) s->shm_locks[i].excluder = NULL;
        } else if (flags & SQLITE_SHM_EXCLUSIVE) {
            s->shm_locks[i].excluder = f;
        } else if (!held) {
            s->shm_locks[i].sharers++;
        }
    }
    if (rc == SQLITE_OK) {
        if (flags & SQLITE_SHM_UNLOCK) {
            f->shm_shared &= (uint16_t)~mask;
            f->shm_exclusive &= (uint16_t)~mask;
        } else if (flags & SQLITE_SHM_EXCLUSIVE) {
            f->shm_exclusive |= mask;
        } else {
            f->shm_shared |= mask;
        }
    }
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

void shared_shm_unlock_all(aspen_file *f) {
    if (f->shm_shared | f->shm_exclusive)
        shared_shm_lock(f, 0, SQLITE_SHM_NLOCK, SQLITE_SHM_UNLOCK);
}

/* Where SQLite keeps these in the index's header (struct WalIndexHdr, sqlite.org/walformat.html). */
#define INDEX_IS_INIT 12
#define INDEX_MX_FRAME 16
#define INDEX_SALTS 32

wal_standing shared_standing(shared *s) {
    wal_standing standing = {0};
    pthread_mutex_lock(&s->mutex);
    const unsigned char *header = s->region_count > 0 ? s->regions[0] : NULL;
    if (header && header[INDEX_IS_INIT]) {
        memcpy(&standing.frames, header + INDEX_MX_FRAME, sizeof standing.frames);
        memcpy(standing.salts, header + INDEX_SALTS, sizeof standing.salts);
    }
    pthread_mutex_unlock(&s->mutex);
    return standing;
}

int shared_standing_of(const char *path, wal_standing *standing) {
    shared *s = shared_find(path);
    if (!s) return 0;
    *standing = shared_standing(s);
    shared_release(s);
    return 1;
}

void shared_shm_forget(shared *s) {
    for (int i = 0; i < s->region_count; i++) free(s->regions[i]);
    free(s->regions);
    s->regions = NULL;
    s->region_count = 0;
}
