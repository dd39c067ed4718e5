// parallel MODEL N [unified|split] [n_ubatch] SEQ...: N greedy tokens of each of the sequences SEQ, decoded together.
//
// They join one after another, while others generate, and leave when they have their tokens; whoever joins takes the
// slot, the sequence id, of one that left. A line of tokens per sequence.
#include "client.h"

#include <cstring>

constexpr int k_slots      = 8;
constexpr int k_join_every = 3;  // steps

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
        sequences.back().fed = prompt_of(model, std::atoi(argv[i]));
    }
    std::vector<llama_seq_id> free_slots;
    for (llama_seq_id slot = k_slots - 1; slot >= 0; --slot) {
        free_slots.push_back(slot);
    }

    size_t     joined = 0, n_done = 0;
    const auto done = [&](Sequence & sequence) {
        if (sequence.tokens.size() == n_tokens) {
            llama_memory_seq_rm(llama_get_memory(ctx.get()), sequence.seq, -1, -1);
            free_slots.push_back(sequence.seq);
            sequence.seq = -1;
            ++n_done;
        }
    };
    for (int step = 0; n_done < sequences.size(); ++step) {
        if (step % k_join_every == 0 && joined < sequences.size() && !free_slots.empty()) {
            sequences[joined++].seq = free_slots.back();
            free_slots.pop_back();
        }
        decode_together(model, ctx.get(), sequences, [](const Sequence & sequence) { return sequence.seq >= 0; }, done);
    }
    for (const Sequence & sequence : sequences) {
        print_tokens(sequence.tokens);
    }
}
