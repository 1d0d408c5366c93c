/* Faults at chosen calls to the file system, put before the C library's by LD_PRELOAD.

   arm(fault, call, place): from now on calls under `place` are counted, and at number `call`
     'k'  the process is killed before it,
     'h'  the same, where it writes after half of what it writes,
     'e'  it fails with EIO,
     'f'  it and all later ones that need room fail with ENOSPC: the disk is full, and the first
          write is cut to half.
   counted(): the calls since then. Number 0 only counts.
   A process is armed from its start by FAULTS=FAULT:CALL:PLACE in its environment. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static volatile long calls, chosen;
static volatile char fault;
static char place[PATH_MAX];

void arm(char what, long call, const char *under) {
    snprintf(place, sizeof place, "%s", under);
    calls = 0;
    chosen = call;
    fault = what;
}

long counted(void) { return calls; }

__attribute__((constructor)) static void from_environment(void) {
    const char *given = getenv("FAULTS");
    char what, under[PATH_MAX];
    long call;
    if (given && sscanf(given, "%c:%ld:%4095[^\n]", &what, &call, under) == 3)
        arm(what, call, under);
}

static int below(const char *path) { return fault && path && strstr(path, place) != NULL; }

static int below_file(int file) {
    char link[64], path[PATH_MAX];
    if (!fault) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* Counts a call; nonzero, with errno set, if it is to fail. */
static int fails(int needs_room) {
    long now = __sync_add_and_fetch(&calls, 1);
    if (fault == 'f' && chosen && now >= chosen && needs_room) { errno = ENOSPC; return 1; }
    if (now != chosen) return 0;
    if (fault == 'k' || fault == 'h') kill(getpid(), SIGKILL);
    if (fault == 'e') { errno = EIO; return 1; }
    return 0;
}

/* How much of a write is still done. */
static size_t room(size_t size) {
    long now = __sync_add_and_fetch(&calls, 1);
    if (!chosen || now < chosen) return size;
    if (fault == 'f') return now == chosen ? size / 2 : 0;
    if (now > chosen) return size;
    if (fault == 'k') kill(getpid(), SIGKILL);
    return fault == 'h' ? size / 2 : 0;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define MODE(flags, mode) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list more; va_start(more, flags); \
        mode = va_arg(more, mode_t); va_end(more); }

#define OPEN(name) int name(const char *path, int flags, ...) { \
    MODE(flags, mode) REAL(name); \
    if (below(path) && fails(flags & O_CREAT)) return -1; \
    return real(path, flags, mode); }
OPEN(open)
OPEN(open64)

#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { \
    MODE(flags, mode) REAL(name); \
    if ((below(path) || (path[0] != '/' && below_file(folder))) && fails(flags & O_CREAT)) \
        return -1; \
    return real(folder, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)

#define WRITE(name, parameters, arguments) ssize_t name parameters { \
    REAL(name); \
    if (below_file(file)) { \
        size_t part = room(size); \
        int torn = part < size; \
        size = part; \
        ssize_t done = torn && !part ? -1 : real arguments; \
        if (torn && fault == 'h') kill(getpid(), SIGKILL); \
        if (torn && !part) errno = fault == 'f' ? ENOSPC : EIO; \
        return done; \
    } \
    return real arguments; }
WRITE(write, (int file, const void *data, size_t size), (file, data, size))
WRITE(pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
WRITE(pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    if (below_file(file) && fails(1)) return -1;
    return real(file, parts, count);
}

#define ON_FILE(name, parameters, arguments) int name parameters { \
    REAL(name); \
    if (below_file(file) && fails(0)) return -1; \
    return real arguments; }
ON_FILE(fsync, (int file), (file))
ON_FILE(fdatasync, (int file), (file))
ON_FILE(ftruncate, (int file, off_t size), (file, size))
ON_FILE(ftruncate64, (int file, off64_t size), (file, size))

#define ON_PATH(name, needs_room, parameters, arguments) int name parameters { \
    REAL(name); \
    if (below(path) && fails(needs_room)) return -1; \
    return real arguments; }
ON_PATH(mkdir, 1, (const char *path, mode_t mode), (path, mode))
ON_PATH(rmdir, 0, (const char *path), (path))
ON_PATH(unlink, 0, (const char *path), (path))
ON_PATH(chmod, 0, (const char *path, mode_t mode), (path, mode))
ON_PATH(rename, 0, (const char *path, const char *to), (path, to))
ON_PATH(link, 1, (const char *path, const char *to), (path, to))
ON_PATH(symlink, 1, (const char *to, const char *path), (to, path))

#define ON_ENTRY(name, needs_room, parameters, arguments) int name parameters { \
    REAL(name); \
    if ((below(path) || (path[0] != '/' && below_file(folder))) && fails(needs_room)) return -1; \
    return real arguments; }
ON_ENTRY(mkdirat, 1, (int folder, const char *path, mode_t mode), (folder, path, mode))
ON_ENTRY(unlinkat, 0, (int folder, const char *path, int flags), (folder, path, flags))
ON_ENTRY(renameat, 0, (int folder, const char *path, int other, const char *to),
         (folder, path, other, to))
ON_ENTRY(linkat, 1, (int folder, const char *path, int other, const char *to, int flags),
         (folder, path, other, to, flags))
