// drafting MODEL DRAFT N K WARM_UP SEQ...: N greedy tokens of each of the sequences SEQ, all decoded together. DRAFT drafts K
// tokens for each, and MODEL verifies them; where DRAFT is "-", nobody drafts.
//
// As llama.cpp's servers do it: what MODEL decodes, DRAFT decodes after it, with an output of the last row alone that nobody
// reads; what it drafts it decodes token by token, and takes back again. A line of tokens per sequence; then, on stderr, what
// was drafted and accepted, and how many rows DRAFT decoded of tokens past WARM_UP generated ones.
#include "client.h"

#include <cstring>

namespace {

struct Text {
    llama_seq_id             seq      = 0;
    size_t                   n_prompt = 0;
    std::vector<llama_token> all;  // prompt and what was generated
    std::vector<llama_token> draft;
    llama_pos                n_decoded = 0;  // by both
};

struct Program {
    Model       model, draft_model;
    Context     ctx, draft_ctx;
    llama_batch batch   = llama_batch_init(512, 0, 1);
    int         warm_up = 0;
    long        drafted = 0, accepted = 0, past_warm_up = 0;

    void count(const Text & text, llama_pos pos) { past_warm_up += pos >= llama_pos(text.n_prompt) + warm_up; }

    void draft(std::vector<Text> & texts, size_t k) {
        for (size_t i = 0; i < k; ++i) {
            batch.n_tokens = 0;
            for (Text & text : texts) {
                const llama_pos pos = llama_pos(text.all.size() - 1 + i);
                add_row(batch, text.seq, pos, i == 0 ? text.all.back() : text.draft.back(), true);
                count(text, pos);
            }
            require(llama_decode(draft_ctx.get(), batch) == 0, "the draft does not decode");
            for (size_t row = 0; row < texts.size(); ++row) {
                texts[row].draft.push_back(greedy(draft_model, draft_ctx.get(), int32_t(row)));
            }
        }
        for (Text & text : texts) {
            llama_memory_seq_rm(llama_get_memory(draft_ctx.get()), text.seq, text.n_decoded, -1);
        }
    }

    // What is not decoded yet of each text, and its draft; then each goes on with what is right of the draft, and one more.
    void verify(std::vector<Text> & texts) {
        batch.n_tokens = 0;
        std::vector<int32_t> rows;
        for (Text & text : texts) {
            std::vector<llama_token> fed(text.all.begin() + text.n_decoded, text.all.end());
            rows.push_back(batch.n_tokens + int32_t(fed.size()) - 1);
            fed.insert(fed.end(), text.draft.begin(), text.draft.end());
            for (size_t i = 0; i < fed.size(); ++i) {
                const llama_pos pos = text.n_decoded + llama_pos(i);
                add_row(batch, text.seq, pos, fed[i], pos + 1 >= llama_pos(text.all.size()));
                count(text, draft_ctx == nullptr ? -1 : pos);
            }
        }
        require(llama_decode(ctx.get(), batch) == 0, "decode failed");
        for (size_t i = 0; i < texts.size(); ++i) {
            Text & text    = texts[i];
            text.n_decoded = llama_pos(text.all.size());
            drafted += long(text.draft.size());
            for (size_t right = 0;; ++right) {
                const llama_token token = greedy(model, ctx.get(), rows[i] + int32_t(right));
                text.all.push_back(token);
                if (right == text.draft.size() || token != text.draft[right]) {
                    break;
                }
                ++accepted;
                ++text.n_decoded;
            }
            text.draft.clear();
            llama_memory_seq_rm(llama_get_memory(ctx.get()), text.seq, text.n_decoded, -1);
        }
        if (draft_ctx == nullptr) {
            return;
        }
        for (int32_t row = 0; row < batch.n_tokens; ++row) {
            batch.logits[row] = row + 1 == batch.n_tokens;
        }
        require(llama_decode(draft_ctx.get(), batch) == 0, "the draft does not decode");
        for (Text & text : texts) {
            llama_memory_seq_rm(llama_get_memory(draft_ctx.get()), text.seq, text.n_decoded, -1);
        }
    }
};

}  // namespace

int main(int argc, char ** argv) {
    require(argc >= 7, "usage: drafting MODEL DRAFT N K WARM_UP SEQ...");
    const size_t n_tokens = size_t(std::atoi(argv[3]));
    const bool   drafts   = std::strcmp(argv[2], "-") != 0;

    llama_context_params params = exact_params();
    params.n_ctx                = 8192;
    params.n_seq_max            = 8;
    params.kv_unified           = true;
    Program program;
    program.warm_up = std::atoi(argv[5]);
    program.model   = load(argv[1]);
    program.ctx     = make_context(program.model, params);
    if (drafts) {
        program.draft_model = load(argv[2]);
        program.draft_ctx   = make_context(program.draft_model, params);
    }
    std::vector<Text> texts;
    for (int i = 6; i < argc; ++i) {
        Text text;
        text.seq      = llama_seq_id(texts.size());
        text.all      = prompt_of(program.model, std::atoi(argv[i]));
        text.n_prompt = text.all.size();
        texts.push_back(text);
    }
    const auto is_done = [&](const Text & text) { return text.all.size() >= text.n_prompt + n_tokens; };
    program.verify(texts);  // the prompts, from which come the first tokens
    while (!std::all_of(texts.begin(), texts.end(), is_done)) {
        if (drafts) {
            program.draft(texts, size_t(std::atoi(argv[4])));
        }
        program.verify(texts);
    }
    for (const Text & text : texts) {
        const auto begin = text.all.begin() + std::ptrdiff_t(text.n_prompt);
        print_tokens({ begin, begin + std::ptrdiff_t(n_tokens) });
    }
    std::fprintf(stderr, "%ld drafted, %ld accepted, %ld past the warm-up\n", program.drafted, program.accepted,
                 program.past_warm_up);
    llama_batch_free(program.batch);
}
