/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * "aspen": a VFS for SQLite over the system's own ("unix"), for databases in WAL mode that belong to
 * one process.
 *
 * - Every page of a database ends in an eight-byte checksum over its number and content, written
 *   and verified here. Pages read back from the WAL are verified against what was written (or, after
 *   a restart, against what SQLite's recovery accepted by the WAL's own checksums). A page that
 *   fails gives SQLITE_IOERR_DATA.
 * - How far a checkpoint may have got into the WAL is noted, durably, in a file beside it
 *   ("-checkpoint") before the first page goes to the database. A WAL that is sound only up to an
 *   earlier place, with a bit flipped behind it, would put older pages over the newer ones that
 *   were copied already: see aspen_vfs_wal_falls_short.
 * - The WAL index and all locks between connections live in this process's memory: no -shm file, no
 *   system call for a lock, and no stranger who can stall a writer by holding one. Other processes
 *   are kept out by one write lock on SQLite's lock bytes for as long as the database is open.
 * - What SQLite writes may be put off, so that whoever uses a connection does not wait for the disk:
 *   see aspen_vfs_defer.
 * - Whoever observes a path sees each write, sync, truncation, creation and removal below it, in
 *   order, and may make any of them fail.
 */
#ifndef ASPEN_VFS_H
#define ASPEN_VFS_H

#include <stdint.h>

#define ASPEN_VFS_NAME "aspen"
#define ASPEN_VFS_PAGE_BYTES 4096
#define ASPEN_VFS_RESERVED_BYTES 8

/* Registers the VFS (not as the default one) and returns an SQLite result code. May be called again
   and from any thread; call it before anything else of SQLite is used. */
int aspen_vfs_register(void);

/* The checksum that a page carries in its last eight bytes. */
uint64_t aspen_vfs_page_checksum(uint32_t page_number, const void *page);

typedef enum {
    ASPEN_VFS_READ = 0,
    ASPEN_VFS_WRITE = 1,
    ASPEN_VFS_SYNC = 2,
    ASPEN_VFS_TRUNCATE = 3,
    ASPEN_VFS_CREATE = 4,
    ASPEN_VFS_DELETE = 5,
    ASPEN_VFS_SYNC_DIRECTORY = 6,
    ASPEN_VFS_RENAME = 7,
    ASPEN_VFS_ALLOCATE = 8,
} aspen_vfs_event_kind;

typedef struct {
    aspen_vfs_event_kind kind;
    /* Absolute; of the directory for SYNC_DIRECTORY. */
    const char *path;
    /* RENAME only: the new path. */
    const char *to;
    /* READ, WRITE, ALLOCATE: where. TRUNCATE: the new size. */
    int64_t offset;
    /* WRITE only: what is written, checksums included. */
    const void *bytes;
    /* ALLOCATE: without bytes. */
    int64_t count;
} aspen_vfs_event;

/* Called from whatever thread carries the operation out, never at the same time from two. */
typedef struct {
    /* Before an operation; a value other than 0 (EIO, ENOSPC, …) makes it fail without being
       carried out. */
    int (*before)(void *context, const aspen_vfs_event *event);
    /* After an operation that succeeded; not for READ and ALLOCATE. */
    void (*after)(void *context, const aspen_vfs_event *event);
} aspen_vfs_observer;

#define ASPEN_VFS_OBSERVERS_MAX 64

/* Observes every path that begins with `prefix`, until `aspen_vfs_unobserve` with the number
   returned; -1 if there are too many observers. */
int aspen_vfs_observe(const char *prefix, aspen_vfs_observer observer, void *context);
/* After this returns the observer is not called any more. */
void aspen_vfs_unobserve(int number);

/* Bugs in the check of a page that is read from a database: for the simulator, which must notice. */
typedef enum {
    ASPEN_VFS_NO_BUG = 0,
    /* What is sound as some other page passes. */
    ASPEN_VFS_MISDIRECTED_PAGE_PASSES = 1,
    /* Everything passes. */
    ASPEN_VFS_TORN_PAGE_PASSES = 2,
} aspen_vfs_bug;

/* Plants a bug below the prefix of an observer, as long as that is there. In the test build only: in
   others there is no such function. */
void aspen_vfs_plant(int observer, aspen_vfs_bug bug);

/* When a write to a file whose path begins with `prefix` finds the disk full, `relieve` is called, on
   whatever thread writes; if it says that it has made room (1) the write is tried again. A number for
   `aspen_vfs_unrelieve`, or -1 if there are too many (as many as observers). */
int aspen_vfs_relieve(const char *prefix, int (*relieve)(void *context), void *context);
/* After this returns `relieve` is not called any more. Numbers below 0 are ignored. */
void aspen_vfs_unrelieve(int number);

/* Makes the file own the blocks of `count` bytes behind its end, so that writing there needs no space;
   its size stays, and to truncate it gives them back. Relieved like a write. 0; ENOSPC: there is no
   room for it; ENOENT: there is no file; anything else: the file system has no such call. */
int aspen_vfs_allocate(const char *path, uint64_t count);

/* fsync of a directory or a file, rename and unlink, seen by observers. 0, or an errno value. */
int aspen_vfs_sync_directory(const char *path);
int aspen_vfs_sync_file(const char *path);
/* Writes what the file holds over itself, then fsync: after a failed sync the kernel takes pages for
   clean that never reached the disk. 0 also if there is no such file. */
int aspen_vfs_rewrite_file(const char *path);
int aspen_vfs_rename(const char *from, const char *to);
int aspen_vfs_remove(const char *path);

/* Whether the WAL of the database at `path` (sqlite3_db_filename: links are resolved), which this
   process has just opened and read something from, is shorter than what was copied from it: 1 if it is, and database and WAL do not belong
   together any more; else 0. `*found` and `*copied` are the frames it has, and had. Ask before
   anything is written. */
int aspen_vfs_wal_falls_short(const char *path, uint32_t *found, uint32_t *copied);

/* What SQLite does to a database and its WAL may be put off: it goes into a queue and is carried out in
   that order, see deferral.c. What finds no room is tried again until there is some. Other errors of
   carrying out (errno values) make everything fail that comes later. All of these take the path as `sqlite3_db_filename` says it; where no database is open, or
   nothing is put off, there is nothing to wait for. */
typedef enum {
    ASPEN_VFS_DEFER_NOTHING = 0,
    /* A thread of its own carries it out. */
    ASPEN_VFS_DEFER_TO_THREAD = 1,
    /* `aspen_vfs_carry_out` does, or whoever has to wait for it: the same each time. */
    ASPEN_VFS_DEFER_BY_HAND = 2,
} aspen_vfs_deferral;

/* For the thread that writes. Before it is changed, what waits is carried out. The WAL must have been opened. 0, or an errno
   value: what of carrying out, or of beginning, has failed; ENOSPC: nothing is changed, for what waits
   has no room. */
int aspen_vfs_defer(const char *path, aspen_vfs_deferral mode);
/* A mark: how many operations have been put off so far. */
uint64_t aspen_vfs_deferred(const char *path);
/* Whether all before the mark has been carried out. `waits`: in place of the mark, everything, and waits for it
   as long as there is room. `failure`: 0, or an errno value. */
int aspen_vfs_await(const char *path, uint64_t mark, int waits, int *failure);
/* BY_HAND: carries out the next `count` operations, if there are so many, and room. 0, or an errno value. */
int aspen_vfs_carry_out(const char *path, uint32_t count);

/* An open file without a name in `directory`, or minus an errno value. Not seen by observers: it is
   gone with the process. */
int aspen_vfs_unnamed_file(const char *directory);

/* Has the kernel begin to write these bytes of a file to the disk, and waits
   for those before `offset` that it was told of earlier, at most `behind` bytes. No durability: what
   would otherwise pile up in memory, and then stall every sync of the disk, goes out bit by bit. */
void aspen_vfs_write_behind(int descriptor, uint64_t offset, uint64_t count, uint64_t behind);

/* The same for a whole file that grows anywhere: waits for what it began with when last called. */
void aspen_vfs_write_behind_all(int descriptor);

/* These bytes of an unnamed file will not be read again: the file system may have their blocks, if it
   can take them. A file that is given back as a whole when it is closed costs whoever closes it 0.3 ms
   a MB. */
void aspen_vfs_discard(int descriptor, uint64_t offset, uint64_t count);

#endif
