/* Hostile clients of an AESM service. Usage: aesm_abuse SOCKET FRAME-FILE WAY UID; runs until it is killed. UID 0 stays root.
 * Each way is one process; the benchmark starts as many as it wants. FRAME-FILE holds one good request for a quote. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_un address;
static unsigned char frame[65540];
static size_t frame_size;
static unsigned char buffer[1 << 16];

static void nap(long microseconds)
{
    struct timespec t = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&t, NULL);
}

/* A connection, or -1; `flags` may hold SOCK_NONBLOCK. */
static int join(int flags)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | flags, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static void say(int fd, const void *data, size_t size)
{
    if (send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) { /* that it fails is part of the game */ }
}

static void listen_to_end(int fd)
{
    while (recv(fd, buffer, sizeof buffer, 0) > 0) { }
}

/* --- short visits, as fast as they go --- */

static void visit_partial(void)
{
    int fd = join(0);
    if (fd < 0)
        return;
    say(fd, frame, 100);
    shutdown(fd, SHUT_WR);
    close(fd);
}

static void visit_empty(void)
{
    close(join(0));
}

static void visit_half_closed(void)
{
    int fd = join(0);
    if (fd < 0)
        return;
    say(fd, frame, frame_size);
    shutdown(fd, SHUT_WR);
    listen_to_end(fd);
    close(fd);
}

static void visit_leaves(void) /* asks for a quote and does not wait for it */
{
    int fd = join(0);
    if (fd < 0)
        return;
    say(fd, frame, frame_size);
    close(fd);
}

static void visit_huge(void)
{
    static const unsigned char head[1000] = {0xff, 0xff, 0xff, 0x7f};
    int fd = join(0);
    if (fd < 0)
        return;
    say(fd, head, sizeof head);
    listen_to_end(fd);
    close(fd);
}

static void visit_invalid(void) /* a whole frame; what it holds is no request */
{
    static unsigned char bad[705];
    uint32_t length = sizeof bad - 4;
    int fd = join(0);
    if (fd < 0)
        return;
    memset(bad, 0xee, sizeof bad);
    memcpy(bad, &length, 4);
    say(fd, bad, sizeof bad);
    listen_to_end(fd);
    close(fd);
}

static void visit_refused(void) /* a whole request with a report that nobody made */
{
    static unsigned char bad[65540];
    int fd = join(0);
    if (fd < 0)
        return;
    memcpy(bad, frame, frame_size);
    bad[200] ^= 1;
    say(fd, bad, frame_size);
    listen_to_end(fd);
    close(fd);
}

static void visit_cheap(void) /* how many keys are there? no platform is needed to answer */
{
    static const unsigned char ask[] = {3, 0, 0, 0, 0xaa, 1, 0};
    int fd = join(0);
    if (fd < 0)
        return;
    say(fd, ask, sizeof ask);
    listen_to_end(fd);
    close(fd);
}

static void visit_files(void) /* passes 100 descriptors along */
{
    union { struct cmsghdr align; char space[CMSG_SPACE(100 * sizeof(int))]; } control;
    struct iovec part = {frame, 100};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    int fd = join(0);
    if (fd < 0)
        return;
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(100 * sizeof(int));
    for (int i = 0; i < 100; i++)
        ((int *)(void *)CMSG_DATA(header))[i] = 2;
    if (sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        say(fd, frame, 100);
    close(fd);
}

static void visit_forked(void) /* every visit is another process */
{
    if (fork() == 0) {
        int fd = join(0);
        if (fd >= 0)
            say(fd, frame, 100);
        _exit(0);
    }
    while (waitpid(-1, NULL, WNOHANG) > 0) { }
}

static void visit_slow_reader(void) /* 60 kB of answer, one byte at a time */
{
    int fd = join(0), small = 1;
    if (fd < 0)
        return;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    say(fd, frame, frame_size);
    for (int i = 0; i < 50; i++) {
        if (recv(fd, buffer, 1, 0) != 1)
            break;
        nap(20000);
    }
    close(fd);
}

static void storm(void) /* 200 connections that do not wait, closed, and from the start again */
{
    int fds[200];
    for (int i = 0; i < 200; i++)
        fds[i] = join(SOCK_NONBLOCK);
    for (int i = 0; i < 200; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* The same, each with a whole request, and its answer read. */
static void crowd_with(const void *request, size_t size)
{
    int fds[200];
    for (int i = 0; i < 200; i++)
        if ((fds[i] = join(SOCK_NONBLOCK)) >= 0)
            say(fds[i], request, size);
    for (int i = 0; i < 200; i++)
        if (fds[i] >= 0) {
            fcntl(fds[i], F_SETFL, 0);
            listen_to_end(fds[i]);
            close(fds[i]);
        }
}

static void crowd(void) /* needs no platform */
{
    static const unsigned char ask[] = {3, 0, 0, 0, 0xaa, 1, 0};
    crowd_with(ask, sizeof ask);
}

static void crowd_of_quotes(void)
{
    crowd_with(frame, frame_size);
}

/* --- connections that are kept --- */

static int lost(int fd)
{
    ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN);
}

/* Hold `count` connections, each with so many bytes of the frame said; what the service closes is opened again. */
static void hold(int count, size_t said)
{
    int *fds = malloc((size_t)count * sizeof *fds);
    for (int i = 0; i < count; i++)
        fds[i] = -1;
    for (;;) {
        for (int i = 0; i < count; i++) {
            if (fds[i] >= 0 && lost(fds[i])) {
                close(fds[i]);
                fds[i] = -1;
            }
            if (fds[i] < 0 && (fds[i] = join(SOCK_NONBLOCK)) >= 0 && said)
                say(fds[i], frame, said);
        }
        nap(1000);
    }
}

/* 200 connections that say a byte each round. */
static void drip(long pause)
{
    int fds[200];
    size_t at[200];
    memset(fds, 0xff, sizeof fds);
    for (;;) {
        for (int i = 0; i < 200; i++) {
            if (fds[i] >= 0 && send(fds[i], frame + at[i]++ % frame_size, 1, MSG_NOSIGNAL | MSG_DONTWAIT) != 1) {
                close(fds[i]);
                fds[i] = -1;
            }
            if (fds[i] < 0) {
                fds[i] = join(SOCK_NONBLOCK);
                at[i] = 0;
            }
        }
        nap(pause);
    }
}

/* Asks for quotes on 200 connections and reads none of them. */
static void never_reads(void)
{
    int fds[200];
    for (;;) {
        for (int i = 0; i < 200; i++)
            if ((fds[i] = join(SOCK_NONBLOCK)) >= 0)
                say(fds[i], frame, frame_size);
        nap(100000);
        for (int i = 0; i < 200; i++)
            close(fds[i]);
    }
}

/* Children of ever other users connect and leave the connection to their parent. Root only. */
static void many_users(void)
{
    static int fds[900];
    memset(fds, 0xff, sizeof fds);
    for (unsigned user = 100000;; user++) {
        int *slot = &fds[user % 900];
        if (*slot >= 0)
            close(*slot);
        *slot = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (fork() == 0) {
            if (setuid(user) == 0)
                (void)!connect(*slot, (struct sockaddr *)&address, sizeof address);
            _exit(0);
        }
        waitpid(-1, NULL, 0);
    }
}

static const struct { const char *name; void (*visit)(void); } VISITS[] = {
    {"partial", visit_partial}, {"empty", visit_empty}, {"half-closed", visit_half_closed}, {"leaves", visit_leaves},
    {"huge", visit_huge}, {"invalid", visit_invalid}, {"refused", visit_refused}, {"cheap", visit_cheap},
    {"files", visit_files}, {"forked", visit_forked}, {"slow-reader", visit_slow_reader}, {"storm", storm}, {"crowd", crowd},
    {"crowd-of-quotes", crowd_of_quotes},
};

int main(int argc, char **argv)
{
    if (argc != 6 || strlen(argv[1]) >= sizeof address.sun_path)
        return 2;
    FILE *file = fopen(argv[2], "rb");
    if (!file)
        return 2;
    frame_size = fread(frame, 1, sizeof frame, file);
    fclose(file);
    struct rlimit files = {16384, 16384};
    setrlimit(RLIMIT_NOFILE, &files);
    unsigned user = (unsigned)atoi(argv[4]);
    if (user && geteuid() == 0 && (setgroups(0, NULL) || setgid(user) || setuid(user)))
        return 3;
    struct rlimit processes = {256, 256}; /* as a pod has a limit */
    setrlimit(RLIMIT_NPROC, &processes);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsid(); /* where the kernel groups processes by session, all of them have one share of the processor, as a pod has */
    for (int i = 1; i < atoi(argv[5]); i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            break;
        }
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, argv[1]);
    const char *way = argv[3];
    if (strcmp(way, "hold") == 0)
        hold(2000, 100);
    if (strcmp(way, "idle") == 0)
        hold(10000, 0);
    if (strcmp(way, "drip") == 0)
        drip(1000000);
    if (strcmp(way, "drip-fast") == 0)
        drip(0);
    if (strcmp(way, "never-reads") == 0)
        never_reads();
    if (strcmp(way, "many-users") == 0)
        many_users();
    for (size_t i = 0; i < sizeof VISITS / sizeof *VISITS; i++)
        if (strcmp(way, VISITS[i].name) == 0)
            for (;;)
                VISITS[i].visit();
    return 2;
}
