/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef ASPEN_VFS_INTERNAL_H
#define ASPEN_VFS_INTERNAL_H

#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "CAspenVFS.h"

#define WAL_HEADER_BYTES 32
#define FRAME_HEADER_BYTES 24
#define FRAME_BYTES (FRAME_HEADER_BYTES + ASPEN_VFS_PAGE_BYTES)

/* A WAL, and how many frames of it are in use. */
typedef struct {
    uint32_t frames;
    unsigned char salts[8];
} wal_standing;

typedef enum { FILE_OTHER = 0, FILE_DATABASE = 1, FILE_WAL = 2 } file_kind;

typedef struct deferral deferral;

/* What all connections of this process to one database share. */
typedef struct shared {
    struct shared *next;
    char *path;
    int references;
    /* Holds the lock that keeps other processes out; -1 until a database file is open. */
    int lock_descriptor;
    pthread_mutex_t mutex;

    /* File locks (sqlite3_io_methods.xLock), between our own connections. */
    int sharers;
    const void *reserver;
    const void *pender;
    const void *excluder;

    /* The WAL index. */
    void **regions;
    int region_count;
    struct {
        int sharers;
        const void *excluder;
    } shm_locks[SQLITE_SHM_NLOCK];

    /* What the note beside the WAL says, as far as this process has written it. */
    wal_standing noted;

    /* For each WAL frame the checksum of its page; zero: not known. */
    uint64_t *frames;
    size_t frame_count;

    /* Once there, it stays as long as this. */
    deferral *_Atomic deferral;
} shared;

typedef struct {
    sqlite3_file base;
    file_kind kind;
    shared *shared;
    /* Lives as long as the file is open (SQLite promises this for names it passes to xOpen). */
    const char *path;
    int lock_level;
    uint16_t shm_shared;
    uint16_t shm_exclusive;
    /* The system's VFS syncs the directory with the first sync of a new journal or WAL. */
    int syncs_directory;
    /* The system's own file follows in memory. */
} aspen_file;

/* shared.c */
shared *shared_acquire(const char *database_path, size_t length);
/* NULL if none is open at `path`. */
shared *shared_find(const char *path);
void shared_release(shared *s);
/* Keeps other processes out: SQLITE_OK, SQLITE_BUSY or SQLITE_IOERR_LOCK. */
int shared_exclude_others(shared *s);
int shared_lock(aspen_file *f, int level);
int shared_unlock(aspen_file *f, int level);
int shared_is_reserved(aspen_file *f);
int shared_shm_map(aspen_file *f, int region, int size, int extend, void volatile **out);
int shared_shm_lock(aspen_file *f, int offset, int n, int flags);
void shared_shm_unlock_all(aspen_file *f);
void shared_shm_forget(shared *s);
/* What the WAL index says; no frames if there is none. */
wal_standing shared_standing(shared *s);
/* The same for the database at `path`; 0 if none is open there. */
int shared_standing_of(const char *path, wal_standing *standing);

/* frames.c: checksums of pages, and of WAL frames */
void page_seal(uint32_t page_number, unsigned char *page);
int page_is_sound(uint32_t page_number, const unsigned char *page);
int frames_wrote(shared *s, const void *bytes, int count, int64_t offset);
int frames_read(shared *s, const void *bytes, int count, int64_t offset);
void frames_truncated(shared *s, int64_t size);

/* note.c */
/* Before a page goes from the WAL to the database: an SQLite result code. */
int note_checkpoint(aspen_file *f);
/* 0, or an errno value. */
int note_write(shared *s, const unsigned char *note);

/* deferral.c: what SQLite does, put off. SQLite result codes; whoever is told that it is not deferred
   does it himself. */
int deferral_write(aspen_file *f, const void *bytes, int count, int64_t offset, int *is_deferred);
int deferral_truncate(aspen_file *f, int64_t size, int *is_deferred);
int deferral_sync(aspen_file *f, int *is_deferred);
int deferral_note(shared *s, const unsigned char *note, int count, int *is_deferred);
/* 1: read; 0: what the file has is right; -1: neither. */
int deferral_read(aspen_file *f, void *out, int count, int64_t offset);
/* 1: this is the size; 0: that of the file is right. */
int deferral_size(aspen_file *f, int64_t *size);
/* Whether the WAL at `path` is there and not empty, once all is carried out; 0: ask the file. */
int deferral_has_bytes(const char *path);
/* Carries out what waits, and is gone. */
void deferral_end(shared *s);

/* observe.c */
extern atomic_int observers_present;
int observe_before(const aspen_vfs_event *event);
void observe_after(const aspen_vfs_event *event);
/* What the system does with the first sync of a new file: 0, or an errno value. */
int sync_directory_of(const char *path);
#ifdef ASPEN_TEST_BUILD
aspen_vfs_bug planted_bug(const char *path);
#endif

/* The disk is full: whether somebody has made room. */
int relieve(const char *path);

#endif
