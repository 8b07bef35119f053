/* A slow disk: what a process writes into a checkpoint waits for SECONDS_PER_MB.
 *
 * Loaded before libc (LD_PRELOAD), it stands before `write`, the call by which safetensors and
 * Python store bytes. Only files in a folder ".step-..." are slow, as checkpoints are called until
 * they are whole (deepsynth_min/files/disk.py). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

ssize_t write(int handle, const void *data, size_t count) {
    static ssize_t (*libc_write)(int, const void *, size_t);
    if (!libc_write) libc_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    const char *given = getenv("SECONDS_PER_MB");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = given ? readlink(link, path, sizeof path - 1) : -1;
    if (length > 0) {
        path[length] = 0;
        if (strstr(path, "/.step-")) {
            double seconds = atof(given) * count / 1e6;
            struct timespec pause = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
            while (nanosleep(&pause, &pause)) {
            }
        }
    }
    return libc_write(handle, data, count);
}
