/* Load for the quote helper: threads that connect, send one frame, read to the end of the stream, again and again, as
 * real clients do. Usage: aesm_load SOCKET THREADS SECONDS FRAME-FILE LEAST; SIGTERM ends it early. Writes the
 * nanoseconds of every answered request as unsigned 32-bit numbers in host order to standard output, and "answered
 * failed nanoseconds" to standard error: the time until the last answer, which is later than SECONDS. An answer counts
 * when it is one whole frame of at least LEAST bytes: a refusal is shorter. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_SAMPLES 4000000u

static struct sockaddr_un address;
static unsigned char frame[65540];
static size_t frame_size, least;
static volatile uint64_t until;

struct result {
    uint32_t *samples;
    size_t answered, failed, room;
};

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void stop(int number)
{
    (void)number;
    until = 0;
}

/* 0 when a whole frame came back. */
static int ask(void)
{
    unsigned char answer[131072];
    size_t have = 0;
    uint32_t length;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0), bad = 1;
    if (fd < 0)
        return 1;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        send(fd, frame, frame_size, MSG_NOSIGNAL) == (ssize_t)frame_size) {
        ssize_t n;
        while (have < sizeof answer && (n = recv(fd, answer + have, sizeof answer - have, 0)) > 0)
            have += (size_t)n;
        if (have > 4) {
            memcpy(&length, answer, 4);
            bad = have != 4 + (size_t)length || have < least;
        }
    }
    close(fd);
    return bad;
}

static void *run(void *argument)
{
    struct result *r = argument;
    uint64_t begin;
    while ((begin = now()) < until) {
        if (ask()) {
            r->failed++;
        } else {
            if (r->answered < r->room)
                r->samples[r->answered] = (uint32_t)(now() - begin);
            r->answered++;
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 6 || strlen(argv[1]) >= sizeof address.sun_path)
        return 2;
    int threads = atoi(argv[2]);
    FILE *file = fopen(argv[4], "rb");
    if (threads < 1 || threads > 1024 || !file)
        return 2;
    least = (size_t)atol(argv[5]);
    frame_size = fread(frame, 1, sizeof frame, file);
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, argv[1]);
    uint64_t begin = now();
    until = begin + (uint64_t)(atof(argv[3]) * 1e9);
    signal(SIGTERM, stop);
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    struct result *results = calloc((size_t)threads, sizeof *results);
    for (int i = 0; i < threads; i++) {
        results[i].room = MAX_SAMPLES / (size_t)threads;
        results[i].samples = malloc(results[i].room * sizeof(uint32_t));
        pthread_create(&ids[i], NULL, run, &results[i]);
    }
    size_t answered = 0, failed = 0;
    for (int i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    uint64_t took = now() - begin;
    for (int i = 0; i < threads; i++) {
        size_t kept = results[i].answered < results[i].room ? results[i].answered : results[i].room;
        fwrite(results[i].samples, sizeof(uint32_t), kept, stdout);
        answered += results[i].answered;
        failed += results[i].failed;
    }
    fprintf(stderr, "%zu %zu %llu\n", answered, failed, (unsigned long long)took);
    return 0;
}
