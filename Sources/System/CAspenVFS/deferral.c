/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Deferred writing: what SQLite does to a database and its WAL (writes, syncs, truncations, the note
 * before a checkpoint) is put into a queue and carried out later, one after the other, in exactly that
 * order. SQLite sees it done: reads find what waits, sizes are those that will be.
 *
 * At any moment the files are what they would be had SQLite come no further than to where the queue has
 * been carried out, so that whatever SQLite promises about a crash still holds of an earlier moment.
 * What is lost is the moment at which something is durable: that is asked for by a mark. Whoever turns
 * this on keeps another copy of what he has not seen pass its mark (here: the log).
 *
 * What finds no room waits until there is some: it is tried again and again, and what may wait is
 * bounded as always. After any other failure nothing is carried out any more: the files stay what they
 * were at that moment, and all further writing fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "vfs_internal.h"

/* Bytes that may wait; then whoever writes waits as well. */
#define WAITING_BYTES_MAX (16 << 20)
/* Writes beside each other that go to the system in one call. */
#define RUN_MAX 64
/* Milliseconds after which what found no room is tried again. */
#define RETRY_MILLISECONDS 50
/* Seconds without anything to do, after which the memory is given back. */
#define IDLE_SECONDS 1
#define SLAB_BUFFERS 128
#define BUCKETS 4096

enum { FILES = 2, OF_DATABASE = 0, OF_WAL = 1 };

typedef struct buffer {
    union {
        struct buffer *next_free;
        unsigned char bytes[FRAME_BYTES];
    };
} buffer;

typedef struct slab {
    struct slab *next;
    buffer buffers[SLAB_BUFFERS];
} slab;

typedef enum { OP_WRITE, OP_SYNC, OP_TRUNCATE, OP_NOTE } op_kind;

typedef struct op {
    struct op *next;
    /* Counted from 1. */
    uint64_t number;
    op_kind kind;
    int file;
    /* WRITE: where; TRUNCATE: the new size. */
    int64_t offset;
    int count;
    /* SYNC: the name of the file, too. */
    int syncs_directory;
    buffer *buffer;
    /* WRITE: the unit that it touches, and the next one in its bucket. */
    int64_t unit;
    struct op *next_in_bucket;
} op;

struct deferral {
    shared *shared;
    aspen_vfs_deferral mode;
    pthread_t thread;
    /* Held for everything below. */
    pthread_mutex_t mutex;
    /* There is something to do, or to end. */
    pthread_cond_t begun;
    /* Something was carried out, or has failed. */
    pthread_cond_t done;
    int is_ending;
    /* BY_HAND: somebody carries out an operation now. */
    int is_in_hand;
    /* An errno value. */
    int failure;
    /* The first operation has found no room when it was tried last. */
    int is_full;
    op *first, *last, *free_ops;
    /* Operations that were put into the queue, that were carried out, and that are given to the system
       now at the latest. */
    uint64_t queued, carried_out, busy;
    int64_t waiting_bytes;
    /* The newest write first. */
    op *buckets[BUCKETS];
    slab *slabs;
    buffer *free_buffers;
    /* What the files will be. */
    int64_t sizes[FILES];
    char *paths[FILES];
    int descriptors[FILES];
};

/* ---- Memory ---- */

static buffer *take_buffer(deferral *d) {
    if (!d->free_buffers) {
        slab *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (s == MAP_FAILED) return NULL;
        s->next = d->slabs;
        d->slabs = s;
        for (int i = SLAB_BUFFERS - 1; i >= 0; i--) {
            s->buffers[i].next_free = d->free_buffers;
            d->free_buffers = &s->buffers[i];
        }
    }
    buffer *b = d->free_buffers;
    d->free_buffers = b->next_free;
    return b;
}

static op *take_op(deferral *d) {
    op *o = d->free_ops;
    if (o) d->free_ops = o->next;
    else o = malloc(sizeof *o);
    if (o) memset(o, 0, sizeof *o);
    return o;
}

/* Nothing waits. */
static void give_memory_back(deferral *d) {
    while (d->slabs) {
        slab *s = d->slabs;
        d->slabs = s->next;
        munmap(s, sizeof *s);
    }
    d->free_buffers = NULL;
    while (d->free_ops) {
        op *o = d->free_ops;
        d->free_ops = o->next;
        free(o);
    }
}

/* ---- What waits, by place ---- */

/* A page of the database, a frame of the WAL or, as -1, its header. */
static int64_t unit_of(int file, int64_t offset) {
    if (file == OF_DATABASE) return offset / ASPEN_VFS_PAGE_BYTES;
    return offset < WAL_HEADER_BYTES ? -1 : (offset - WAL_HEADER_BYTES) / FRAME_BYTES;
}

static op **bucket_of(deferral *d, int file, int64_t unit) {
    return &d->buckets[((uint64_t)unit * 2 + (uint64_t)file) % BUCKETS];
}

typedef enum { NOTHING_WAITS, ONE_HAS_IT, SEVERAL_HAVE_IT } finding;

/* Who of those that wait has these bytes of a unit: the newest that touches any of them, if it has all. */
static finding find(deferral *d, int file, int64_t unit, int64_t offset, int count, op **found) {
    op *o = *bucket_of(d, file, unit);
    for (; o; o = o->next_in_bucket) {
        if (o->file != file || o->unit != unit) continue;
        if (offset + count <= o->offset || o->offset + o->count <= offset) continue;
        *found = o;
        int has_all = o->offset <= offset && offset + count <= o->offset + o->count;
        return has_all ? ONE_HAS_IT : SEVERAL_HAVE_IT;
    }
    return NOTHING_WAITS;
}

static void forget(deferral *d, op *o) {
    op **place = bucket_of(d, o->file, o->unit);
    while (*place != o) place = &(*place)->next_in_bucket;
    *place = o->next_in_bucket;
}

/* ---- Carrying out ---- */

static int descriptor_of(deferral *d, int file) {
    if (d->descriptors[file] < 0) d->descriptors[file] = open(d->paths[file], O_RDWR | O_CLOEXEC);
    return d->descriptors[file];
}

static int observed(deferral *d, const op *o, aspen_vfs_event_kind kind, aspen_vfs_event *event) {
    *event = (aspen_vfs_event){
        .kind = kind, .path = d->paths[o->file], .offset = o->offset,
        .bytes = o->buffer ? o->buffer->bytes : NULL, .count = o->count};
    return observe_before(event);
}

/* `run` writes that lie beside each other, from `o` on. */
static int carry_out_writes(deferral *d, op *o, int run) {
    struct iovec pieces[RUN_MAX];
    int64_t left = 0, at = o->offset;
    op *piece = o;
    for (int i = 0; i < run; i++) {
        pieces[i] = (struct iovec){piece->buffer->bytes, (size_t)piece->count};
        left += piece->count;
        /* What follows the last one of them is not ours to look at. */
        if (i + 1 < run) piece = piece->next;
    }
    struct iovec *first = pieces;
    int descriptor = descriptor_of(d, o->file);
    if (descriptor < 0) return errno;
    while (left > 0) {
        ssize_t written = pwritev(descriptor, first, run, at);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0 && (errno == ENOSPC || errno == EDQUOT) && relieve(d->paths[o->file]))
            continue;
        if (written <= 0) return written < 0 ? errno : EIO;
        left -= written;
        at += written;
        while (run > 0 && (size_t)written >= first->iov_len) {
            written -= (ssize_t)first->iov_len;
            first++;
            run--;
        }
        if (run > 0) {
            first->iov_base = (char *)first->iov_base + written;
            first->iov_len -= (size_t)written;
        }
    }
    return 0;
}

static int carry_out_write(deferral *d, op *o) {
    aspen_vfs_event event;
    int failure;
    do failure = observed(d, o, ASPEN_VFS_WRITE, &event);
    while (failure == ENOSPC && relieve(d->paths[o->file]));
    if (!failure) failure = carry_out_writes(d, o, 1);
    if (!failure) observe_after(&event);
    return failure;
}

/* A sync or a truncation. */
static int carry_out_call(deferral *d, op *o) {
    int is_sync = o->kind == OP_SYNC;
    aspen_vfs_event event;
    int failure = observed(d, o, is_sync ? ASPEN_VFS_SYNC : ASPEN_VFS_TRUNCATE, &event);
    if (failure) return failure;
    int descriptor = descriptor_of(d, o->file);
    if (descriptor < 0) return errno;
    if ((is_sync ? fdatasync(descriptor) : ftruncate(descriptor, o->offset)) != 0) return errno;
    observe_after(&event);
    return o->syncs_directory ? sync_directory_of(d->paths[o->file]) : 0;
}

static int carry_out_one(deferral *d, op *o) {
    switch (o->kind) {
    case OP_WRITE: return carry_out_write(d, o);
    case OP_SYNC:
    case OP_TRUNCATE: return carry_out_call(d, o);
    case OP_NOTE: return note_write(d->shared, o->buffer->bytes);
    }
    return EINVAL;
}

/* How many operations from the first one on go to the system in one call. */
static int run_length(const deferral *d) {
    const op *o = d->first;
    int run = 1;
    /* Whoever observes wants to see each, and whoever counts them means each. */
    if (d->mode == ASPEN_VFS_DEFER_BY_HAND) return 1;
    if (atomic_load_explicit(&observers_present, memory_order_relaxed)) return 1;
    for (; o->kind == OP_WRITE && run < RUN_MAX; o = o->next, run++) {
        const op *next = o->next;
        if (!next || next->kind != OP_WRITE || next->file != o->file) break;
        if (next->offset != o->offset + o->count) break;
        /* It may still be added to. */
        if (next == d->last && next->count < ASPEN_VFS_PAGE_BYTES) break;
    }
    return run;
}

static void drop_first(deferral *d) {
    op *o = d->first;
    d->first = o->next;
    if (!d->first) d->last = NULL;
    if (o->kind == OP_WRITE) forget(d, o);
    if (o->buffer) {
        o->buffer->next_free = d->free_buffers;
        d->free_buffers = o->buffer;
        d->waiting_bytes -= FRAME_BYTES;
    }
    o->next = d->free_ops;
    d->free_ops = o;
}

/* What of it was done before there was no room is done again. But a sync that has failed, for whatever
   reason, is not believed a second time: the kernel may have forgotten what it could not write. */
static int finds_no_room(const op *o, int failure) {
    return o->kind != OP_SYNC && (failure == ENOSPC || failure == EDQUOT);
}

/* The first operation of the queue, and those beside it; with the mutex held, but not meanwhile. */
static void carry_out_first(deferral *d) {
    int run = run_length(d);
    op *first = d->first;
    d->busy = d->carried_out + (uint64_t)run;
    pthread_mutex_unlock(&d->mutex);
    int failure = run > 1 ? carry_out_writes(d, first, run) : carry_out_one(d, first);
    pthread_mutex_lock(&d->mutex);
    d->is_full = finds_no_room(first, failure);
    if (failure) {
        if (!d->is_full) d->failure = failure;
    } else {
        for (int i = 0; i < run; i++) drop_first(d);
        d->carried_out += (uint64_t)run;
    }
    pthread_cond_broadcast(&d->done);
}

static int wait_for_begun(deferral *d, int64_t milliseconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t nanoseconds = until.tv_nsec + milliseconds % 1000 * 1000000;
    until.tv_sec += milliseconds / 1000 + nanoseconds / 1000000000;
    until.tv_nsec = nanoseconds % 1000000000;
    return pthread_cond_timedwait(&d->begun, &d->mutex, &until);
}

static void *carry_out_all(void *context) {
    deferral *d = context;
    pthread_mutex_lock(&d->mutex);
    while (!d->is_ending) {
        if (d->first && !d->failure) {
            carry_out_first(d);
            if (d->is_full && !d->is_ending) wait_for_begun(d, RETRY_MILLISECONDS);
        } else if (!d->slabs || d->failure) {
            pthread_cond_wait(&d->begun, &d->mutex);
        } else if (wait_for_begun(d, IDLE_SECONDS * 1000) == ETIMEDOUT && !d->first) {
            give_memory_back(d);
        }
    }
    pthread_mutex_unlock(&d->mutex);
    return NULL;
}

/* Waits for whoever carries out operations, or does it, BY_HAND. With the mutex. */
static void wait_for_some(deferral *d) {
    if (d->mode != ASPEN_VFS_DEFER_BY_HAND || d->is_in_hand) {
        pthread_cond_wait(&d->done, &d->mutex);
    } else {
        d->is_in_hand = 1;
        carry_out_first(d);
        d->is_in_hand = 0;
    }
}

/* Until all that was put into the queue has been carried out, or something has failed or, when it was
   tried again, still has no room. With the mutex. What has become of it, as an errno value. */
static int wait_until_done(deferral *d) {
    uint64_t last = d->queued;
    while (d->carried_out < last && !d->failure) {
        wait_for_some(d);
        if (d->is_full) return ENOSPC;
    }
    return d->failure;
}

/* ---- What SQLite calls for ---- */

static int result_of(int failure, int code) {
    if (!failure) return SQLITE_OK;
    return failure == ENOSPC || failure == EDQUOT ? SQLITE_FULL : code;
}

/* With the mutex held; whoever is not deferred does it himself. */
static deferral *entered(shared *s) {
    deferral *d = s ? atomic_load_explicit(&s->deferral, memory_order_acquire) : NULL;
    if (!d) return NULL;
    pthread_mutex_lock(&d->mutex);
    if (d->mode != ASPEN_VFS_DEFER_NOTHING) return d;
    pthread_mutex_unlock(&d->mutex);
    return NULL;
}

static int leave(deferral *d, int result) {
    pthread_mutex_unlock(&d->mutex);
    return result;
}

static int file_of(const aspen_file *f) { return f->kind == FILE_WAL ? OF_WAL : OF_DATABASE; }

/* A new operation at the end of the queue; NULL if there is no memory. */
static op *add(deferral *d, op_kind kind, int file, const void *bytes, int count) {
    op *o = take_op(d);
    if (!o) return NULL;
    if (bytes) {
        o->buffer = take_buffer(d);
        if (!o->buffer) {
            o->next = d->free_ops;
            d->free_ops = o;
            return NULL;
        }
        memcpy(o->buffer->bytes, bytes, (size_t)count);
        d->waiting_bytes += FRAME_BYTES;
    }
    o->kind = kind;
    o->file = file;
    o->count = count;
    o->number = ++d->queued;
    if (d->last) d->last->next = o;
    else d->first = o;
    if (d->first == o) pthread_cond_signal(&d->begun);
    d->last = o;
    return o;
}

/* The header of a frame and its page come one after the other, and go together. */
static int add_to_last(
    deferral *d, int file, const void *bytes, int count, int64_t offset, int64_t unit) {
    op *o = d->last;
    if (!o || o->kind != OP_WRITE || o->file != file || o->unit != unit) return 0;
    if (o->number <= d->busy || o->offset + o->count != offset) return 0;
    if (o->count + count > FRAME_BYTES) return 0;
    memcpy(o->buffer->bytes + o->count, bytes, (size_t)count);
    o->count += count;
    return 1;
}

int deferral_write(
    aspen_file *f, const void *bytes, int count, int64_t offset, int *is_deferred) {
    deferral *d = entered(f->shared);
    *is_deferred = d != NULL;
    if (!d) return SQLITE_OK;
    int file = file_of(f);
    int64_t unit = unit_of(file, offset);
    /* Nothing that SQLite does: it would have to be found again. */
    if (count > FRAME_BYTES || unit_of(file, offset + count - 1) != unit)
        return leave(d, SQLITE_IOERR_WRITE);
    while (d->waiting_bytes >= WAITING_BYTES_MAX && !d->failure) {
        wait_for_some(d);
        if (d->is_full) return leave(d, SQLITE_FULL);
    }
    if (d->failure) return leave(d, result_of(d->failure, SQLITE_IOERR_WRITE));
    if (!add_to_last(d, file, bytes, count, offset, unit)) {
        op *o = add(d, OP_WRITE, file, bytes, count);
        if (!o) return leave(d, SQLITE_IOERR_NOMEM);
        o->offset = offset;
        o->unit = unit;
        op **bucket = bucket_of(d, file, unit);
        o->next_in_bucket = *bucket;
        *bucket = o;
    }
    if (offset + count > d->sizes[file]) d->sizes[file] = offset + count;
    return leave(d, SQLITE_OK);
}

int deferral_read(aspen_file *f, void *out, int count, int64_t offset) {
    deferral *d = entered(f->shared);
    if (!d) return 0;
    /* What waits may never get to the file. */
    if (d->failure) return leave(d, -1);
    int file = file_of(f);
    int64_t unit = unit_of(file, offset);
    op *o = NULL;
    finding found = unit_of(file, offset + count - 1) == unit
        ? find(d, file, unit, offset, count, &o) : SEVERAL_HAVE_IT;
    if (found == ONE_HAS_IT) memcpy(out, o->buffer->bytes + (offset - o->offset), (size_t)count);
    int failure = found == SEVERAL_HAVE_IT ? wait_until_done(d) : 0;
    return leave(d, failure ? -1 : found == ONE_HAS_IT);
}

int deferral_truncate(aspen_file *f, int64_t size, int *is_deferred) {
    deferral *d = entered(f->shared);
    *is_deferred = d != NULL;
    if (!d) return SQLITE_OK;
    if (d->failure) return leave(d, SQLITE_IOERR_TRUNCATE);
    op *o = add(d, OP_TRUNCATE, file_of(f), NULL, 0);
    if (!o) return leave(d, SQLITE_IOERR_NOMEM);
    o->offset = size;
    d->sizes[o->file] = size;
    return leave(d, SQLITE_OK);
}

int deferral_sync(aspen_file *f, int *is_deferred) {
    deferral *d = entered(f->shared);
    *is_deferred = d != NULL;
    if (!d) return SQLITE_OK;
    if (d->failure) return leave(d, SQLITE_IOERR_FSYNC);
    op *o = add(d, OP_SYNC, file_of(f), NULL, 0);
    if (!o) return leave(d, SQLITE_IOERR_NOMEM);
    o->syncs_directory = f->syncs_directory;
    return leave(d, SQLITE_OK);
}

int deferral_note(shared *s, const unsigned char *note, int count, int *is_deferred) {
    deferral *d = entered(s);
    *is_deferred = d != NULL;
    if (!d) return SQLITE_OK;
    if (d->failure) return leave(d, result_of(d->failure, SQLITE_IOERR_WRITE));
    return leave(d, add(d, OP_NOTE, OF_WAL, note, count) ? SQLITE_OK : SQLITE_IOERR_NOMEM);
}

int deferral_size(aspen_file *f, int64_t *size) {
    deferral *d = entered(f->shared);
    if (!d) return 0;
    *size = d->sizes[file_of(f)];
    return leave(d, 1);
}

int deferral_has_bytes(const char *path) {
    size_t length = strlen(path);
    if (length <= 4 || strcmp(path + length - 4, "-wal") != 0) return 0;
    char *database = strndup(path, length - 4);
    shared *s = database ? shared_find(database) : NULL;
    free(database);
    deferral *d = entered(s);
    int has_bytes = d ? leave(d, d->sizes[OF_WAL] > 0) : 0;
    if (s) shared_release(s);
    return has_bytes;
}

/* ---- Turning it on and off ---- */

static deferral *make(shared *s) {
    deferral *d = calloc(1, sizeof *d);
    if (!d) return NULL;
    size_t length = strlen(s->path);
    d->shared = s;
    d->descriptors[OF_DATABASE] = d->descriptors[OF_WAL] = -1;
    d->paths[OF_DATABASE] = strdup(s->path);
    d->paths[OF_WAL] = malloc(length + 5);
    if (!d->paths[OF_DATABASE] || !d->paths[OF_WAL]) {
        free(d->paths[OF_DATABASE]);
        free(d->paths[OF_WAL]);
        free(d);
        return NULL;
    }
    memcpy(d->paths[OF_WAL], s->path, length);
    memcpy(d->paths[OF_WAL] + length, "-wal", 5);
    pthread_mutex_init(&d->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&d->begun, &attributes);
    pthread_cond_init(&d->done, NULL);
    pthread_condattr_destroy(&attributes);
    return d;
}

static int start_thread(deferral *d) {
    sigset_t all, before;
    sigfillset(&all);
    /* Signals are for those who wait for them. */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&d->thread, NULL, carry_out_all, d);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failure) pthread_setname_np(d->thread, "state-disk");
    return failure;
}

static int start(deferral *d, aspen_vfs_deferral mode) {
    struct stat status;
    for (int file = 0; file < FILES; file++) {
        int descriptor = descriptor_of(d, file);
        if (descriptor < 0 || fstat(descriptor, &status) != 0) return errno;
        d->sizes[file] = status.st_size;
    }
    d->is_ending = 0;
    d->mode = mode;
    int failure = mode == ASPEN_VFS_DEFER_TO_THREAD ? start_thread(d) : 0;
    if (failure) d->mode = ASPEN_VFS_DEFER_NOTHING;
    return failure;
}

/* With the mutex held and nothing to wait for but, where somebody closes the database, what has found no
   room: that is gone then, with what waited behind it, as after a failure. */
static void stop(deferral *d) {
    aspen_vfs_deferral mode = d->mode;
    d->is_ending = 1;
    pthread_cond_signal(&d->begun);
    if (mode == ASPEN_VFS_DEFER_TO_THREAD) {
        pthread_mutex_unlock(&d->mutex);
        pthread_join(d->thread, NULL);
        pthread_mutex_lock(&d->mutex);
    }
    while (d->first) drop_first(d);
    d->is_full = 0;
    give_memory_back(d);
    for (int file = 0; file < FILES; file++) {
        if (d->descriptors[file] >= 0) close(d->descriptors[file]);
        d->descriptors[file] = -1;
    }
    /* Who fails goes on failing: SQLite takes for done what was not. */
    if (!d->failure) d->mode = ASPEN_VFS_DEFER_NOTHING;
    else d->mode = ASPEN_VFS_DEFER_BY_HAND;
}

void deferral_end(shared *s) {
    deferral *d = atomic_load(&s->deferral);
    if (!d) return;
    pthread_mutex_lock(&d->mutex);
    if (d->mode != ASPEN_VFS_DEFER_NOTHING) {
        wait_until_done(d);
        stop(d);
    }
    pthread_mutex_unlock(&d->mutex);
    pthread_mutex_destroy(&d->mutex);
    pthread_cond_destroy(&d->begun);
    pthread_cond_destroy(&d->done);
    for (int file = 0; file < FILES; file++) free(d->paths[file]);
    free(d);
    atomic_store(&s->deferral, NULL);
}

int aspen_vfs_defer(const char *path, aspen_vfs_deferral mode) {
    shared *s = shared_find(path);
    if (!s) return ENOENT;
    deferral *d = atomic_load(&s->deferral);
    int failure = 0;
    if (!d && mode != ASPEN_VFS_DEFER_NOTHING) {
        d = make(s);
        if (d) atomic_store_explicit(&s->deferral, d, memory_order_release);
        else failure = ENOMEM;
    }
    if (d) {
        pthread_mutex_lock(&d->mutex);
        failure = d->failure;
        if (!failure && d->mode != ASPEN_VFS_DEFER_NOTHING && mode != d->mode) {
            failure = wait_until_done(d);
            if (!failure) stop(d);
        }
        if (!failure && mode != d->mode) failure = start(d, mode);
        pthread_mutex_unlock(&d->mutex);
    }
    shared_release(s);
    return failure;
}

uint64_t aspen_vfs_deferred(const char *path) {
    shared *s = shared_find(path);
    deferral *d = entered(s);
    uint64_t mark = d ? d->queued : 0;
    if (d) pthread_mutex_unlock(&d->mutex);
    if (s) shared_release(s);
    return mark;
}

int aspen_vfs_await(const char *path, uint64_t mark, int waits, int *failure) {
    shared *s = shared_find(path);
    deferral *d = entered(s);
    int is_reached = 1;
    *failure = 0;
    if (d) {
        if (waits) {
            mark = d->queued;
            wait_until_done(d);
        }
        is_reached = d->carried_out >= mark;
        *failure = d->failure;
        pthread_mutex_unlock(&d->mutex);
    }
    if (s) shared_release(s);
    return is_reached;
}

int aspen_vfs_carry_out(const char *path, uint32_t count) {
    shared *s = shared_find(path);
    deferral *d = entered(s);
    int failure = 0;
    if (d) {
        uint64_t last = d->carried_out + count;
        if (last > d->queued) last = d->queued;
        while (d->mode == ASPEN_VFS_DEFER_BY_HAND && d->carried_out < last && !d->failure) {
            wait_for_some(d);
            if (d->is_full) break;
        }
        failure = d->failure;
        pthread_mutex_unlock(&d->mutex);
    }
    if (s) shared_release(s);
    return failure;
}
