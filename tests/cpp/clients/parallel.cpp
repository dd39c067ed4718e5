// parallel MODEL N [unified|split] [n_ubatch] SEQ...: N greedy tokens of each of the sequences SEQ, decoded together.
//
// They join one after another, while others generate, and leave when they have their tokens; whoever joins takes the
// slot, the sequence id, of one that left. A line of tokens per sequence.
#include "client.h"

#include <cstring>

namespace {

constexpr int k_slots      = 8;
constexpr int k_join_every = 3;  // steps

struct Sequence {
    int                      number = -1;
    llama_seq_id             slot   = -1;
    llama_pos                pos    = 0;
    int32_t                  row    = -1;  // of the batch, whose output is its next token
    std::vector<llama_token> fed;
    std::vector<llama_token> tokens;
};

void add_rows(llama_batch & batch, Sequence & sequence) {
    for (size_t i = 0; i < sequence.fed.size(); ++i) {
        sequence.row = add_row(batch, sequence.slot, sequence.pos++, sequence.fed[i], i + 1 == sequence.fed.size());
    }
}

}  // namespace

int main(int argc, char ** argv) {
    require(argc >= 6, "usage: parallel MODEL N unified|split N_UBATCH SEQ...");
    const size_t n_tokens = size_t(std::atoi(argv[2]));
    const Model  model    = load(argv[1]);

    llama_context_params params = exact_params();
    params.n_seq_max            = k_slots;
    params.kv_unified           = std::strcmp(argv[3], "unified") == 0;
    params.n_ubatch             = uint32_t(std::atoi(argv[4]));
    const Context ctx           = make_context(model, params);

    std::vector<Sequence> sequences;
    for (int i = 5; i < argc; ++i) {
        sequences.emplace_back();
        sequences.back().number = std::atoi(argv[i]);
        sequences.back().fed    = prompt_of(model, sequences.back().number);
    }
    std::vector<llama_seq_id> free_slots;
    for (llama_seq_id slot = k_slots - 1; slot >= 0; --slot) {
        free_slots.push_back(slot);
    }

    llama_batch batch  = llama_batch_init(256, 0, 1);
    size_t      joined = 0, done = 0;
    for (int step = 0; done < sequences.size(); ++step) {
        if (step % k_join_every == 0 && joined < sequences.size() && !free_slots.empty()) {
            sequences[joined++].slot = free_slots.back();
            free_slots.pop_back();
        }
        batch.n_tokens = 0;
        for (Sequence & sequence : sequences) {
            if (sequence.slot >= 0) {
                add_rows(batch, sequence);
            }
        }
        if (batch.n_tokens == 0) {
            continue;
        }
        require(llama_decode(ctx.get(), batch) == 0, "decode failed");
        for (Sequence & sequence : sequences) {
            if (sequence.slot < 0) {
                continue;
            }
            sequence.tokens.push_back(greedy(model, ctx.get(), sequence.row));
            sequence.fed.assign(1, sequence.tokens.back());
            if (sequence.tokens.size() == n_tokens) {
                llama_memory_seq_rm(llama_get_memory(ctx.get()), sequence.slot, -1, -1);
                free_slots.push_back(sequence.slot);
                sequence.slot = -1;
                ++done;
            }
        }
    }
    llama_batch_free(batch);
    for (const Sequence & sequence : sequences) {
        print_tokens(sequence.tokens);
    }
}
