/* Stands in for the pseudo-files of Gramine's /dev/attestation, which exist in its enclaves alone.

   Preloaded into a program, it keeps what is written to user_report_data in a file, and gives quote as a connection to
   the socket $ATTESTATION/socket, which receives that and answers with a quote. Keys are files in $ATTESTATION. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef int (*open_function)(const char *, int, ...);

static const char folder[] = "/dev/attestation/";

static int quote(open_function real) {
    char report_data[64], path[256];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(path, sizeof path, "%s/user_report_data", getenv("ATTESTATION"));
    snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", getenv("ATTESTATION"));
    int file = real(path, O_RDONLY), stream = socket(AF_UNIX, SOCK_STREAM, 0);
    if (read(file, report_data, sizeof report_data) != sizeof report_data || close(file) ||
        connect(stream, (struct sockaddr *)&address, sizeof address) ||
        write(stream, report_data, sizeof report_data) != sizeof report_data)
        return -1;
    return stream;
}

int open(const char *path, int flags, ...) {
    open_function real = (open_function)dlsym(RTLD_NEXT, "open");
    va_list more;
    va_start(more, flags);
    int mode = va_arg(more, int);
    va_end(more);
    if (strncmp(path, folder, sizeof folder - 1))
        return real(path, flags, mode);
    if (!strcmp(path + sizeof folder - 1, "quote"))
        return quote(real);
    char instead[512];
    snprintf(instead, sizeof instead, "%s/%s", getenv("ATTESTATION"), strrchr(path, '/') + 1);
    return real(instead, flags | O_CREAT | O_TRUNC, 0600);
}
