// Prints the frequency of this machine's time stamp counter in kHz: under load the lab's kernel cannot measure it reliably, and then hangs.
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_RAW, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

int main(void) {
    // The best of several readings: the one that least else came between.
    double best = 1e9, khz = 0;
    for (int i = 0; i < 8; i++) {
        double start = now();
        unsigned long long from = __rdtsc();
        double after = now(), stop;
        while ((stop = now()) < start + 5) {}
        unsigned long long to = __rdtsc();
        double end = now(), noise = (after - start) + (end - stop);
        if (noise < best) best = noise, khz = (to - from) / ((stop + end - start - after) / 2);
    }
    printf("%.0f\n", khz);
}
