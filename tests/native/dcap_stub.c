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
 *     size N   go on as usual, but say N bytes (get_quote_size), or a key id of N bytes (init_quote)
 *
 * With a socket `qe` in the folder, target info, sizes and quotes are asked there (see software_qe.py); without one
 * they are recognisable bytes.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
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

quote3_error_t sgx_ql_init_quote(const sgx_ql_att_key_id_t *id, sgx_target_info_t *target, bool refresh,
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

quote3_error_t sgx_ql_get_quote_size(const sgx_ql_att_key_id_t *id, uint32_t *size) {
    uint32_t said = 0;
    if (size == NULL) return INVALID_PARAMETER;
    if (unknown(id)) return UNSUPPORTED_ATT_KEY_ID;
    quote3_error_t status = obey("get_quote_size", &said);
    if (status != SUCCESS) return status;
    if (!initialized) return ATT_KEY_NOT_INITIALIZED;
    *size = said;
    return said != 0 ? SUCCESS : real_size(size);
}

quote3_error_t sgx_ql_get_quote(const sgx_report_t *report, const sgx_ql_att_key_id_t *id,
                                sgx_ql_qe_report_info_t *info, uint8_t *quote, uint32_t quote_size) {
    uint32_t size = 0, said = 0;
    if (report == NULL || quote == NULL) return INVALID_PARAMETER;
    if (unknown(id)) return UNSUPPORTED_ATT_KEY_ID;
    quote3_error_t status = obey("get_quote", &said);
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
#endif
