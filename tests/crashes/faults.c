/* Counts what this process changes under one folder, and at the n-th change fails or kills it.
 *
 * Preloaded (LD_PRELOAD) it stands before the C library, so that Python's, torch's and Rust's calls are all seen.
 * A write at which something happens has put half of its bytes on the disk.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FAIL_ONCE, FAIL_FROM };
enum { CREATE = 1, WRITE = 2, SYNC = 4, NAME = 8, REMOVE = 16 };

static char prefix[4096];
static atomic_long count;
static long nth;
static int mode, code, kinds, log_fd = -1;

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

static ssize_t real_write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return real(fd, data, size);
}

/* Arm: changes under `folder` of the kinds in `which` count from 1; `log` is a descriptor or -1. */
void faults_arm(const char *folder, long number, int what, int error, int which, int log) {
    snprintf(prefix, sizeof prefix, "%s", folder);
    count = 0;
    nth = number;
    mode = what;
    code = error;
    kinds = which;
    log_fd = log;
}

static int is_inside(const char *path) {
    size_t length = strlen(prefix);
    return length && strncmp(path, prefix, length) == 0 && (path[length] == '/' || !path[length]);
}

/* Of a path that is inside: what follows the folder. */
static const char *rest_of(const char *path) {
    path += strlen(prefix);
    return *path ? path + 1 : path;
}

static void whole_path(int folder, const char *path, char *out, size_t size) {
    char base[3000] = "", link[64];
    if (path[0] == '/') {
        snprintf(out, size, "%s", path);
        return;
    }
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) base[0] = 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, sizeof base - 1);
        base[length > 0 ? length : 0] = 0;
    }
    snprintf(out, size, "%s/%s", base, path);
}

static void path_of(int fd, char *out, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, size - 1);
    out[length > 0 ? length : 0] = 0;
}

/* 0: go on; otherwise the errno that the call has to fail with. Kills by itself. */
static int meets(int kind, const char *name, const char *path, int fd, const void *data, size_t size) {
    if (!is_inside(path) || !(kinds & kind)) return 0;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (log_fd >= 0) {
        char line[4300];
        int length = snprintf(line, sizeof line, "%s %s\n", name, rest_of(path));
        real_write(log_fd, line, length);
    }
    if (mode == COUNT || number < nth || (mode != FAIL_FROM && number > nth)) return 0;
    if (kind == WRITE && fd >= 0 && size > 1) real_write(fd, data, size / 2);
    if (mode == KILL) kill(getpid(), SIGKILL);
    return code;
}

#define MEET(kind, name, path, fd, data, size, result) \
    do { \
        int error = meets(kind, name, path, fd, data, size); \
        if (error) { errno = error; return result; } \
    } while (0)

static int opens(int folder, const char *path, int flags) {
    char whole[4096];
    if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT)) return 0;
    if ((flags & O_TMPFILE) == O_TMPFILE) return 0;
    whole_path(folder, path, whole, sizeof whole);
    return meets(CREATE, "open", whole, -1, NULL, 0);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, mode_t); va_end(rest); \
        int error = opens(AT_FDCWD, path, flags); \
        if (error) { errno = error; return -1; } \
        REAL(int, #name, const char *, int, ...); \
        return real(path, flags, bits); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, mode_t); va_end(rest); \
        int error = opens(folder, path, flags); \
        if (error) { errno = error; return -1; } \
        REAL(int, #name, int, const char *, int, ...); \
        return real(folder, path, flags, bits); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *how) { \
        int error = strpbrk(how, "wa+") ? opens(AT_FDCWD, path, O_WRONLY | O_CREAT) : 0; \
        if (error) { errno = error; return NULL; } \
        REAL(FILE *, #name, const char *, const char *); \
        return real(path, how); \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
    char path[4096];
    if (prefix[0]) {
        path_of(fd, path, sizeof path);
        MEET(WRITE, "write", path, fd, data, size, -1);
    }
    return real_write(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int number) {
    char path[4096];
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (prefix[0]) {
        path_of(fd, path, sizeof path);
        MEET(WRITE, "write", path, fd, parts[0].iov_base, parts[0].iov_len, -1);
    }
    return real(fd, parts, number);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    char path[4096];
    REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
    path_of(out, path, sizeof path);
    MEET(WRITE, "write", path, -1, NULL, 0, -1);
    return real(out, in, offset, size);
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t size) { return sendfile(out, in, offset, size); }

#define ON_FILE(name, kind, ...) \
    char path[4096]; \
    REAL(int, #name, __VA_ARGS__); \
    path_of(fd, path, sizeof path); \
    MEET(kind, #name, path, -1, NULL, 0, -1)

int fsync(int fd) { ON_FILE(fsync, SYNC, int); return real(fd); }
int fdatasync(int fd) { ON_FILE(fdatasync, SYNC, int); return real(fd); }
int ftruncate(int fd, off_t size) { ON_FILE(ftruncate, WRITE, int, off_t); return real(fd, size); }
int ftruncate64(int fd, off_t size) { ON_FILE(ftruncate64, WRITE, int, off_t); return real(fd, size); }

#define AT_PATH(name, kind, folder, path, ...) \
    char whole[4096]; \
    REAL(int, #name, __VA_ARGS__); \
    whole_path(folder, path, whole, sizeof whole); \
    MEET(kind, #name, whole, -1, NULL, 0, -1)

int mkdir(const char *path, mode_t bits) {
    AT_PATH(mkdir, CREATE, AT_FDCWD, path, const char *, mode_t);
    return real(path, bits);
}
int unlink(const char *path) { AT_PATH(unlink, REMOVE, AT_FDCWD, path, const char *); return real(path); }
int rmdir(const char *path) { AT_PATH(rmdir, REMOVE, AT_FDCWD, path, const char *); return real(path); }
int unlinkat(int folder, const char *path, int flags) {
    AT_PATH(unlinkat, REMOVE, folder, path, int, const char *, int);
    return real(folder, path, flags);
}

static int renames(const char *from, const char *to) {
    char whole[4096], both[8300], target[4096];
    whole_path(AT_FDCWD, from, whole, sizeof whole);
    whole_path(AT_FDCWD, to, target, sizeof target);
    snprintf(both, sizeof both, "%s -> %s", whole, is_inside(target) ? rest_of(target) : target);
    return meets(NAME, "rename", both, -1, NULL, 0);
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    int error = renames(from, to);
    if (error) { errno = error; return -1; }
    return real(from, to);
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    int error = renames(from, to);
    if (error) { errno = error; return -1; }
    return real(from, to);
}
