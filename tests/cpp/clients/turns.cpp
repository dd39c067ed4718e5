// turns MODEL N [shift] SEQ...: for each of the sequences SEQ, N tokens after its prompt, then a second prompt behind them,
// and N tokens more. They begin one after another and are decoded together. With "shift" all that a sequence holds moves up
// by one position before its second prompt. A line of tokens per sequence and turn.
#include "client.h"

#include <cstring>

namespace {

constexpr int k_begin_every = 3;  // steps

struct Sequence {
    llama_seq_id             seq = 0;
    llama_pos                pos = 0;
    int32_t                  row = -1;  // of the batch, whose output is its next token
    std::vector<llama_token> fed;
    std::vector<llama_token> tokens;
};

void add_rows(llama_batch & batch, Sequence & sequence) {
    for (size_t i = 0; i < sequence.fed.size(); ++i) {
        sequence.row = add_row(batch, sequence.seq, sequence.pos++, sequence.fed[i], i + 1 == sequence.fed.size());
    }
}

}  // namespace

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

    llama_batch batch = llama_batch_init(256, 0, 1);
    for (size_t step = 0, done = 0; done < sequences.size(); ++step) {
        const auto begun = [&](const Sequence & sequence) { return step >= size_t(sequence.seq) * k_begin_every; };
        batch.n_tokens   = 0;
        for (Sequence & sequence : sequences) {
            if (begun(sequence) && sequence.tokens.size() < 2 * n_tokens) {
                add_rows(batch, sequence);
            }
        }
        require(llama_decode(ctx.get(), batch) == 0, "decode failed");
        for (Sequence & sequence : sequences) {
            if (!begun(sequence) || sequence.tokens.size() == 2 * n_tokens) {
                continue;
            }
            sequence.tokens.push_back(greedy(model, ctx.get(), sequence.row));
            sequence.fed.assign(1, sequence.tokens.back());
            if (sequence.tokens.size() == n_tokens) {
                const std::vector<llama_token> next = prompt_of(model, 3);
                sequence.fed.insert(sequence.fed.end(), next.begin(), next.end());
                if (shift) {
                    llama_memory_seq_add(llama_get_memory(ctx.get()), sequence.seq, 0, -1, 1);
                    ++sequence.pos;
                }
            }
            done += sequence.tokens.size() == 2 * n_tokens;
        }
    }
    llama_batch_free(batch);
    for (const Sequence & sequence : sequences) {
        const auto half = sequence.tokens.begin() + std::ptrdiff_t(n_tokens);
        print_tokens({ sequence.tokens.begin(), half });
        print_tokens({ half, sequence.tokens.end() });
    }
}
