/* Preloaded into a process, fails its k-th change of files below a folder, or kills the process in the midst of it.
 *
 *   FAULTS_UNDER  the folder; without it nothing is done
 *   FAULTS_LOG    a file that gets a line "NUMBER CALL PATH" for each change
 *   FAULTS_AT     k, counted from 1
 *   FAULTS_ERRNO  what the k-th gives; 0: the process is killed
 *   FAULTS_ON     if set, the ones after the k-th fail too
 *
 * A write that fails or is killed has written half of its bytes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long count;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void path_of_fd(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
}

static void path_at(int folder, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (name[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) base[0] = 0;
        } else {
            path_of_fd(folder, base);
        }
        strncat(base, "/", sizeof base - strlen(base) - 1);
    }
    if (snprintf(path, PATH_MAX, "%s%s", base, name) >= PATH_MAX) path[0] = 0;
}

/* Counts a change; 1 if it is to fail, with errno set. */
static int fails(const char *call, const char *path) {
    const char *under = getenv("FAULTS_UNDER"), *log = getenv("FAULTS_LOG"), *at = getenv("FAULTS_AT");
    size_t length = under ? strlen(under) : 0;
    if (!length || strncmp(path, under, length) || (path[length] != '/' && path[length])) return 0;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (log) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%ld %s %s\n", number, call, path);
        int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0666);
        syscall(SYS_write, fd, line, size);
        syscall(SYS_close, fd);
    }
    long wanted = at ? atol(at) : 0;
    if (!wanted || number < wanted || (number > wanted && !getenv("FAULTS_ON"))) return 0;
    const char *code = getenv("FAULTS_ERRNO");
    errno = code ? atoi(code) : EIO;
    return 1;
}

static int fail(void) {
    if (!errno) kill(getpid(), SIGKILL);
    return -1;
}

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

#define OPEN(name)                                                   \
    int name(const char *file, int flags, ...) {                     \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode_t mode = va_arg(rest, mode_t);                          \
        va_end(rest);                                                \
        char path[PATH_MAX];                                         \
        path_at(AT_FDCWD, file, path);                               \
        if (changes(flags) && fails("open", path)) return fail();    \
        return REAL(name)(file, flags, mode);                        \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                 \
    int name(int folder, const char *file, int flags, ...) {         \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode_t mode = va_arg(rest, mode_t);                          \
        va_end(rest);                                                \
        char path[PATH_MAX];                                         \
        path_at(folder, file, path);                                 \
        if (changes(flags) && fails("open", path)) return fail();    \
        return REAL(name)(folder, file, flags, mode);                \
    }
OPENAT(openat)
OPENAT(openat64)

#define ON_FD(type, name, call, half, parameters, ...)               \
    type name parameters {                                           \
        char path[PATH_MAX];                                         \
        path_of_fd(fd, path);                                        \
        if (fails(call, path)) {                                     \
            int code = errno;                                        \
            half;                                                    \
            errno = code;                                            \
            return fail();                                           \
        }                                                            \
        return REAL(name)(__VA_ARGS__);                              \
    }
ON_FD(ssize_t, write, "write", (void)!REAL(write)(fd, bytes, size / 2), (int fd, const void *bytes, size_t size), fd,
      bytes, size)
ON_FD(ssize_t, pwrite, "write", (void)!REAL(pwrite)(fd, bytes, size / 2, offset),
      (int fd, const void *bytes, size_t size, off_t offset), fd, bytes, size, offset)
ON_FD(ssize_t, pwrite64, "write", (void)!REAL(pwrite64)(fd, bytes, size / 2, offset),
      (int fd, const void *bytes, size_t size, off64_t offset), fd, bytes, size, offset)
ON_FD(ssize_t, writev, "write", (void)!REAL(writev)(fd, parts, parts_count / 2),
      (int fd, const struct iovec *parts, int parts_count), fd, parts, parts_count)
ON_FD(ssize_t, copy_file_range, "write", , (int from, off64_t *start, int fd, off64_t *offset, size_t size, unsigned flags),
      from, start, fd, offset, size, flags)
ssize_t sendfile(int, int, off_t *, size_t);
ssize_t sendfile64(int, int, off64_t *, size_t);
ON_FD(ssize_t, sendfile, "write", (void)!REAL(sendfile)(fd, from, offset, size / 2),
      (int fd, int from, off_t *offset, size_t size), fd, from, offset, size)
ON_FD(ssize_t, sendfile64, "write", (void)!REAL(sendfile64)(fd, from, offset, size / 2),
      (int fd, int from, off64_t *offset, size_t size), fd, from, offset, size)
ON_FD(int, ftruncate, "truncate", , (int fd, off_t size), fd, size)
ON_FD(int, ftruncate64, "truncate", , (int fd, off64_t size), fd, size)
ON_FD(int, fallocate, "truncate", , (int fd, int mode, off_t start, off_t size), fd, mode, start, size)
ON_FD(int, fsync, "fsync", , (int fd), fd)
ON_FD(int, fdatasync, "fsync", , (int fd), fd)

#define ON_NAME(name, call, folder, file, parameters, ...)           \
    int name parameters {                                            \
        char path[PATH_MAX];                                         \
        path_at(folder, file, path);                                 \
        if (fails(call, path)) return fail();                        \
        return REAL(name)(__VA_ARGS__);                              \
    }
int mkdir(const char *, mode_t);
int mkdirat(int, const char *, mode_t);
ON_NAME(rename, "rename", AT_FDCWD, to, (const char *from, const char *to), from, to)
ON_NAME(renameat, "rename", there, to, (int here, const char *from, int there, const char *to), here, from, there, to)
ON_NAME(renameat2, "rename", there, to, (int here, const char *from, int there, const char *to, unsigned flags), here,
        from, there, to, flags)
ON_NAME(mkdir, "mkdir", AT_FDCWD, name, (const char *name, mode_t mode), name, mode)
ON_NAME(mkdirat, "mkdir", folder, name, (int folder, const char *name, mode_t mode), folder, name, mode)
