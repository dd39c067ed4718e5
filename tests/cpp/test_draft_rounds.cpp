// What is read off the rows that a context which drafts is fed: accepted tokens, and whether skipping pays.
#include "draft_rounds.h"
#include "expect.h"
#include "ffnskip/rows.h"

#include <cstdint>

using namespace ffnskip;

namespace {

// A context that drafts `k` tokens a round for `n_seq` sequences, of which `accepted` are: fed as llama-server does it.
struct Server {
    DraftRounds rounds;
    int         n_seq;
    llama_pos   next = 0;
    int64_t     now  = 1000;

    explicit Server(int n_seq) : n_seq(n_seq) {}

    void decode(llama_pos from, llama_pos n) {
        Batch batch;
        for (llama_seq_id seq = 0; seq < n_seq; ++seq) {
            for (llama_pos i = 0; i < n; ++i) {
                batch.add(7, from + 10 * seq + i, seq, false);
            }
        }
        rounds.see(batch.rows(), now);
    }
    // Of another text.
    void prompt(llama_pos n) {
        next += 100;
        decode(next, n);
        next += n;
    }
    void round(llama_pos k, llama_pos accepted, int64_t us) {
        for (llama_pos i = 0; i < k; ++i) {
            decode(next + i, 1);
        }
        now += us;
        decode(next, k + 1);
        next += accepted + 1;
    }
};

void acceptance() {
    for (const int n_seq : { 1, 3 }) {
        Server server(n_seq);
        server.prompt(5);
        server.round(4, 2, 10);
        server.round(4, 4, 10);
        server.round(4, 0, 10);
        server.round(0, 0, 10);  // nothing was drafted: the token alone
        server.round(2, 1, 10);
        server.prompt(6);  // elsewhere: the last round is not known
        server.round(3, 3, 10);
        server.round(3, 1, 10);
        const DraftRounds::Counts counts = server.rounds.all();
        expect(counts.drafted == uint64_t(n_seq) * (4 + 4 + 4 + 3), "drafted tokens whose fate is known");
        expect(counts.accepted == uint64_t(n_seq) * (2 + 4 + 0 + 3), "and those that were accepted");
        expect(to_line(counts) ==
                   (n_seq == 1 ? "60.0 % of 15 drafted tokens accepted" : "60.0 % of 45 drafted tokens accepted"),
               "as a line");
    }
}

// Skipping is tried, then none; what gives more tokens a second stays.
void trial(int64_t us_dense, bool skipping_stays) {
    Server server(2);
    server.prompt(5);
    server.round(4, 1, 10);
    server.round(4, 1, 10);
    for (int i = 0; i < DraftRounds::k_trial; ++i) {
        expect(server.rounds.skips(), "skipping is tried first");
        server.round(4, 1, 10);  // 2 tokens in 10 us
    }
    for (int i = 0; i < DraftRounds::k_trial; ++i) {
        expect(!server.rounds.skips() && !server.rounds.loses(), "then none");
        server.round(4, 3, us_dense);
    }
    server.round(4, 3, us_dense);
    expect(server.rounds.skips() == skipping_stays && server.rounds.loses() != skipping_stays, "the faster one stays");
    for (const int64_t us : { 1, 1000 }) {
        for (int i = 0; i < 3 * DraftRounds::k_trial; ++i) {
            server.round(4, 1, us);
        }
        expect(server.rounds.skips() == skipping_stays, "for good");
    }
}

// Nothing was generated while the server waited for a prompt.
void idle_time() {
    Server server(1);
    server.prompt(5);
    server.round(4, 1, 10);
    server.round(4, 1, 10);
    server.now += 1000000;
    server.prompt(5);
    server.round(4, 1, 10);
    server.round(4, 1, 10);
    server.round(4, 1, 10);
    expect(server.rounds.all().us == 10 && server.rounds.all().tokens == 2, "does not count");
}

}  // namespace

int main() {
    acceptance();
    trial(10, false);
    trial(40, true);
    idle_time();
    return result();
}
