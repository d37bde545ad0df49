/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vfs_internal.h"

static sqlite3_vfs *real_vfs;

static sqlite3_file *real(sqlite3_file *file) { return (sqlite3_file *)((aspen_file *)file + 1); }
static aspen_file *aspen(sqlite3_file *file) { return (aspen_file *)file; }

static int before(
    aspen_file *f, aspen_vfs_event_kind kind, int64_t offset, const void *bytes, int64_t count,
    int failure_code) {
    if (!atomic_load_explicit(&observers_present, memory_order_relaxed) || !f->path)
        return SQLITE_OK;
    aspen_vfs_event event = {
        .kind = kind, .path = f->path, .offset = offset, .bytes = bytes, .count = count};
    int failure = observe_before(&event);
    if (!failure) return SQLITE_OK;
    return failure == ENOSPC ? SQLITE_FULL : failure_code;
}

static void after(
    aspen_file *f, aspen_vfs_event_kind kind, int64_t offset, const void *bytes, int64_t count) {
    if (!atomic_load_explicit(&observers_present, memory_order_relaxed) || !f->path) return;
    aspen_vfs_event event = {
        .kind = kind, .path = f->path, .offset = offset, .bytes = bytes, .count = count};
    observe_after(&event);
}

/* ---- Reading and writing ---- */

/* Whether the WAL holds any page. */
static int has_frames(aspen_file *f) {
    struct stat status;
    char path[4096];
    if (snprintf(path, sizeof path, "%s-wal", f->shared->path) >= (int)sizeof path) return 0;
    return stat(path, &status) == 0 && status.st_size > WAL_HEADER_BYTES;
}

/* What SQLite looks at before it has opened the WAL, if it is as we make it. A power cut may tear the
   first page while a checkpoint writes it, and then the WAL has it whole. These bytes lie in one
   sector and do not change; the page itself is read and verified as a page before it is used. */
static int is_our_header(const unsigned char *page) {
    return memcmp(page, "SQLite format 3", 16) == 0 && page[16] == ASPEN_VFS_PAGE_BYTES >> 8
        && page[17] == 0 && page[18] == 2 && page[19] == 2 && page[20] == ASPEN_VFS_RESERVED_BYTES;
}

/* Whether a page that was read from a database may be used. */
static int passes(aspen_file *f, uint32_t number, const unsigned char *page) {
    if (page_is_sound(number, page)) return 1;
#ifdef ASPEN_TEST_BUILD
    aspen_vfs_bug bug = f->path ? planted_bug(f->path) : ASPEN_VFS_NO_BUG;
    if (bug == ASPEN_VFS_TORN_PAGE_PASSES) return 1;
    if (bug == ASPEN_VFS_MISDIRECTED_PAGE_PASSES)
        for (uint32_t other = 1; other < 1000; other++)
            if (page_is_sound(other, page)) return 1;
#else
    (void)f;
#endif
    return 0;
}

/* Part of a page is asked for (the header of the file): the whole of it is read and verified. */
static int read_part(sqlite3_file *file, void *out, int count, sqlite3_int64 offset) {
    unsigned char page[ASPEN_VFS_PAGE_BYTES];
    sqlite3_int64 start = offset - offset % ASPEN_VFS_PAGE_BYTES;
    if (offset + count > start + ASPEN_VFS_PAGE_BYTES) return SQLITE_IOERR_READ;
    int found = deferral_read(aspen(file), page, ASPEN_VFS_PAGE_BYTES, start);
    if (found < 0) return SQLITE_IOERR_READ;
    int rc = found ? SQLITE_OK
                   : real(file)->pMethods->xRead(real(file), page, ASPEN_VFS_PAGE_BYTES, start);
    if (rc == SQLITE_IOERR_SHORT_READ) {
        sqlite3_int64 size = 0;
        rc = real(file)->pMethods->xFileSize(real(file), &size);
        if (rc != SQLITE_OK) return rc;
        memset(out, 0, (size_t)count);
        /* A file that ends within a page is damaged, an empty one is new. */
        return size > start ? SQLITE_IOERR_DATA : SQLITE_IOERR_SHORT_READ;
    }
    if (rc != SQLITE_OK) return rc;
    if (!passes(aspen(file), (uint32_t)(start / ASPEN_VFS_PAGE_BYTES) + 1, page)
        && !(start == 0 && is_our_header(page) && has_frames(aspen(file))))
        return SQLITE_IOERR_DATA;
    memcpy(out, page + (offset - start), (size_t)count);
    return SQLITE_OK;
}

static int aspen_read(sqlite3_file *file, void *out, int count, sqlite3_int64 offset) {
    aspen_file *f = aspen(file);
    int rc = before(f, ASPEN_VFS_READ, offset, NULL, count, SQLITE_IOERR_READ);
    if (rc != SQLITE_OK) return rc;
    int is_page = count == ASPEN_VFS_PAGE_BYTES && offset % ASPEN_VFS_PAGE_BYTES == 0;
    if (f->kind == FILE_DATABASE && !is_page) return read_part(file, out, count, offset);
    int found = deferral_read(f, out, count, offset);
    if (found) return found > 0 ? SQLITE_OK : SQLITE_IOERR_READ;
    rc = real(file)->pMethods->xRead(real(file), out, count, offset);
    if (rc != SQLITE_OK) return rc;
    if (f->kind == FILE_WAL) return frames_read(f->shared, out, count, offset);
    if (f->kind == FILE_DATABASE
        && !passes(f, (uint32_t)(offset / ASPEN_VFS_PAGE_BYTES) + 1, out)) {
        /* Whoever ignores the result must not find the page either. */
        memset(out, 0, (size_t)count);
        return SQLITE_IOERR_DATA;
    }
    return SQLITE_OK;
}

static int aspen_write(sqlite3_file *file, const void *bytes, int count, sqlite3_int64 offset) {
    aspen_file *f = aspen(file);
    unsigned char page[ASPEN_VFS_PAGE_BYTES];
    if (f->kind == FILE_DATABASE) {
        if (count != ASPEN_VFS_PAGE_BYTES || offset % ASPEN_VFS_PAGE_BYTES != 0)
            return SQLITE_IOERR_WRITE;
        memcpy(page, bytes, ASPEN_VFS_PAGE_BYTES);
        /* A database that was made without room for checksums is not ours to write. */
        if (offset == 0 && page[20] != ASPEN_VFS_RESERVED_BYTES) return SQLITE_IOERR_WRITE;
        page_seal((uint32_t)(offset / ASPEN_VFS_PAGE_BYTES) + 1, page);
        bytes = page;
        int noted = note_checkpoint(f);
        if (noted != SQLITE_OK) return noted;
    }
    int is_deferred = 0;
    int rc = deferral_write(f, bytes, count, offset, &is_deferred);
    if (is_deferred)
        return rc == SQLITE_OK && f->kind == FILE_WAL ? frames_wrote(f->shared, bytes, count, offset)
                                                      : rc;
    do rc = before(f, ASPEN_VFS_WRITE, offset, bytes, count, SQLITE_IOERR_WRITE);
    while (rc == SQLITE_FULL && relieve(f->path));
    if (rc != SQLITE_OK) return rc;
    /* Noted first: should the write fail half way, what is then read is found to be wrong. */
    if (f->kind == FILE_WAL) rc = frames_wrote(f->shared, bytes, count, offset);
    if (rc != SQLITE_OK) return rc;
    do rc = real(file)->pMethods->xWrite(real(file), bytes, count, offset);
    while (rc == SQLITE_FULL && relieve(f->path));
    if (rc == SQLITE_OK) after(f, ASPEN_VFS_WRITE, offset, bytes, count);
    return rc;
}

static int aspen_truncate(sqlite3_file *file, sqlite3_int64 size) {
    aspen_file *f = aspen(file);
    int is_deferred = 0;
    int rc = deferral_truncate(f, size, &is_deferred);
    if (!is_deferred) rc = before(f, ASPEN_VFS_TRUNCATE, size, NULL, 0, SQLITE_IOERR_TRUNCATE);
    if (rc == SQLITE_OK && !is_deferred)
        rc = real(file)->pMethods->xTruncate(real(file), size);
    if (rc != SQLITE_OK) return rc;
    if (f->kind == FILE_WAL) frames_truncated(f->shared, size);
    if (!is_deferred) after(f, ASPEN_VFS_TRUNCATE, size, NULL, 0);
    return SQLITE_OK;
}

static int directory_event(const char *path, int (*call)(const aspen_vfs_event *)) {
    const char *slash = path ? strrchr(path, '/') : NULL;
    if (!slash) return 0;
    char *directory = strndup(path, (size_t)(slash - path));
    if (!directory) return ENOMEM;
    aspen_vfs_event event = {.kind = ASPEN_VFS_SYNC_DIRECTORY, .path = directory};
    int result = call(&event);
    free(directory);
    return result;
}

static int after_event(const aspen_vfs_event *event) {
    observe_after(event);
    return 0;
}

static int aspen_sync(sqlite3_file *file, int flags) {
    aspen_file *f = aspen(file);
    int is_deferred = 0;
    int rc = deferral_sync(f, &is_deferred);
    if (is_deferred) {
        f->syncs_directory = 0;
        return rc;
    }
    /* Full or not: what a failed sync leaves is not known. */
    rc = before(f, ASPEN_VFS_SYNC, 0, NULL, 0, SQLITE_IOERR_FSYNC);
    if (rc != SQLITE_OK) return SQLITE_IOERR_FSYNC;
    rc = real(file)->pMethods->xSync(real(file), flags);
    if (rc != SQLITE_OK) return rc;
    after(f, ASPEN_VFS_SYNC, 0, NULL, 0);
    if (f->syncs_directory && observers_present) directory_event(f->path, after_event);
    f->syncs_directory = 0;
    return SQLITE_OK;
}

static int aspen_file_size(sqlite3_file *file, sqlite3_int64 *size) {
    int64_t expected = 0;
    if (deferral_size(aspen(file), &expected)) {
        *size = expected;
        return SQLITE_OK;
    }
    return real(file)->pMethods->xFileSize(real(file), size);
}

/* ---- Locks ---- */

static int aspen_lock(sqlite3_file *file, int level) {
    return aspen(file)->shared ? shared_lock(aspen(file), level) : SQLITE_OK;
}

static int aspen_unlock(sqlite3_file *file, int level) {
    return aspen(file)->shared ? shared_unlock(aspen(file), level) : SQLITE_OK;
}

static int aspen_check_reserved(sqlite3_file *file, int *out) {
    *out = aspen(file)->shared ? shared_is_reserved(aspen(file)) : 0;
    return SQLITE_OK;
}

static int aspen_shm_map(
    sqlite3_file *file, int region, int size, int extend, void volatile **out) {
    return shared_shm_map(aspen(file), region, size, extend, out);
}

static int aspen_shm_lock(sqlite3_file *file, int offset, int n, int flags) {
    return shared_shm_lock(aspen(file), offset, n, flags);
}

static void aspen_shm_barrier(sqlite3_file *file) {
    (void)file;
    atomic_thread_fence(memory_order_seq_cst);
}

static int aspen_shm_unmap(sqlite3_file *file, int delete_it) {
    /* The index goes with the last connection: it is rebuilt from the WAL at the next opening. */
    (void)delete_it;
    shared_shm_unlock_all(aspen(file));
    return SQLITE_OK;
}

/* ---- The rest of a file ---- */

static int aspen_file_control(sqlite3_file *file, int operation, void *argument) {
    /* Memory mapping would go past the checksums. */
    if (operation == SQLITE_FCNTL_MMAP_SIZE) return SQLITE_NOTFOUND;
    if (operation == SQLITE_FCNTL_VFSNAME) {
        *(char **)argument = sqlite3_mprintf("%s", ASPEN_VFS_NAME);
        return SQLITE_OK;
    }
    return real(file)->pMethods->xFileControl(real(file), operation, argument);
}

static int aspen_sector_size(sqlite3_file *file) {
    return real(file)->pMethods->xSectorSize(real(file));
}

static int aspen_device_characteristics(sqlite3_file *file) {
    return real(file)->pMethods->xDeviceCharacteristics(real(file));
}

static int aspen_close(sqlite3_file *file) {
    aspen_file *f = aspen(file);
    int rc = real(file)->pMethods ? real(file)->pMethods->xClose(real(file)) : SQLITE_OK;
    if (f->shared) {
        if (f->kind == FILE_DATABASE) {
            shared_shm_unlock_all(f);
            shared_unlock(f, SQLITE_LOCK_NONE);
        }
        shared_release(f->shared);
        f->shared = NULL;
    }
    return rc;
}

/* Version 2: with a WAL index, without memory-mapped pages. */
static const sqlite3_io_methods methods = {
    .iVersion = 2,
    .xClose = aspen_close,
    .xRead = aspen_read,
    .xWrite = aspen_write,
    .xTruncate = aspen_truncate,
    .xSync = aspen_sync,
    .xFileSize = aspen_file_size,
    .xLock = aspen_lock,
    .xUnlock = aspen_unlock,
    .xCheckReservedLock = aspen_check_reserved,
    .xFileControl = aspen_file_control,
    .xSectorSize = aspen_sector_size,
    .xDeviceCharacteristics = aspen_device_characteristics,
    .xShmMap = aspen_shm_map,
    .xShmLock = aspen_shm_lock,
    .xShmBarrier = aspen_shm_barrier,
    .xShmUnmap = aspen_shm_unmap,
};

/* ---- The file system ---- */

static int attach(aspen_file *f, const char *path, int flags) {
    size_t length = path ? strlen(path) : 0;
    if ((flags & SQLITE_OPEN_MAIN_DB) && path) f->kind = FILE_DATABASE;
    if ((flags & SQLITE_OPEN_WAL) && path && length > 4) {
        f->kind = FILE_WAL;
        length -= 4; /* "-wal" */
    }
    if (f->kind == FILE_OTHER) return SQLITE_OK;
    f->shared = shared_acquire(path, length);
    if (!f->shared) return SQLITE_NOMEM;
    return f->kind == FILE_DATABASE ? shared_exclude_others(f->shared) : SQLITE_OK;
}

static int aspen_open(
    sqlite3_vfs *vfs, const char *path, sqlite3_file *file, int flags, int *flags_out) {
    (void)vfs;
    aspen_file *f = aspen(file);
    memset(f, 0, sizeof *f);
    f->path = path;
    int existed = 1;
    if (path && (flags & SQLITE_OPEN_CREATE)) {
        /* For the system's VFS an empty file does not exist. */
        existed = access(path, F_OK) == 0;
        aspen_vfs_event event = {.kind = ASPEN_VFS_CREATE, .path = path};
        int failure = existed ? 0 : observe_before(&event);
        if (failure) return failure == ENOSPC ? SQLITE_FULL : SQLITE_CANTOPEN;
    }
    int rc = real_vfs->xOpen(real_vfs, path, real(file), flags, flags_out);
    if (rc == SQLITE_OK) rc = attach(f, path, flags);
    if (rc != SQLITE_OK) {
        aspen_close(file);
        return rc;
    }
    f->base.pMethods = &methods;
    f->syncs_directory = path && (flags & SQLITE_OPEN_CREATE)
        && (flags & (SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL));
    if (!existed) after(f, ASPEN_VFS_CREATE, 0, NULL, 0);
    return SQLITE_OK;
}

static int aspen_delete(sqlite3_vfs *vfs, const char *path, int sync_directory) {
    (void)vfs;
    aspen_vfs_event event = {.kind = ASPEN_VFS_DELETE, .path = path};
    if (observe_before(&event)) return SQLITE_IOERR_DELETE;
    int rc = real_vfs->xDelete(real_vfs, path, sync_directory);
    if (rc != SQLITE_OK) return rc;
    observe_after(&event);
    if (sync_directory && observers_present) directory_event(path, after_event);
    return SQLITE_OK;
}

static int aspen_access(sqlite3_vfs *vfs, const char *path, int flags, int *out) {
    (void)vfs;
    if (flags == SQLITE_ACCESS_EXISTS && deferral_has_bytes(path)) {
        *out = 1;
        return SQLITE_OK;
    }
    return real_vfs->xAccess(real_vfs, path, flags, out);
}

static int aspen_full_pathname(sqlite3_vfs *vfs, const char *path, int count, char *out) {
    (void)vfs;
    return real_vfs->xFullPathname(real_vfs, path, count, out);
}

static int aspen_randomness(sqlite3_vfs *vfs, int count, char *out) {
    (void)vfs;
    return real_vfs->xRandomness(real_vfs, count, out);
}

static int aspen_sleep(sqlite3_vfs *vfs, int microseconds) {
    (void)vfs;
    return real_vfs->xSleep(real_vfs, microseconds);
}

static int aspen_current_time(sqlite3_vfs *vfs, double *out) {
    (void)vfs;
    return real_vfs->xCurrentTime(real_vfs, out);
}

static int aspen_current_time_int64(sqlite3_vfs *vfs, sqlite3_int64 *out) {
    (void)vfs;
    return real_vfs->xCurrentTimeInt64(real_vfs, out);
}

static int aspen_last_error(sqlite3_vfs *vfs, int count, char *out) {
    (void)vfs;
    return real_vfs->xGetLastError(real_vfs, count, out);
}

static sqlite3_vfs aspen_vfs = {
    .iVersion = 2,
    .zName = ASPEN_VFS_NAME,
    .xOpen = aspen_open,
    .xDelete = aspen_delete,
    .xAccess = aspen_access,
    .xFullPathname = aspen_full_pathname,
    .xRandomness = aspen_randomness,
    .xSleep = aspen_sleep,
    .xCurrentTime = aspen_current_time,
    .xGetLastError = aspen_last_error,
    .xCurrentTimeInt64 = aspen_current_time_int64,
};

static int registration;

static void register_once(void) {
    /* Counting every allocation under a global lock serves nobody here. Refused, without harm, when
       SQLite is in use already. */
    sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
    registration = sqlite3_initialize();
    if (registration != SQLITE_OK) return;
    real_vfs = sqlite3_vfs_find("unix");
    if (!real_vfs) {
        registration = SQLITE_ERROR;
        return;
    }
    aspen_vfs.szOsFile = (int)sizeof(aspen_file) + real_vfs->szOsFile;
    aspen_vfs.mxPathname = real_vfs->mxPathname;
    registration = sqlite3_vfs_register(&aspen_vfs, 0);
}

int aspen_vfs_register(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_once);
    return registration;
}
