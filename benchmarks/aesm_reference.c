/* A plain AESM service to compare with: accepts with a backlog of 32 as Intel's does, and gives every connection a thread that
 * reads one frame, works for so long, answers and closes. No deadlines, no peers, no limits.
 * Usage: aesm_reference SOCKET ANSWER-SIZE NANOSECONDS; the work is processor time under one lock, as with one QE. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_FRAME 65536u

static unsigned char answer[1 << 16];
static size_t answer_size;
static uint64_t work;
static pthread_mutex_t platform = PTHREAD_MUTEX_INITIALIZER;

static uint64_t used(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int take(int fd, void *data, size_t size)
{
    for (size_t have = 0; have < size;) {
        ssize_t n = recv(fd, (char *)data + have, size - have, 0);
        if (n <= 0)
            return 0;
        have += (size_t)n;
    }
    return 1;
}

static void *serve(void *argument)
{
    int fd = (int)(intptr_t)argument;
    uint32_t length;
    if (take(fd, &length, 4) && length <= MAX_FRAME) {
        unsigned char *body = malloc(length);
        if (take(fd, body, length)) {
            /* Only a request for a quote (field 17) takes the platform. */
            int quote = length > 1 && body[0] == 0x8a && body[1] == 0x01;
            if (quote) {
                pthread_mutex_lock(&platform);
                for (uint64_t end = used() + work; used() < end;) { }
                pthread_mutex_unlock(&platform);
            }
            (void)!send(fd, answer, quote ? answer_size : 11, MSG_NOSIGNAL);
        }
        free(body);
    }
    close(fd);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 4 || strlen(argv[1]) >= sizeof address.sun_path)
        return 2;
    strcpy(address.sun_path, argv[1]);
    answer_size = (size_t)atol(argv[2]);
    work = (uint64_t)atol(argv[3]);
    uint32_t length = (uint32_t)answer_size - 4;
    memcpy(answer, &length, 4);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    unlink(argv[1]);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || chmod(argv[1], 0777) || listen(listener, 32))
        return 1;
    puts("ready");
    fflush(stdout);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    for (;;) {
        pthread_t thread;
        int fd = accept(listener, NULL, NULL);
        if (fd >= 0 && pthread_create(&thread, &attributes, serve, (void *)(intptr_t)fd) != 0)
            close(fd);
    }
}
