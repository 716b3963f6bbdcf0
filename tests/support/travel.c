/* Preloaded into a store: its wall clock is as many seconds ahead as the file LASTGOOD_TEST_CLOCK_FILE says at that moment. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead(void) {
    const char *path = getenv("LASTGOOD_TEST_CLOCK_FILE");
    char text[32] = {0};
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return 0;
    long got = read(file, text, sizeof text - 1);
    close(file);
    return got > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int answer = (int)syscall(SYS_clock_gettime, clock, at);
    if (answer == 0 && clock == CLOCK_REALTIME) at->tv_sec += ahead();
    return answer;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    int answer = (int)syscall(SYS_gettimeofday, at, zone);
    if (answer == 0) at->tv_sec += ahead();
    return answer;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
