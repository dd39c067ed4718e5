// turns MODEL N [shift] SEQ...: for each of the sequences SEQ, N tokens after its prompt, then a second prompt behind them,
// and N tokens more. They begin one after another and are decoded together. With "shift" all that a sequence holds moves up
// by one position before its second prompt. A line of tokens per sequence and turn.
#include "client.h"

#include <cstring>

constexpr size_t k_begin_every = 3;  // steps

int main(int argc, char ** argv) {
    const bool shift = argc > 3 && std::strcmp(argv[3], "shift") == 0;
    require(argc > 3 + int(shift), "usage: turns MODEL N [shift] SEQ...");
    const Model  model    = load(argv[1]);
    const size_t n_tokens = size_t(std::atoi(argv[2]));

    std::vector<Sequence> sequences(size_t(argc - 3 - int(shift)));
    for (size_t i = 0; i < sequences.size(); ++i) {
        sequences[i].seq = llama_seq_id(i);
        sequences[i].fed = prompt_of(model, std::atoi(argv[3 + size_t(shift) + i]));
    }
    llama_context_params params = exact_params();
    params.n_seq_max            = uint32_t(sequences.size());
    params.kv_unified           = true;
    const Context ctx           = make_context(model, params);

    size_t     step = 0, n_done = 0;
    const auto takes_part = [&](const Sequence & sequence) {
        return step >= size_t(sequence.seq) * k_begin_every && sequence.tokens.size() < 2 * n_tokens;
    };
    const auto done = [&](Sequence & sequence) {
        if (sequence.tokens.size() == n_tokens) {
            const std::vector<llama_token> next = prompt_of(model, 3);
            sequence.fed.insert(sequence.fed.end(), next.begin(), next.end());
            if (shift) {
                llama_memory_seq_add(llama_get_memory(ctx.get()), sequence.seq, 0, -1, 1);
                ++sequence.pos;
            }
        }
        n_done += sequence.tokens.size() == 2 * n_tokens;
    };
    for (; n_done < sequences.size(); ++step) {
        decode_together(model, ctx.get(), sequences, takes_part, done);
    }
    for (const Sequence & sequence : sequences) {
        const auto half = sequence.tokens.begin() + std::ptrdiff_t(n_tokens);
        print_tokens({ sequence.tokens.begin(), half });
        print_tokens({ half, sequence.tokens.end() });
    }
}
