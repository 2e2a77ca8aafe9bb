/* A stand-in for Intel's DCAP libraries, for tests on machines without SGX: the exported names, argument orders and
 * struct sizes of libsgx_pce_logic.so.1 (-DPART_PCE), libsgx_qe3_logic.so (-DPART_QE3) and libsgx_dcap_ql.so.1
 * (-DPART_QL), and the dependencies between the three: libsgx_qe3_logic.so cannot be loaded alone.
 *
 * The folder named by DCAP_STUB says what happens. Before each call to sgx_ql_NAME the file NAME there is read, or
 * NAME.once, which is removed first:
 *
 *     e014     (any hexadecimal number) return it
 *     lose     lose the enclave: this process answers 0xe014 for ever
 *     hang     never return
 *     crash    SIGSEGV
 *     exit     end the process
 *     sleep N  wait N milliseconds, then go on as usual
 *     spin N   go on as usual, and use N microseconds of the processor in all
 *     size N   go on as usual, but say N bytes (get_quote_size), or a key id of N bytes (init_quote)
 *
 * With a socket `qe` in the folder, target info, sizes and quotes are asked there (see software_qe.py); without one
 * they are recognisable bytes.
 *
 * With a file `provider` in the folder, there is a quote provider library too. The file has five hexadecimal words: QE_ID,
 * CPUSVN, PCESVN, PCE-ID and the encrypted PPID. As Intel's: init_quote asks it once, with the PPID; get_quote_size once
 * and get_quote twice, without; all under one lock of the process. It reads the file that QCNL_CONF_PATH names, once
 * (no comments), asks `local_pck_url` on every call, then what it remembers, then `pccs_url`; after 503 and without a
 * connection it waits `retry_delay` and asks again, `retry_times` more times; it has no timeout. URLs are
 * http://IPv4:PORT/PATH/.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

typedef uint32_t quote3_error_t;
enum {
    SUCCESS = 0, UNEXPECTED = 0xe001, INVALID_PARAMETER = 0xe002, UNSUPPORTED_ATT_KEY_ID = 0xe00b,
    ATT_KEY_NOT_INITIALIZED = 0xe00f, ENCLAVE_LOST = 0xe014, SERVICE_UNAVAILABLE = 0xe040
};

#ifdef PART_PCE
uint32_t sgx_pce_sign_report(void) { return SUCCESS; }
#endif

#ifdef PART_QL
/* As the real one: read when the library is loaded, and only presence counts. */
int dcap_stub_out_of_proc = 0;
__attribute__((constructor)) static void look_at_environment(void) {
    dcap_stub_out_of_proc = getenv("SGX_AESM_ADDR") != NULL;
}
#endif

#ifdef PART_QE3
#pragma pack(push, 1)
typedef struct { uint8_t bytes[158]; } sgx_ql_att_key_id_t;
typedef struct { sgx_ql_att_key_id_t base; uint8_t spid[16]; uint16_t att_key_type; uint8_t reserved[80]; } sgx_att_key_id_ext_t;
typedef struct { uint8_t bytes[512]; } sgx_target_info_t;
typedef struct { uint8_t body[384]; uint8_t key_id[32]; uint8_t mac[16]; } sgx_report_t;
typedef struct { uint8_t nonce[16]; sgx_target_info_t app; sgx_report_t qe_report; } sgx_ql_qe_report_info_t;
#pragma pack(pop)
_Static_assert(sizeof(sgx_att_key_id_ext_t) == 256, "sgx_att_key_id_ext_t");
_Static_assert(sizeof(sgx_report_t) == 432, "sgx_report_t");
_Static_assert(sizeof(sgx_ql_qe_report_info_t) == 960, "sgx_ql_qe_report_info_t");

enum { PUB_KEY_ID_SIZE = 32, QUOTE_SIZE = 4700, SIGNATURE_AT = 436 };

extern uint32_t sgx_pce_sign_report(void);
extern int dcap_stub_out_of_proc __attribute__((weak));

static char present[3072];
static bool initialized, lost;
static long long spin; /* nanoseconds that the present call uses at least */

static long long used(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static const uint8_t MR_SIGNER[32] = {
    0x8c, 0x4f, 0x57, 0x75, 0xd7, 0x96, 0x50, 0x3e, 0x96, 0x13, 0x7f, 0x77, 0xc6, 0x8a, 0x82, 0x9a,
    0x00, 0x56, 0xac, 0x8d, 0xed, 0x70, 0x14, 0x0b, 0x08, 0x1b, 0x09, 0x44, 0x90, 0xc5, 0x7b, 0xff};

static void fill_key_id(uint8_t id[256]) {
    memset(id, 0, 256);
    id[4] = 32;
    memcpy(id + 6, MR_SIGNER, sizeof MR_SIGNER);
    id[54] = 1;
    id[154] = 2;
}

static const char *folder(void) {
    const char *named = getenv("DCAP_STUB");
    if (named == NULL) named = "";
    if (strcmp(named, present) != 0) { /* another test in the same process */
        snprintf(present, sizeof present, "%s", named);
        initialized = lost = false;
    }
    return present;
}

static bool instruction(const char *call, const char *suffix, char *text, size_t size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s%s", folder(), call, suffix);
    FILE *file = fopen(path, "r");
    if (file == NULL) return false;
    size_t length = fread(text, 1, size - 1, file);
    text[length] = 0;
    fclose(file);
    return suffix[0] == 0 || unlink(path) == 0;
}

/* Follows the instruction for a call, if there is one; `number` gets the N of "size N". */
static quote3_error_t obey(const char *call, uint32_t *number) {
    char text[64];
    folder();
    if (&dcap_stub_out_of_proc != NULL && dcap_stub_out_of_proc) return SERVICE_UNAVAILABLE;
    if (lost) return ENCLAVE_LOST;
    if (!instruction(call, ".once", text, sizeof text) && !instruction(call, "", text, sizeof text)) return SUCCESS;
    if (strncmp(text, "hang", 4) == 0) for (;;) pause();
    if (strncmp(text, "crash", 5) == 0) { signal(SIGSEGV, SIG_DFL); raise(SIGSEGV); }
    if (strncmp(text, "exit", 4) == 0) _exit(9);
    if (strncmp(text, "lose", 4) == 0) { lost = true; return ENCLAVE_LOST; }
    if (strncmp(text, "spin ", 5) == 0) { spin = atoi(text + 5) * 1000ll; return SUCCESS; }
    if (strncmp(text, "sleep ", 6) == 0) { usleep((useconds_t)atoi(text + 6) * 1000); return SUCCESS; }
    if (strncmp(text, "size ", 5) == 0) { *number = (uint32_t)strtoul(text + 5, NULL, 10); return SUCCESS; }
    return (quote3_error_t)strtoul(text, NULL, 16);
}

static bool read_all(int fd, void *out, size_t size) {
    for (size_t at = 0; at < size;) {
        ssize_t count = read(fd, (char *)out + at, size - at);
        if (count <= 0) return false;
        at += (size_t)count;
    }
    return true;
}

/* Asks the software QE: operation and arguments, answered with a status and `size` bytes. False: there is none. */
static bool ask(char operation, const void *in, size_t in_size, void *out, size_t size, quote3_error_t *status) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/qe", folder());
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return false;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) { close(fd); return false; }
    *status = UNEXPECTED;
    if (write(fd, &operation, 1) == 1 && (in_size == 0 || write(fd, in, in_size) == (ssize_t)in_size) &&
        shutdown(fd, SHUT_WR) == 0 && read_all(fd, status, sizeof *status) && *status == SUCCESS &&
        !read_all(fd, out, size))
        *status = UNEXPECTED;
    close(fd);
    return true;
}

/* --- the quote provider library --- */

static struct {
    bool loaded;
    char local_url[512], server_url[512];
    double retry_times, retry_delay, expire_hours;
    time_t remembered_until;
} provider;

static pthread_mutex_t library_lock = PTHREAD_MUTEX_INITIALIZER;

/* Where the value of a key begins in the JSON text, or NULL. */
static const char *value_of(const char *text, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    const char *at = strstr(text, quoted);
    if (at == NULL || (at = strchr(at + strlen(quoted), ':')) == NULL) return NULL;
    return at + 1 + strspn(at + 1, " \t\r\n");
}

static void text_setting(const char *text, const char *key, char *out, size_t size) {
    const char *value = value_of(text, key);
    if (value != NULL && *value == '"') snprintf(out, size, "%.*s", (int)strcspn(value + 1, "\""), value + 1);
}

static void number_setting(const char *text, const char *key, double *out) {
    const char *value = value_of(text, key);
    if (value != NULL && strchr("0123456789", *value) != NULL) *out = strtod(value, NULL);
}

static void load_provider(void) {
    static char text[65536];
    const char *path = getenv("QCNL_CONF_PATH");
    FILE *file = fopen(path != NULL ? path : "/etc/sgx_default_qcnl.conf", "r");
    provider.loaded = true;
    provider.retry_times = 6;
    provider.retry_delay = 10;
    provider.expire_hours = 168;
    if (file == NULL) return;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    text_setting(text, "local_pck_url", provider.local_url, sizeof provider.local_url);
    text_setting(text, "pccs_url", provider.server_url, sizeof provider.server_url);
    number_setting(text, "retry_times", &provider.retry_times);
    number_setting(text, "retry_delay", &provider.retry_delay);
    number_setting(text, "pck_cache_expire_hours", &provider.expire_hours);
}

/* The status of one GET, 0 without a connection; 200 only with a certificate, its chain and its TCBm. */
static int http_get(const char *base, const char *query) {
    static char request[8192], answer[65536];
    char host[64];
    int port = 0, at = 0, status = 0;
    if (sscanf(base, "http://%63[0-9.]:%d%n", host, &port, &at) != 2) return 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, host, &address.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return 0;
    int length = snprintf(request, sizeof request, "GET %s%s HTTP/1.1\r\nHost: %s:%d\r\nAccept: */*\r\n"
                          "Connection: close\r\n\r\n", base + at, query, host, port);
    size_t size = 0;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && write(fd, request, (size_t)length) == length)
        for (ssize_t count; size < sizeof answer - 1 &&
             (count = read(fd, answer + size, sizeof answer - 1 - size)) > 0;) size += (size_t)count;
    close(fd);
    answer[size] = 0;
    if (sscanf(answer, "HTTP/1.%*d %d", &status) != 1) return 0;
    const char *tcbm = strcasestr(answer, "\nSGX-TCBm: ");
    bool whole = tcbm != NULL && strspn(tcbm + 11, "0123456789abcdefABCDEF") == 36 &&
                 strcasestr(answer, "\nSGX-PCK-Certificate-Issuer-Chain: -----BEGIN") != NULL &&
                 strstr(answer, "\n-----BEGIN CERTIFICATE-----") != NULL;
    return status == 200 && !whole ? 502 : status;
}

static quote3_error_t provider_error(int status) {
    switch (status) {
    case 200: return SUCCESS;
    case 0: case 403: return 0xe019;
    case 404: return 0xe01b;
    case 461: return 0xe047;
    case 462: return 0xe049;
    case 503: return 0xe040;
    default: return 0xe044;
    }
}

static quote3_error_t fetch(const char *base, const char *query) {
    if (base[0] == 0) return UNEXPECTED;
    for (int tries = 0;; tries++) {
        int status = http_get(base, query);
        if ((status != 0 && status != 503) || tries >= (int)provider.retry_times) return provider_error(status);
        sleep(provider.retry_delay > 0 ? (unsigned)provider.retry_delay : 1u << tries);
    }
}

/* The certification data of this platform, `calls` times. Called with the lock held. */
static quote3_error_t certify(int calls, bool with_ppid) {
    char words[5][800], path[4096], query[4096];
    snprintf(path, sizeof path, "%s/provider", folder());
    FILE *file = fopen(path, "r");
    if (file == NULL) return SUCCESS;
    int count = fscanf(file, "%799s %799s %799s %799s %799s", words[0], words[1], words[2], words[3], words[4]);
    fclose(file);
    if (count != 5) return UNEXPECTED;
    if (!provider.loaded) load_provider();
    if (!with_ppid) memset(words[4], '0', strlen(words[4]));
    snprintf(query, sizeof query, "pckcert?qeid=%s&encrypted_ppid=%s&cpusvn=%s&pcesvn=%s&pceid=%s",
             words[0], words[4], words[1], words[2], words[3]);
    for (quote3_error_t status; calls > 0; calls--) {
        if (fetch(provider.local_url, query) == SUCCESS) continue;
        if (time(NULL) < provider.remembered_until) continue;
        if ((status = fetch(provider.server_url, query)) != SUCCESS) return status;
        provider.remembered_until = time(NULL) + (time_t)(provider.expire_hours * 3600);
    }
    return SUCCESS;
}

static bool unknown(const sgx_ql_att_key_id_t *id) {
    uint8_t mine[256];
    fill_key_id(mine);
    return id != NULL && memcmp(id, mine, sizeof *id) != 0;
}

quote3_error_t sgx_ql_get_keyid(sgx_att_key_id_ext_t *id) {
    uint32_t none;
    quote3_error_t status = obey("get_keyid", &none);
    if (status == SUCCESS) fill_key_id((uint8_t *)id);
    return status;
}

static quote3_error_t init_quote(const sgx_ql_att_key_id_t *id, sgx_target_info_t *target, bool refresh,
                                 size_t *key_size, uint8_t *key) {
    uint32_t size = PUB_KEY_ID_SIZE;
    (void)refresh;
    if (target == NULL || key_size == NULL) return INVALID_PARAMETER;
    if (unknown(id)) return UNSUPPORTED_ATT_KEY_ID;
    if (key == NULL) { /* the caller asks for the size, and nothing is done */
        quote3_error_t status = obey("init_quote_size", &size);
        *key_size = size;
        return status;
    }
    quote3_error_t status = obey("init_quote", &size);
    if (status == SUCCESS) status = certify(1, true);
    if (status != SUCCESS) return status;
    if (*key_size != PUB_KEY_ID_SIZE) return INVALID_PARAMETER;
    uint8_t answer[512 + PUB_KEY_ID_SIZE];
    if (!ask('I', NULL, 0, answer, sizeof answer, &status)) {
        memset(answer, 0x11, 512);
        memset(answer + 512, 0x22, PUB_KEY_ID_SIZE);
        status = sgx_pce_sign_report();
    }
    if (status != SUCCESS) return status;
    memcpy(target, answer, 512);
    memcpy(key, answer + 512, PUB_KEY_ID_SIZE);
    initialized = true;
    return SUCCESS;
}

static quote3_error_t real_size(uint32_t *size) {
    quote3_error_t status = SUCCESS;
    if (!ask('S', NULL, 0, size, sizeof *size, &status)) *size = QUOTE_SIZE;
    return status;
}

static quote3_error_t get_quote_size(const sgx_ql_att_key_id_t *id, uint32_t *size) {
    uint32_t said = 0;
    if (size == NULL) return INVALID_PARAMETER;
    if (unknown(id)) return UNSUPPORTED_ATT_KEY_ID;
    quote3_error_t status = obey("get_quote_size", &said);
    if (status == SUCCESS) status = certify(1, false);
    if (status != SUCCESS) return status;
    if (!initialized) return ATT_KEY_NOT_INITIALIZED;
    *size = said;
    return said != 0 ? SUCCESS : real_size(size);
}

static quote3_error_t get_quote(const sgx_report_t *report, const sgx_ql_att_key_id_t *id,
                                sgx_ql_qe_report_info_t *info, uint8_t *quote, uint32_t quote_size) {
    uint32_t size = 0, said = 0;
    if (report == NULL || quote == NULL) return INVALID_PARAMETER;
    if (unknown(id)) return UNSUPPORTED_ATT_KEY_ID;
    quote3_error_t status = obey("get_quote", &said);
    if (status == SUCCESS) status = certify(2, false);
    if (status != SUCCESS) return status;
    if (!initialized) return ATT_KEY_NOT_INITIALIZED;
    status = real_size(&size);
    if (status != SUCCESS) return status;
    if (quote_size < size) return INVALID_PARAMETER;

    uint8_t request[432 + 960] = {0};
    memcpy(request, report, 432);
    if (info != NULL) memcpy(request + 432, info, 960);
    uint8_t *answer = malloc(size + 960);
    if (ask('Q', request, info != NULL ? sizeof request : 432, answer, size + (info != NULL ? 960 : 0), &status)) {
        if (status == SUCCESS) {
            memcpy(quote, answer, size);
            if (info != NULL) memcpy(info, answer + size, 960);
        }
    } else {
        uint32_t length = said != 0 ? said : size - SIGNATURE_AT;
        memset(quote, 0x5a, size);
        memcpy(quote, "\x03\x00\x02\x00", 4);
        memcpy(quote + 48, report->body, 384);
        memcpy(quote + 432, &length, 4);
        if (info != NULL) memset(&info->qe_report, 0x77, 432);
    }
    free(answer);
    return status;
}

quote3_error_t sgx_ql_init_quote(const sgx_ql_att_key_id_t *id, sgx_target_info_t *target, bool refresh,
                                 size_t *key_size, uint8_t *key) {
    pthread_mutex_lock(&library_lock);
    quote3_error_t status = init_quote(id, target, refresh, key_size, key);
    pthread_mutex_unlock(&library_lock);
    return status;
}

quote3_error_t sgx_ql_get_quote_size(const sgx_ql_att_key_id_t *id, uint32_t *size) {
    pthread_mutex_lock(&library_lock);
    quote3_error_t status = get_quote_size(id, size);
    pthread_mutex_unlock(&library_lock);
    return status;
}

quote3_error_t sgx_ql_get_quote(const sgx_report_t *report, const sgx_ql_att_key_id_t *id,
                                sgx_ql_qe_report_info_t *info, uint8_t *quote, uint32_t quote_size) {
    long long begin = used();
    pthread_mutex_lock(&library_lock);
    spin = 0;
    quote3_error_t status = get_quote(report, id, info, quote, quote_size);
    while (used() - begin < spin) { }
    pthread_mutex_unlock(&library_lock);
    return status;
}
#endif
