// Counts the calls that change files under one folder and makes the k-th fail; loaded with LD_PRELOAD.
//
// fault_arm(folder, k, mode, log) starts counting at 1; k = 0 only counts. A call is one of open, write, fsync,
// close, rename, unlink, mkdir, rmdir, truncate and their variants, on a path under the folder or on a descriptor
// that was opened there while armed. Reads are not counted. With a log descriptor, every call is written to it:
//     number TAB call TAB path TAB second path or data in hexadecimal TAB offset TAB result NEWLINE
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
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PASS = 0, KILL = 1, TORN = 2, FULL = 3, BROKEN = 4, SHORT = 5, LIE = 6 };
enum { MAX_FD = 4096 };

static char folder[PATH_MAX];
static size_t folder_length;
static int armed, mode, log_fd = -1, full, fired;
static long fault_at, count;
static char* fd_path[MAX_FD];

#define REAL(name) ((__typeof__(&name))real(#name))

static void* real(const char* name) {
  void* found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

void fault_arm(const char* under, long k, int how, int log) {
  strncpy(folder, under, sizeof folder - 1);
  folder_length = strlen(folder);
  fault_at = k;
  mode = how;
  log_fd = log;
  count = full = fired = 0;
  armed = 1;
}

// The disk has room again, nothing fails any more; calls are counted on.
void fault_release(void) {
  full = 0;
  fault_at = 0;
}

long fault_count(void) { return count; }

int fault_fired(void) { return fired; }

static int absolute(int dir, const char* path, char* out) {
  char base[PATH_MAX] = "";
  if (!path) return 0;
  if (path[0] != '/') {
    if (dir == AT_FDCWD) {
      if (!getcwd(base, sizeof base)) return 0;
    } else {
      char link[64];
      snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
      ssize_t n = readlink(link, base, sizeof base - 1);
      if (n < 0) return 0;
      base[n] = 0;
    }
    strncat(base, "/", sizeof base - strlen(base) - 1);
  }
  snprintf(out, PATH_MAX, "%s%s", base, path);
  return 1;
}

static int watched(const char* path) {
  return armed && !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static int watched_at(int dir, const char* path, char* out) { return armed && absolute(dir, path, out) && watched(out); }

static const char* watched_fd(int fd) { return armed && fd >= 0 && fd < MAX_FD ? fd_path[fd] : NULL; }

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

// What to do with this call: PASS, or a mode in which it shall fail. `grows` calls need room on the disk.
static int gate(int grows) {
  count++;
  if (fault_at && count == fault_at) {
    fired = 1;
    if (mode == KILL) die();
    if (mode == FULL) full = 1;
    return mode;
  }
  return full && grows ? FULL : PASS;
}

static void raw_log(const char* text, size_t length) {
  while (length) {
    long n = syscall(SYS_write, log_fd, text, length);
    if (n <= 0) abort();
    text += n;
    length -= (size_t)n;
  }
}

static void note(const char* call, const char* path, const char* more, long offset, long result) {
  if (log_fd < 0) return;
  int saved = errno;
  char head[2 * PATH_MAX];
  snprintf(head, sizeof head, "%ld\t%s\t%s\t", count, call, path);
  raw_log(head, strlen(head));
  raw_log(more, strlen(more));
  snprintf(head, sizeof head, "\t%ld\t%ld\n", offset, result);
  raw_log(head, strlen(head));
  errno = saved;
}

static void note_data(const char* path, const void* data, long offset, ssize_t written) {
  if (log_fd < 0) return;
  size_t length = written > 0 ? (size_t)written : 0;
  char* hex = malloc(2 * length + 1);
  for (size_t i = 0; i < length; i++) sprintf(hex + 2 * i, "%02x", ((const unsigned char*)data)[i]);
  hex[2 * length] = 0;
  note("write", path, hex, offset, written);
  free(hex);
}

static int failure(int what) {
  errno = what == FULL ? ENOSPC : EIO;
  return -1;
}

// The body of a call that either happens or not: `run` is the real call as an expression.
#define WHOLE(call, path, more, grows, run)                          \
  do {                                                               \
    int what = gate(grows);                                          \
    if (what == FULL || what == BROKEN) {                            \
      note(call, path, more, 0, -1);                                 \
      return failure(what);                                          \
    }                                                                \
    int result = (run);                                              \
    if (what == TORN) die();                                         \
    note(call, path, more, 0, result);                               \
    return result;                                                   \
  } while (0)

static int opened(const char* path, int flags, int fd) {
  if (fd >= 0 && fd < MAX_FD) {
    free(fd_path[fd]);
    fd_path[fd] = strdup(path);
  }
  (void)flags;
  return fd;
}

#define MODE_ARGUMENT                                            \
  mode_t rights = 0;                                             \
  if (flags & (O_CREAT | O_TMPFILE)) {                           \
    va_list list;                                                \
    va_start(list, flags);                                       \
    rights = va_arg(list, mode_t);                               \
    va_end(list);                                                \
  }

#define OPEN_LIKE(name, dir, ...)                                                                     \
  MODE_ARGUMENT                                                                                       \
  char full_path[PATH_MAX];                                                                           \
  if (!watched_at(dir, path, full_path)) return REAL(name)(__VA_ARGS__, flags, rights);               \
  const char* kind = flags & O_CREAT ? "create" : "open";                                             \
  WHOLE(kind, full_path, flags & O_TRUNC ? "truncate" : "", flags & O_CREAT,                          \
        opened(full_path, flags, REAL(name)(__VA_ARGS__, flags, rights)))

int open(const char* path, int flags, ...) { OPEN_LIKE(open, AT_FDCWD, path); }
int open64(const char* path, int flags, ...) { OPEN_LIKE(open64, AT_FDCWD, path); }
int openat(int dir, const char* path, int flags, ...) { OPEN_LIKE(openat, dir, dir, path); }
int openat64(int dir, const char* path, int flags, ...) { OPEN_LIKE(openat64, dir, dir, path); }

static ssize_t torn(ssize_t (*real_write)(int, const void*, size_t), int fd, const void* data, size_t size,
                    const char* path, off_t at) {
  long offset = at >= 0 ? (long)at : (long)lseek(fd, 0, SEEK_CUR);
  int what = gate(1);
  size_t half = size / 2;
  if (what == FULL || what == BROKEN) {
    note_data(path, data, offset, -1);
    return failure(what);
  }
  if (what == LIE) {
    note_data(path, data, offset, 0);
    return (ssize_t)size;
  }
  if (what == TORN || what == SHORT) size = half ? half : size;
  ssize_t result = at >= 0 ? pwrite(fd, data, size, at) : real_write(fd, data, size);
  if (what == TORN) die();
  note_data(path, data, offset, result);
  return result;
}

ssize_t write(int fd, const void* data, size_t size) {
  const char* path = watched_fd(fd);
  if (!path) return REAL(write)(fd, data, size);
  return torn(REAL(write), fd, data, size, path, -1);
}

static __thread int inside;

#define PWRITE_LIKE(name)                                                                   \
  const char* path = inside ? NULL : watched_fd(fd);                                        \
  if (!path) return REAL(name)(fd, data, size, offset);                                     \
  inside = 1;                                                                               \
  ssize_t result = torn(NULL, fd, data, size, path, offset);                                \
  inside = 0;                                                                               \
  return result

ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) { PWRITE_LIKE(pwrite); }
ssize_t pwrite64(int fd, const void* data, size_t size, off64_t offset) { PWRITE_LIKE(pwrite64); }

ssize_t writev(int fd, const struct iovec* parts, int number) {
  if (!watched_fd(fd)) return REAL(writev)(fd, parts, number);
  // One part at a time, so that each is a point of its own; a short answer is allowed.
  return number > 0 ? write(fd, parts[0].iov_base, parts[0].iov_len) : 0;
}

#define FD_LIKE(name, label)                             \
  const char* path = watched_fd(fd);                     \
  if (!path) return REAL(name)(fd);                      \
  WHOLE(label, path, "", 0, REAL(name)(fd))

int fsync(int fd) { FD_LIKE(fsync, "fsync"); }
int fdatasync(int fd) { FD_LIKE(fdatasync, "fsync"); }

#define TRUNCATE_LIKE(name)                                     \
  const char* path = watched_fd(fd);                            \
  if (!path) return REAL(name)(fd, size);                       \
  char text[32];                                                \
  snprintf(text, sizeof text, "%ld", (long)size);               \
  WHOLE("truncate", path, text, 1, REAL(name)(fd, size))

int ftruncate(int fd, off_t size) { TRUNCATE_LIKE(ftruncate); }
int ftruncate64(int fd, off64_t size) { TRUNCATE_LIKE(ftruncate64); }

int close(int fd) {
  const char* path = watched_fd(fd);
  if (!path) return REAL(close)(fd);
  char* name = fd_path[fd];
  fd_path[fd] = NULL;
  int what = gate(0), result = REAL(close)(fd);  // it is closed whatever it answers
  if (what == TORN) die();
  if (what == FULL || what == BROKEN) result = failure(what);
  note("close", name, "", 0, result);
  free(name);
  return result;
}

#define PATH_LIKE(label, dir, grows, run)                \
  char full_path[PATH_MAX];                              \
  if (!watched_at(dir, path, full_path)) return run;     \
  WHOLE(label, full_path, "", grows, run)

int unlink(const char* path) { PATH_LIKE("unlink", AT_FDCWD, 0, REAL(unlink)(path)); }
int rmdir(const char* path) { PATH_LIKE("rmdir", AT_FDCWD, 0, REAL(rmdir)(path)); }
int mkdir(const char* path, mode_t rights) { PATH_LIKE("mkdir", AT_FDCWD, 1, REAL(mkdir)(path, rights)); }
int mkdirat(int dir, const char* path, mode_t rights) { PATH_LIKE("mkdir", dir, 1, REAL(mkdirat)(dir, path, rights)); }
int unlinkat(int dir, const char* path, int flags) {
  const char* label = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
  PATH_LIKE(label, dir, 0, REAL(unlinkat)(dir, path, flags));
}

#define RENAME_LIKE(label, old_dir, new_dir, run)                                                        \
  char first[PATH_MAX] = "", second[PATH_MAX] = "";                                                           \
  int from = watched_at(old_dir, path, first), to = watched_at(new_dir, other, second);                  \
  if (!from && !to) return run;                                                                          \
  WHOLE(label, first, second, 1, run)

int rename(const char* path, const char* other) {
  RENAME_LIKE("rename", AT_FDCWD, AT_FDCWD, REAL(rename)(path, other));
}
int renameat(int dir, const char* path, int other_dir, const char* other) {
  RENAME_LIKE("rename", dir, other_dir, REAL(renameat)(dir, path, other_dir, other));
}
int renameat2(int dir, const char* path, int other_dir, const char* other, unsigned flags) {
  const char* label = flags ? "exchange" : "rename";
  RENAME_LIKE(label, dir, other_dir, REAL(renameat2)(dir, path, other_dir, other, flags));
}
