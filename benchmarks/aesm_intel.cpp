/* Intel's AESM server with a stand-in for its QE: its selector, queues, threads, sockets and messages are Intel's,
 * compiled from their source (aesm_intel.py); a quote is one spin of processor time and an answer of a fixed size.
 * Usage: aesm_intel SOCKET ANSWER-SIZE NANOSECONDS, as aesm_reference. */
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include <CAESMServer.h>
#include <CSelector.h>
#include <IAESMLogic.h>
#include <UnixServerSocket.h>

static const uint32_t FRAME = 14; /* bytes of an answer around its quote */

/* Intel's files log through these. */
extern "C" void sgx_proc_log_report(int, const char *, ...) {}
extern "C" int se_trace_internal(int, const char *, ...) { return 0; }

static long long used()
{
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Answers requests for quotes and refuses all others. */
class StandIn : public IAESMLogic {
    const uint32_t quote_size;
    const long long work;

public:
    StandIn(uint32_t quote_size, long long work) : quote_size(quote_size), work(work) {}

    aesm_error_t get_quote_ex(uint32_t, const uint8_t *, uint32_t, const uint8_t *, uint32_t, uint8_t *,
                              uint32_t room, uint8_t **quote) override
    {
        if (room < quote_size)
            return AESM_PARAMETER_ERROR;
        *quote = new uint8_t[room]();
        for (long long end = used() + work; used() < end;) { }
        return AESM_SUCCESS;
    }
    aesm_error_t select_att_key_id(uint32_t, const uint8_t *, uint32_t *, uint8_t **) override
    {
        return AESM_SERVICE_UNAVAILABLE;
    }
    aesm_error_t init_quote_ex(uint32_t, const uint8_t *, uint8_t **, uint32_t *, bool, size_t *, uint8_t **) override
    {
        return AESM_SERVICE_UNAVAILABLE;
    }
    aesm_error_t get_quote_size_ex(uint32_t, const uint8_t *, uint32_t *) override { return AESM_SERVICE_UNAVAILABLE; }
    aesm_error_t get_supported_att_key_id_num(uint32_t *) override { return AESM_SERVICE_UNAVAILABLE; }
    aesm_error_t get_supported_att_key_ids(uint8_t **, uint32_t) override { return AESM_SERVICE_UNAVAILABLE; }
    void service_stop() override {}
};

int main(int argc, char **argv)
{
    if (argc != 4 || atol(argv[2]) <= FRAME)
        return 2;
    UnixServerSocket *socket = new UnixServerSocket(argv[1]);
    CAESMServer server(socket, new CSelector(socket), new StandIn(atol(argv[2]) - FRAME, atoll(argv[3])));
    server.init();
    puts("ready");
    fflush(stdout);
    server.doWork();
}
