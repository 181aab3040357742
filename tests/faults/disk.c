/* A disk that fails, forgets or tells: loaded into the server with LD_PRELOAD (see shim.rs), it stands between the program
 * and the kernel for every call that changes a file below one folder. No root and no file system of its own are needed,
 * so every test machine can have a disk whose 17th write fails.
 *
 * Environment:
 *
 * - ONCELOG_DISK_ROOT=FOLDER: only files below it are meant. It must exist.
 * - ONCELOG_DISK_NOSYNC=1: a sync does nothing and says that it did.
 * - ONCELOG_DISK_FAIL=RULE[,RULE...]: the calls of a kind are counted from the start of the process, and some fail:
 *   "write:17:EIO" the 17th, "write:17+:ENOSPC" that and all later ones, "write:17x40:ENOSPC" 40 from there.
 *   As Linux does since 4.16, a failed sync of a file is told once to each descriptor that was open for it by then.
 *   Kinds: write, shortwrite (its first half is written all the same), sync (of folders, too), read, size (a file is cut
 *   or extended), name (a file or folder is made, renamed or removed). The error 0 with shortwrite: no error, but only
 *   the first half is written, and the result says so.
 * - ONCELOG_DISK_RECORD=FILE (outside of the folder): each change and each sync is appended as a record. One lock is held
 *   over the call and its record, so the order of the records is the order of what happened.
 *
 * SQLite's -shm file is a memory map that never has to survive anything. It can fail, but it is not recorded.
 *
 * The calls are made as system calls, so nothing has to be looked up behind this library. Calls that would copy between
 * files inside the kernel fail below the folder, so that the program falls back to writes. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { WRITE, SYNC, READ, SIZE, NAME, KINDS };

static const char *const kind_names[KINDS] = {"write", "sync", "read", "size", "name"};

struct rule {
    enum kind kind;
    /* The first half of the data is written. */
    bool half;
    unsigned long first, last;
    int error;
    const char *error_name;
};

enum { MAX_RULES = 8 };

static struct rule rules[MAX_RULES];
static int rule_count;
static unsigned long calls[KINDS];
static char root[PATH_MAX];
static size_t root_length;
static bool without_syncs;
static int record_file = -1;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

/* ---- the environment ---- */

static void refuse(const char *name, const char *value) {
    dprintf(2, "disk: %s=%s is not understood\n", name, value);
    _exit(3);
}

static bool parse_error(const char *name, struct rule *rule) {
    static const struct {
        const char *name;
        int error;
    } known[] = {{"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"EROFS", EROFS}, {"0", 0}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0) {
            rule->error = known[i].error;
            rule->error_name = known[i].name;
            return true;
        }
    return false;
}

static bool parse_rule(const char *text, struct rule *rule) {
    char kind[16], range[48], error[16], rest;
    if (sscanf(text, "%15[a-z]:%47[0-9x+]:%15[A-Z0-9]%c", kind, range, error, &rest) != 3)
        return false;
    rule->half = strcmp(kind, "shortwrite") == 0;
    rule->kind = WRITE;
    if (!rule->half) {
        while (rule->kind < KINDS && strcmp(kind_names[rule->kind], kind) != 0)
            rule->kind++;
        if (rule->kind == KINDS)
            return false;
    }
    char *end;
    rule->first = rule->last = strtoul(range, &end, 10);
    if (*end == '+' && end[1] == '\0')
        rule->last = ULONG_MAX;
    else if (*end == 'x')
        rule->last = rule->first + strtoul(end + 1, &end, 10) - 1;
    else if (*end != '\0')
        return false;
    return parse_error(error, rule) && (rule->half || rule->error != 0);
}

__attribute__((constructor)) static void start(void) {
    const char *folder = getenv("ONCELOG_DISK_ROOT");
    if (folder == NULL)
        return;
    if (realpath(folder, root) == NULL)
        refuse("ONCELOG_DISK_ROOT", folder);
    root_length = strlen(root);
    without_syncs = getenv("ONCELOG_DISK_NOSYNC") != NULL;
    const char *fail = getenv("ONCELOG_DISK_FAIL");
    char text[512], *left = text;
    snprintf(text, sizeof text, "%s", fail ? fail : "");
    for (char *rule; (rule = strsep(&left, ",")) != NULL && *rule != '\0';)
        if (rule_count == MAX_RULES || !parse_rule(rule, &rules[rule_count++]))
            refuse("ONCELOG_DISK_FAIL", fail);
    const char *record = getenv("ONCELOG_DISK_RECORD");
    if (record != NULL) {
        record_file = syscall(SYS_openat, AT_FDCWD, record, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (record_file < 0)
            refuse("ONCELOG_DISK_RECORD", record);
    }
}

/* ---- which files are meant ---- */

static bool is_below(const char *path) {
    return root_length > 0 && strncmp(path, root, root_length) == 0 &&
           (path[root_length] == '/' || path[root_length] == '\0');
}

static bool is_recorded(const char *path) {
    size_t length = strlen(path);
    return record_file >= 0 && !(length > 4 && strcmp(path + length - 4, "-shm") == 0);
}

/* The file behind a descriptor: whether it is below the folder, and its path. */
static bool is_ours(int fd, char path[PATH_MAX]) {
    if (root_length == 0)
        return false;
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int before = errno;
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = before;
    if (length < 0)
        return false;
    path[length] = '\0';
    return is_below(path);
}

/* The same for a path as the program names it. The last part of it may not exist. */
static bool is_named_ours(int folder, const char *name, char path[PATH_MAX]) {
    if (root_length == 0 || name == NULL)
        return false;
    char given[2 * PATH_MAX], base[PATH_MAX];
    int before = errno;
    if (name[0] == '/')
        snprintf(given, sizeof given, "%s", name);
    else {
        char link[40] = "/proc/self/cwd";
        if (folder != AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, PATH_MAX - 1);
        base[length < 0 ? 0 : length] = '\0';
        snprintf(given, sizeof given, "%s/%s", base, name);
    }
    char *end = given + strlen(given);
    while (end > given + 1 && end[-1] == '/')
        *--end = '\0';
    char *last = strrchr(given, '/');
    *last = '\0';
    bool is_there = realpath(given[0] == '\0' ? "/" : given, base) != NULL;
    errno = before;
    return is_there && snprintf(path, PATH_MAX, "%s/%s", base, last + 1) < PATH_MAX && is_below(path);
}

/* ---- failures and records; the lock is held ---- */

/* Counts a call, and finds the rule by which it fails. */
static const struct rule *failure(enum kind kind) {
    unsigned long call = ++calls[kind];
    for (int i = 0; i < rule_count; i++) {
        const struct rule *rule = &rules[i];
        if (rule->kind == kind && call >= rule->first && call <= rule->last) {
            if (call == rule->first)
                dprintf(2, "disk: %s %lu fails with %s\n", kind_names[kind], call, rule->error_name);
            return rule;
        }
    }
    return NULL;
}

/* Shared with disk_record.rs: a record is this, the path, the other path, and the data. */
struct record {
    uint64_t time;
    uint64_t inode;
    uint64_t offset;
    int64_t result;
    uint32_t kind;
    uint32_t path;
    uint32_t other;
    uint32_t data;
};

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void record(char kind, uint64_t time, uint64_t inode, uint64_t offset, int64_t result, const char *path,
                   const char *other, const void *data, size_t size) {
    if (!is_recorded(path))
        return;
    int before = errno;
    struct record head = {
        .time = time,
        .inode = inode,
        .offset = offset,
        .result = result < 0 ? -before : result,
        .kind = (uint32_t)kind,
        .path = strlen(path),
        .other = strlen(other),
        .data = size,
    };
    struct iovec parts[] = {{&head, sizeof head},
                            {(void *)path, head.path},
                            {(void *)other, head.other},
                            {(void *)data, size}};
    ssize_t whole = sizeof head + head.path + head.other + size;
    if (syscall(SYS_writev, record_file, parts, 4) != whole) {
        dprintf(2, "disk: the record cannot be written\n");
        _exit(3);
    }
    errno = before;
}

static uint64_t inode_of(int fd) {
    struct stat status;
    int before = errno;
    uint64_t inode = fstat(fd, &status) == 0 ? status.st_ino : 0;
    errno = before;
    return inode;
}

/* ---- data ---- */

static ssize_t write_ours(int fd, const char *path, const void *data, size_t size, off_t offset) {
    pthread_mutex_lock(&one_at_a_time);
    uint64_t time = now();
    const struct rule *rule = failure(WRITE);
    /* A write that succeeds writes something. */
    size_t wanted = rule == NULL ? size : rule->half ? (size + (rule->error == 0)) / 2 : 0;
    bool is_at_position = offset < 0;
    if (is_at_position)
        offset = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    ssize_t result = 0;
    if (rule == NULL || wanted > 0)
        result = is_at_position ? syscall(SYS_write, fd, data, wanted)
                                : syscall(SYS_pwrite64, fd, data, wanted, offset);
    if (result > 0)
        record('w', time, inode_of(fd), offset, result, path, "", data, result);
    if (rule != NULL && rule->error != 0) {
        errno = rule->error;
        result = -1;
    }
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

static ssize_t write_parts(int fd, const char *path, const struct iovec *parts, int count, off_t offset) {
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].iov_len;
    char *data = malloc(size + 1);
    if (data == NULL)
        abort();
    size = 0;
    for (int i = 0; i < count; i++) {
        memcpy(data + size, parts[i].iov_base, parts[i].iov_len);
        size += parts[i].iov_len;
    }
    ssize_t result = write_ours(fd, path, data, size, offset);
    free(data);
    return result;
}

ssize_t write(int fd, const void *data, size_t size) {
    char path[PATH_MAX];
    return is_ours(fd, path) ? write_ours(fd, path, data, size, -1) : syscall(SYS_write, fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    char path[PATH_MAX];
    return is_ours(fd, path) ? write_ours(fd, path, data, size, offset)
                             : syscall(SYS_pwrite64, fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    return is_ours(fd, path) ? write_parts(fd, path, parts, count, -1) : syscall(SYS_writev, fd, parts, count);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    char path[PATH_MAX];
    return is_ours(fd, path) ? write_parts(fd, path, parts, count, offset)
                             : syscall(SYS_pwritev, fd, parts, count, offset, 0);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return pwritev64(fd, parts, count, offset);
}

static bool read_fails(int fd) {
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return false;
    pthread_mutex_lock(&one_at_a_time);
    const struct rule *rule = failure(READ);
    pthread_mutex_unlock(&one_at_a_time);
    if (rule != NULL)
        errno = rule->error;
    return rule != NULL;
}

ssize_t read(int fd, void *data, size_t size) {
    return read_fails(fd) ? -1 : syscall(SYS_read, fd, data, size);
}

ssize_t pread64(int fd, void *data, size_t size, off64_t offset) {
    return read_fails(fd) ? -1 : syscall(SYS_pread64, fd, data, size, offset);
}

ssize_t pread(int fd, void *data, size_t size, off_t offset) { return pread64(fd, data, size, offset); }

/* ---- sizes ---- */

int ftruncate64(int fd, off64_t size) {
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&one_at_a_time);
    uint64_t time = now();
    const struct rule *rule = failure(SIZE);
    int result = -1;
    if (rule != NULL)
        errno = rule->error;
    else if ((result = syscall(SYS_ftruncate, fd, size)) == 0)
        record('t', time, inode_of(fd), size, 0, path, "", NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int truncate64(const char *name, off64_t size) {
    char path[PATH_MAX];
    if (!is_named_ours(AT_FDCWD, name, path))
        return syscall(SYS_truncate, name, size);
    int fd = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int result = ftruncate64(fd, size);
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

int truncate(const char *name, off_t size) { return truncate64(name, size); }

int fallocate64(int fd, int mode, off64_t offset, off64_t size) {
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return syscall(SYS_fallocate, fd, mode, offset, size);
    errno = EOPNOTSUPP;
    return -1;
}

int fallocate(int fd, int mode, off_t offset, off_t size) { return fallocate64(fd, mode, offset, size); }

int posix_fallocate64(int fd, off64_t offset, off64_t size) {
    int before = errno;
    int error = fallocate64(fd, 0, offset, size) == 0 ? 0 : errno;
    errno = before;
    return error;
}

int posix_fallocate(int fd, off_t offset, off_t size) { return posix_fallocate64(fd, offset, size); }

/* ---- syncs ---- */

enum { MAX_DESCRIPTORS = 1024 };

/* The file of which a descriptor is still to be told that a sync failed, by its inode. */
static uint64_t untold[MAX_DESCRIPTORS];

static void tell_others(int fd, uint64_t inode) {
    struct stat status;
    for (int other = 0; other < MAX_DESCRIPTORS; other++)
        if (other != fd && fstat(other, &status) == 0 && S_ISREG(status.st_mode) && status.st_ino == inode)
            untold[other] = inode;
}

int close(int fd) {
    if (fd >= 0 && fd < MAX_DESCRIPTORS)
        untold[fd] = 0;
    return syscall(SYS_close, fd);
}

static int sync_file(int fd, long call) {
    char path[PATH_MAX];
    if (!is_ours(fd, path))
        return syscall(call, fd);
    pthread_mutex_lock(&one_at_a_time);
    uint64_t time = now();
    uint64_t inode = inode_of(fd);
    const struct rule *rule = failure(SYNC);
    int result = -1;
    if (rule != NULL) {
        tell_others(fd, inode);
        errno = rule->error;
    } else if (fd < MAX_DESCRIPTORS && untold[fd] != 0 && untold[fd] == inode) {
        untold[fd] = 0;
        errno = EIO;
    } else
        result = without_syncs ? 0 : syscall(call, fd);
    record('s', time, inode, 0, result, path, "", NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int fsync(int fd) { return sync_file(fd, SYS_fsync); }

int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }

int syncfs(int fd) { return sync_file(fd, SYS_syncfs); }

/* ---- names ---- */

static int open_file(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    if ((flags & (O_CREAT | O_TRUNC)) == 0 || !is_named_ours(folder, name, path))
        return syscall(SYS_openat, folder, name, flags, mode);
    pthread_mutex_lock(&one_at_a_time);
    uint64_t time = now();
    struct stat status;
    int before = errno;
    bool is_there = fstatat(folder, name, &status, 0) == 0;
    errno = before;
    const struct rule *rule = is_there || !(flags & O_CREAT) ? NULL : failure(NAME);
    int fd = -1;
    if (rule != NULL)
        errno = rule->error;
    else if ((fd = syscall(SYS_openat, folder, name, flags, mode)) >= 0) {
        if (!is_there)
            record('c', time, inode_of(fd), 0, 0, path, "", NULL, 0);
        else if (flags & O_TRUNC)
            record('t', time, inode_of(fd), 0, 0, path, "", NULL, 0);
    }
    pthread_mutex_unlock(&one_at_a_time);
    return fd;
}

int openat64(int folder, const char *name, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return open_file(folder, name, flags, mode);
}

int openat(int folder, const char *name, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return open_file(folder, name, flags, mode);
}

int open64(const char *name, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return open_file(AT_FDCWD, name, flags, mode);
}

int open(const char *name, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return open_file(AT_FDCWD, name, flags, mode);
}

int creat64(const char *name, mode_t mode) {
    return open_file(AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

int creat(const char *name, mode_t mode) { return creat64(name, mode); }

/* A change of names that is one system call: made, or failed, and recorded. */
static int change_name(char kind, const char *path, const char *other, long call, long a, long b, long c, long d,
                       long e) {
    pthread_mutex_lock(&one_at_a_time);
    uint64_t time = now();
    const struct rule *rule = failure(NAME);
    int result = -1;
    if (rule != NULL)
        errno = rule->error;
    else if ((result = syscall(call, a, b, c, d, e)) == 0)
        record(kind, time, 0, 0, 0, path, other, NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    char path[PATH_MAX], other[PATH_MAX];
    if (!is_named_ours(from_folder, from, path) || !is_named_ours(to_folder, to, other))
        return syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    return change_name('r', path, other, SYS_renameat2, from_folder, (long)from, to_folder, (long)to, flags);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    return renameat2(from_folder, from, to_folder, to, 0);
}

int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    if (!is_named_ours(folder, name, path))
        return syscall(SYS_unlinkat, folder, name, flags);
    char kind = flags & AT_REMOVEDIR ? 'd' : 'u';
    return change_name(kind, path, "", SYS_unlinkat, folder, (long)name, flags, 0, 0);
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }

int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!is_named_ours(folder, name, path))
        return syscall(SYS_mkdirat, folder, name, mode);
    return change_name('m', path, "", SYS_mkdirat, folder, (long)name, mode, 0, 0);
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

/* ---- copies inside the kernel ---- */

ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t size, unsigned flags) {
    char path[PATH_MAX];
    if (!is_ours(to, path))
        return syscall(SYS_copy_file_range, from, from_offset, to, to_offset, size, flags);
    errno = EXDEV;
    return -1;
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) {
    char path[PATH_MAX];
    if (!is_ours(to, path))
        return syscall(SYS_sendfile, to, from, offset, size);
    errno = EINVAL;
    return -1;
}

ssize_t sendfile(int to, int from, off_t *offset, size_t size) { return sendfile64(to, from, offset, size); }

ssize_t splice(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t size, unsigned flags) {
    char path[PATH_MAX];
    if (!is_ours(to, path))
        return syscall(SYS_splice, from, from_offset, to, to_offset, size, flags);
    errno = EINVAL;
    return -1;
}
