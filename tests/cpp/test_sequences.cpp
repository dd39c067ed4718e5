// Property: the controller tells generated tokens from prompt tokens whatever is done to the sequences, and what a
// sequence gets does not depend on its neighbours.
#include "clients/client.h"
#include "expect.h"
#include "ffnskip/ffnskip.h"
#include "layer_budget.h"

#include <functional>
#include <string>
#include <utility>

using namespace ffnskip;

namespace {

constexpr int k_max_skip = 3;

// A context with a controller of which every token that may skip does skip k_max_skip blocks.
struct Skipping {
    Controller controller;
    Context    ctx;

    Skipping(const Model & model, int warm_up, bool unified = true) : Skipping(model, random(warm_up), unified) {}
    Skipping(const Model & model, const Config & config, bool unified = true) {
        llama_context_params params = exact_params();
        params.n_ctx                = 1024;
        params.n_seq_max            = 4;
        params.kv_unified           = unified;
        controller.attach(params);
        ctx = make_context(model, params);
        controller.probe(ctx.get());
        controller.set_config(config);
    }

    static Config random(int warm_up) {
        Config config;
        config.policy        = Policy::random;
        config.region        = Region::adaptive;
        config.max_skip      = k_max_skip;
        config.warm_up_index = warm_up;
        return config;
    }

    llama_memory_t memory() const { return llama_get_memory(ctx.get()); }

    // Tokens of one sequence from `pos` on; output of the last one if `output`.
    int32_t feed(llama_seq_id seq, llama_pos pos, std::vector<llama_token> tokens, bool output = true) {
        llama_batch batch = llama_batch_init(int32_t(tokens.size()), 0, 1);
        for (size_t i = 0; i < tokens.size(); ++i) {
            add_row(batch, seq, pos + llama_pos(i), tokens[i], output && i + 1 == tokens.size());
        }
        const int32_t status = controller.decode(ctx.get(), batch);
        llama_batch_free(batch);
        return status;
    }

    // Whether the token was checked, under settings that skip wherever they are.
    bool is_checked(llama_seq_id seq, llama_pos pos) {
        controller.reset_stats();
        expect(feed(seq, pos, { 8 }) == 0, "decode");
        const Stats stats = controller.stats();
        expect(stats.tokens == 1 && stats.checks <= 1 && stats.ffn_skipped == k_max_skip, "it skips all the same");
        return stats.checks == 1;
    }

    // Whether the token counts as generated, and whether it skipped.
    std::pair<bool, bool> kind_of(llama_seq_id seq, llama_pos pos, llama_token token) {
        controller.reset_stats();
        expect(feed(seq, pos, { token }) == 0, "decode");
        const Stats stats = controller.stats();
        expect(stats.ffn_skipped == 0 || stats.ffn_skipped == k_max_skip, "all or nothing");
        return { stats.tokens == 1, stats.ffn_skipped > 0 };
    }
};

const std::pair<bool, bool> k_prompt = { false, false }, k_warm_up = { true, false }, k_skips = { true, true };

// Largest difference of two models' outputs, relative to the largest output.
double difference(const std::vector<float> & a, const std::vector<float> & b) {
    double most = 0, scale = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        most  = std::max(most, std::abs(double(a[i]) - double(b[i])));
        scale = std::max(scale, std::abs(double(b[i])));
    }
    return most / scale;
}

std::vector<float> last_logits(Skipping & s) {
    const float * logits = llama_get_logits_ith(s.ctx.get(), -1);
    return { logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(s.ctx.get()))) };
}

void prompts_and_warm_up(const Model & model) {
    Skipping s(model, 2);
    s.feed(0, 0, { 5, 6, 7 }, false);
    s.feed(0, 3, { 8 }, false);
    expect(s.controller.stats().tokens == 0, "a prompt's chunk of one token is no generated token");
    s.feed(0, 4, { 9 });
    expect(s.controller.stats().tokens == 0, "nor is its last token");
    expect(s.kind_of(0, 5, 10) == k_warm_up && s.kind_of(0, 6, 11) == k_warm_up, "two tokens of warm-up");
    expect(s.kind_of(0, 7, 12) == k_skips && s.kind_of(0, 8, 13) == k_skips, "then it skips");
    expect(s.kind_of(1, 0, 5) == k_prompt, "a prompt of one token is a prompt");
    expect(s.kind_of(1, 1, 6) == k_warm_up, "each sequence has a warm-up of its own");
    expect(s.kind_of(0, 9, 14) == k_skips, "which leaves the others alone");
    s.feed(0, 10, { 5, 6 });
    expect(s.kind_of(0, 12, 7) == k_warm_up, "a second prompt begins the count anew");
}

void rows_taken_back(const Model & model) {
    Skipping s(model, 0);
    s.feed(0, 0, { 5, 6, 7 });
    expect(s.kind_of(0, 3, 8) == k_skips && s.kind_of(0, 4, 9) == k_skips, "generates");
    llama_memory_seq_rm(s.memory(), 0, 4, -1);
    expect(s.kind_of(0, 4, 9) == k_prompt, "a token evaluated again after it was taken back is a prompt token");
    expect(s.kind_of(0, 5, 10) == k_skips, "and generation goes on");
    llama_memory_seq_rm(s.memory(), 0, -1, -1);
    expect(s.kind_of(0, 0, 5) == k_prompt && s.kind_of(0, 1, 6) == k_skips, "a slot used again");
    llama_memory_clear(s.memory(), true);
    expect(s.kind_of(0, 0, 5) == k_prompt, "a memory cleared");
}

void copies(const Model & model) {
    Skipping s(model, 1);
    s.feed(0, 0, { 5, 6, 7 });
    llama_memory_seq_cp(s.memory(), 0, 1, -1, -1);
    s.controller.copied(0, 1);
    expect(s.kind_of(0, 3, 8) == k_warm_up && s.kind_of(1, 3, 9) == k_warm_up,
           "the copy goes on where the original was");
    expect(s.kind_of(1, 4, 9) == k_skips && s.kind_of(0, 4, 8) == k_skips, "each by itself from there on");
    llama_memory_seq_cp(s.memory(), 0, 2, -1, -1);
    expect(s.kind_of(2, 5, 8) == k_prompt && s.kind_of(2, 6, 8) == k_warm_up,
           "a copy not told of begins with a prompt token");
}

void shifts(const Model & model) {
    Skipping s(model, 1);
    s.feed(0, 0, { 5, 6, 7, 8 });
    expect(s.kind_of(0, 4, 9) == k_warm_up && s.kind_of(0, 5, 10) == k_skips, "generates");
    llama_memory_seq_rm(s.memory(), 0, 1, 3);
    llama_memory_seq_add(s.memory(), 0, 3, -1, -2);
    s.controller.shifted(0, 3, -1, -2);
    expect(s.kind_of(0, 4, 11) == k_skips, "a shifted sequence goes on skipping");
    llama_memory_seq_rm(s.memory(), 0, 1, 3);
    llama_memory_seq_add(s.memory(), 0, 3, -1, -2);
    expect(s.kind_of(0, 3, 12) == k_prompt, "a shift not told of begins with a prompt token");
}

// Two tokens that skipped are taken out and others move up: all that follow, or two of them, after which the text ends.
void shifts_and_reuse(const Model & model) {
    for (const llama_pos end : { -1, 9 }) {
        Skipping s(model, 0);
        s.controller.set_reuse(Reuse::full);
        s.feed(0, 0, { 5, 6, 7, 8, 9 });
        for (llama_token i = 0; i < 6; ++i) {
            s.feed(0, 5 + i, { 10 + i });
        }
        expect(s.controller.first_to_repeat(0, 11) == 5, "skips from the first token on");
        llama_memory_seq_rm(s.memory(), 0, 5, 7);
        llama_memory_seq_add(s.memory(), 0, 7, end, -2);
        s.controller.shifted(0, 7, end, -2);
        std::vector<llama_token> text = { 5, 6, 7, 8, 9, 12, 13, 14, 15 };
        if (end > 0) {
            llama_memory_seq_rm(s.memory(), 0, end - 2, -1);
            text.resize(size_t(end - 2));
        }
        s.feed(0, llama_pos(text.size()), { 20, 21, 22 });
        text.insert(text.end(), { 20, 21, 22 });
        Skipping fresh(model, 0);
        fresh.feed(0, 0, text);
        expect(difference(last_logits(s), last_logits(fresh)) < 1e-3,
               "what is left of the text is computed again in full");
    }
}

void states_loaded(const Model & model) {
    Skipping s(model, 0);
    s.feed(0, 0, { 5, 6, 7 });
    std::vector<uint8_t> state(llama_state_seq_get_size(s.ctx.get(), 0));
    expect(llama_state_seq_get_data(s.ctx.get(), state.data(), state.size(), 0) == state.size(), "state saved");
    expect(s.kind_of(0, 3, 8) == k_skips, "generates");
    llama_memory_seq_rm(s.memory(), 0, 3, -1);
    s.feed(0, 3, { 9 });
    expect(llama_state_seq_set_data(s.ctx.get(), state.data(), state.size(), 0) > 0, "state loaded");
    s.controller.replaced(0);
    expect(s.kind_of(0, 3, 8) == k_prompt, "nothing is known of a sequence loaded from elsewhere");

    Skipping          warming(model, 2);
    llama_token       token = 9;
    const llama_batch one   = llama_batch_get_one(&token, 1);
    warming.feed(0, 0, { 5, 6, 7 });
    warming.controller.replaced(0);
    expect(warming.controller.decode(warming.ctx.get(), one, Fed::generated) == 0, "decode");
    expect(warming.controller.stats().tokens == 1 && warming.controller.stats().ffn_skipped == 0,
           "a token declared there is the first of its generation");
}

void refused_batches(const Model & model) {
    Skipping s(model, 0);
    s.feed(0, 0, { 5, 6, 7 });
    expect(s.feed(99, 0, { 5 }) == -1, "a sequence that does not exist");
    expect(s.feed(0, 9, { 5 }) == -1, "a position that does not follow");
    expect(s.kind_of(0, 3, 8) == k_skips, "and generation goes on");
}

// A token and a draft of what follows, all with outputs, as a server verifies it.
int32_t feed_draft(Skipping & s, llama_pos pos, const std::vector<llama_token> & tokens) {
    llama_batch batch = llama_batch_init(int32_t(tokens.size()), 0, 1);
    for (size_t i = 0; i < tokens.size(); ++i) {
        add_row(batch, 0, pos + llama_pos(i), tokens[i], true);
    }
    const int32_t status = s.controller.decode(s.ctx.get(), batch);
    llama_batch_free(batch);
    return status;
}

void drafts(const Model & model) {
    Skipping s(model, 2);
    s.feed(0, 0, { 5, 6, 7 });
    s.controller.reset_stats();
    expect(feed_draft(s, 3, { 8, 9, 10, 11 }) == 0, "a token and three drafted ones");
    expect(s.controller.stats().tokens == 4, "count as generated");
    expect(s.controller.stats().ffn_skipped == 2 * k_max_skip, "two of them past the warm-up");
    llama_memory_seq_rm(s.memory(), 0, 5, -1);  // 10 and 11 are refused
    expect(s.kind_of(0, 5, 12) == k_skips, "the token in place of a refused one is the third generated");
    llama_memory_seq_rm(s.memory(), 0, 4, -1);
    expect(s.kind_of(0, 4, 9) == k_prompt, "what was taken back further is evaluated as a prompt");
    s.feed(0, 5, { 5, 6, 7 });
    s.controller.reset_stats();
    expect(feed_draft(s, 8, std::vector<llama_token>(65, 8)) == 0 && s.controller.stats().tokens == 0,
           "more rows than a draft has are a text to be scored");
}

// Rows of several sequences in a context that drafts; an output of the last row alone, as servers ask for them there.
struct Row {
    llama_seq_id seq;
    llama_pos    pos;
    llama_token  token;
};

uint64_t n_generated(Skipping & s, const std::vector<Row> & rows) {
    llama_batch batch = llama_batch_init(int32_t(rows.size()), 0, 1);
    for (const Row & row : rows) {
        add_row(batch, row.seq, row.pos, row.token, &row == &rows.back());
    }
    s.controller.reset_stats();
    const auto               run  = [](void * call) { return (*static_cast<std::function<int32_t()> *>(call))(); };
    std::function<int32_t()> call = [&] { return llama_decode(s.ctx.get(), batch); };
    expect(s.controller.decode(s.ctx.get(), batch, run, &call, Fed::draft) == 0, "decode");
    s.controller.outputs_unread();
    llama_batch_free(batch);
    return s.controller.stats().tokens;
}

void drafted_and_verified(const Model & model) {
    Skipping s(model, 4);
    expect(n_generated(s, { { 0, 0, 5 }, { 0, 1, 6 }, { 1, 0, 5 }, { 1, 1, 6 }, { 1, 2, 7 } }) == 0, "two prompts");
    expect(n_generated(s, { { 0, 2, 8 }, { 1, 3, 8 } }) == 2, "a token of each, from which drafts begin");
    expect(n_generated(s, { { 0, 3, 9 }, { 1, 4, 9 } }) == 2 && n_generated(s, { { 0, 4, 10 } }) == 1, "and go on");
    llama_memory_seq_rm(s.memory(), 0, 2, -1);
    llama_memory_seq_rm(s.memory(), 1, 3, -1);
    expect(n_generated(s, { { 0, 2, 8 }, { 0, 3, 9 }, { 0, 4, 10 }, { 0, 5, 11 }, { 1, 3, 8 }, { 1, 4, 9 } }) == 6,
           "the rows that were verified, and a last one that was not decoded before");
    expect(s.controller.stats().ffn_skipped == 0, "are tokens of the warm-up");
    llama_memory_seq_rm(s.memory(), 0, 5, -1);  // 11 is refused
    expect(n_generated(s, { { 0, 5, 12 }, { 1, 5, 12 } }) == 2, "generation goes on where it was");
    expect(s.controller.stats().ffn_skipped == 0, "in its fourth token, and its third");
    expect(n_generated(s, { { 0, 6, 13 } }) == 1 && s.controller.stats().ffn_skipped == k_max_skip, "and then skips");
    llama_memory_seq_rm(s.memory(), 0, 5, -1);
    expect(n_generated(s, { { 0, 5, 12 }, { 0, 6, 14 } }) == 0, "other tokens than those drafted are a prompt");
    expect(n_generated(s, { { 0, 7, 15 } }) == 1 && s.controller.stats().ffn_skipped == 0, "with a warm-up after it");
    llama_memory_seq_rm(s.memory(), 1, 0, -1);
    expect(n_generated(s, { { 1, 0, 5 }, { 1, 1, 6 }, { 1, 2, 7 } }) == 0, "the same prompt again is one again");
    expect(n_generated(s, { { 0, 8, 15 }, { 0, 9, 16 }, { 0, 10, 17 } }) == 0, "as are several that nobody drafted");
}

void declared(const Model & model) {
    Skipping          s(model, 0);
    llama_token       tokens[] = { 5, 6, 7 };
    const llama_batch one      = llama_batch_get_one(tokens, 1);
    s.controller.decode(s.ctx.get(), one, Fed::prompt);
    s.controller.decode(s.ctx.get(), one, Fed::prompt);
    expect(s.controller.stats().tokens == 0, "a prompt fed token by token, told so");
    s.controller.decode(s.ctx.get(), llama_batch_get_one(tokens, 3), Fed::generated);
    expect(s.controller.stats().tokens == 3, "generated tokens, told so");
    s.controller.outputs_unread();
    s.controller.decode(s.ctx.get(), one);
    expect(s.controller.stats().tokens == 3, "nothing was sampled from outputs that nobody read");
}

// Logits after a prompt that follows an answer which skipped; `plain`: the same text without anything skipped.
std::vector<float> second_turn(const Model & model, Reuse reuse, bool plain, bool other_settings) {
    Skipping s(model, 0);
    s.controller.set_reuse(reuse);
    if (plain) {
        Config dense;
        dense.policy = Policy::dense;
        s.controller.set_config(dense);
    }
    s.feed(0, 0, { 5, 6, 7 });
    for (llama_token i = 0; i < 6; ++i) {
        s.feed(0, 3 + i, { 8 + i });
    }
    expect((s.controller.stats().ffn_skipped == 0) == plain, "it skips unless it is dense");
    if (other_settings) {
        Config config   = s.controller.config();
        config.max_skip = k_max_skip + 1;
        s.controller.set_config(config);
    }
    s.feed(0, 9, { 20, 21, 22 });
    expect(llama_memory_seq_pos_max(s.memory(), 0) == 11, "the text is all there");
    return last_logits(s);
}

void reuse(const Model & model) {
    const std::vector<float> plain = second_turn(model, Reuse::all, true, false);
    // In batches of other sizes, so to rounding.
    expect(difference(second_turn(model, Reuse::full, false, false), plain) < 1e-3, "full: as if nothing had skipped");
    expect(difference(second_turn(model, Reuse::all, false, true), plain) < 1e-3,
           "nor is what other settings skipped reused");
    expect(difference(second_turn(model, Reuse::all, false, false), plain) > 1e-3,
           "all: the prompt builds on what skipped");
}

void warm_up_is_full(const Model & model) {
    Skipping s(model, 4);
    s.controller.set_reuse(Reuse::full);
    s.feed(0, 0, { 5, 6, 7 });
    for (llama_token i = 0; i < 6; ++i) {
        s.feed(0, 3 + i, { 8 + i });
    }
    expect(s.controller.first_to_repeat(0, 9) == 7, "four tokens of warm-up count as full");
    llama_memory_seq_rm(s.memory(), 0, 7, -1);
    s.feed(0, 7, { 5, 6 });
    expect(s.controller.first_to_repeat(0, 9) == 9, "nothing is left of what was taken back");
    llama_memory_seq_cp(s.memory(), 0, 1, -1, -1);
    s.controller.copied(0, 1);
    s.feed(1, 9, { 5 });
    s.feed(1, 10, { 5 });
    expect(s.controller.first_to_repeat(1, 11) == 11 && s.controller.first_to_repeat(0, 9) == 9,
           "a copy has its own account");
}

void saved_accounts(const Model & model) {
    Skipping s(model, 2);
    s.feed(0, 0, { 5, 6, 7 });
    s.feed(0, 3, { 8 });
    s.feed(0, 4, { 9 });
    std::vector<uint8_t> state(llama_state_seq_get_size(s.ctx.get(), 0));
    llama_state_seq_get_data(s.ctx.get(), state.data(), state.size(), 0);
    const std::string account = s.controller.account(0);
    s.feed(0, 5, { 5, 5 });
    llama_memory_seq_rm(s.memory(), 0, -1, -1);
    llama_state_seq_set_data(s.ctx.get(), state.data(), state.size(), 0);
    s.controller.restore(0, account);
    expect(s.kind_of(0, 5, 10) == k_skips, "a state loaded with its account goes on past its warm-up");
    bool refused = false;
    try {
        s.controller.restore(0, account.substr(1));
    } catch (const std::invalid_argument &) {
        refused = true;
    }
    expect(refused, "other bytes are refused");
}

// Every third token is checked: the count is the sequence's own, and goes where the sequence goes.
void intervals(const Model & model) {
    Config config;
    config.sim_threshold  = -1;
    config.max_skip       = k_max_skip;
    config.warm_up_index  = 0;
    config.check_interval = 3;
    Skipping s(model, config);
    s.feed(0, 0, { 5, 6, 7, 8, 9 });
    expect(s.is_checked(0, 5) && !s.is_checked(0, 6) && !s.is_checked(0, 7) && s.is_checked(0, 8), "every third");
    s.feed(1, 0, { 5, 6, 7 });
    expect(s.is_checked(1, 3) && !s.is_checked(0, 9) && !s.is_checked(1, 4), "each sequence by itself");

    llama_memory_seq_cp(s.memory(), 0, 2, -1, -1);
    s.controller.copied(0, 2);
    expect(!s.is_checked(2, 10) && s.is_checked(2, 11) && !s.is_checked(0, 10), "a copy goes on in the count");

    llama_memory_seq_rm(s.memory(), 0, 1, 4);
    llama_memory_seq_add(s.memory(), 0, 4, -1, -3);
    s.controller.shifted(0, 4, -1, -3);
    expect(s.is_checked(0, 8) && !s.is_checked(0, 9), "tokens count, not positions");

    const std::string    account = s.controller.account(0);
    std::vector<uint8_t> state(llama_state_seq_get_size(s.ctx.get(), 0));
    llama_state_seq_get_data(s.ctx.get(), state.data(), state.size(), 0);
    llama_state_seq_set_data(s.ctx.get(), state.data(), state.size(), 3);
    expect(s.feed(3, 10, { 8 }) == 0, "a state without its account: a prompt");
    llama_memory_seq_rm(s.memory(), 0, -1, -1);
    s.controller.replaced(0);
    llama_state_seq_set_data(s.ctx.get(), state.data(), state.size(), 0);
    s.controller.restore(0, account);
    expect(!s.is_checked(0, 10) && s.is_checked(0, 11), "with it, it goes on in the count");
    s.controller.count_from_here(0);
    s.controller.reset_stats();
    expect(s.feed(0, 12, { 8 }) == 0 && s.controller.stats().checks == 1, "the first token of another count");

    s.feed(0, 13, { 5, 6 });
    expect(s.is_checked(0, 15) && !s.is_checked(0, 16), "so is that after a prompt");
    expect(feed_draft(s, 17, { 8, 8, 8 }) == 0, "a draft, whose second token is checked");
    llama_memory_seq_rm(s.memory(), 0, 18, -1);
    expect(s.is_checked(0, 18) && !s.is_checked(0, 19), "so is the token in place of a refused one");
}

// What comes of sequences with layers left out that are copied, shifted, cut, saved and loaded: outputs, one after the other.
std::vector<float> with_layers_left_out(const Model & model, bool poisoned) {
    constexpr llama_pos k_decay = 16;
    Config              config;
    config.policy       = Policy::skip_decode;
    config.budget_decay = k_decay;
    Skipping  s(model, config);
    const int n_most = s.controller.settings().max_left_out;
    for (llama_token i = 0; poisoned && i < 200; ++i) {  // what cells hold is left there when they are freed
        llama_token token = i;
        llama_decode(s.ctx.get(), llama_batch_get_one(&token, 1));
    }
    llama_memory_clear(s.memory(), false);

    std::vector<float> out;
    const auto         feed = [&](llama_seq_id seq, llama_pos pos, std::vector<llama_token> tokens) {
        expect(s.feed(seq, pos, std::move(tokens)) == 0, "decode");
        const std::vector<float> logits = last_logits(s);
        out.insert(out.end(), logits.begin(), logits.end());
    };
    const auto left_out = [&](llama_seq_id seq, llama_pos pos) {
        s.controller.reset_stats();
        feed(seq, pos, { 9 });
        expect(s.controller.stats().tokens == 1, "a generated token");
        expect(s.controller.stats().ffn_skipped == s.controller.stats().attention_skipped, "whole layers");
        return int(s.controller.stats().ffn_skipped);
    };
    feed(0, 0, { 5, 6, 7, 8 });
    for (llama_pos pos = 4; pos < 20; ++pos) {
        expect(left_out(0, pos) == s.controller.settings().n_left_out(pos), "more and more");
    }
    expect(left_out(0, 20) == n_most, "at the end of the fall as many as there are");

    llama_memory_seq_cp(s.memory(), 0, 2, -1, -1);
    s.controller.copied(0, 2);
    feed(2, 21, { 5, 6, 7 });
    expect(left_out(2, 24) == n_most && left_out(0, 21) == n_most, "a copy, and a prompt behind it");

    llama_memory_seq_rm(s.memory(), 2, 6, -1);
    feed(2, 6, { 5 });
    expect(left_out(2, 7) == s.controller.settings().n_left_out(7) && n_most > left_out(2, 8),
           "cut to where fewer were left out");
    llama_memory_seq_rm(s.memory(), 2, -1, -1);
    feed(2, 0, { 5, 6 });
    expect(left_out(2, 2) == s.controller.settings().n_left_out(2), "emptied");

    // By itself again: llama.cpp moves a cell for all sequences that it belongs to.
    llama_memory_seq_rm(s.memory(), 0, 1, 15);
    llama_memory_seq_add(s.memory(), 0, 15, -1, -14);
    s.controller.shifted(0, 15, -1, -14);
    expect(left_out(0, 8) == n_most, "no fewer at an earlier position");
    feed(0, 9, { 5, 6, 7 });

    const std::string    account = s.controller.account(0);
    std::vector<uint8_t> state(llama_state_seq_get_size(s.ctx.get(), 0));
    llama_state_seq_get_data(s.ctx.get(), state.data(), state.size(), 0);
    llama_state_seq_set_data(s.ctx.get(), state.data(), state.size(), 1);
    s.controller.restore(1, account);
    expect(left_out(1, 12) == n_most, "a state with its account");
    llama_state_seq_set_data(s.ctx.get(), state.data(), state.size(), 3);
    s.controller.replaced(3);
    feed(3, 12, { 5, 6 });
    expect(left_out(3, 14) == n_most, "one of which nothing is known");
    return out;
}

void layers_left_out(const Model & model) {
    expect(with_layers_left_out(model, false) == with_layers_left_out(model, true), "what cells held does not matter");
    LayerBudget budget{ std::vector<LayerBudget::Step>() };
    budget.add(3, 2, 8);
    budget.add(4, 2, 8);
    budget.add(5, 4, 8);
    bool refused = false;
    try {
        budget.add(6, 3, 8);
    } catch (const std::logic_error &) {
        refused = true;
    }
    expect(refused && budget.before(6, 8) == 4 && budget.before(5, 8) == 2 && budget.before(3, 8) == 0,
           "it never falls");
    budget.cut(5);
    expect(budget.before(9, 8) == 2, "but with the tokens that are gone");
    expect(LayerBudget().before(1, 8) == 8 && LayerBudget().before(0, 8) == 0, "nothing is known");
}

// What a caller's own call throws passes through, and the next decode is not confused by it.
void exceptions(const Model & model) {
    Skipping s(model, 0);
    s.feed(0, 0, { 5, 6, 7 });
    llama_token       token  = 8;
    const llama_batch batch  = llama_batch_get_one(&token, 1);
    bool              thrown = false;
    try {
        s.controller.decode(s.ctx.get(), batch, [](void *) -> int32_t { throw std::runtime_error("mine"); }, nullptr);
    } catch (const std::runtime_error & error) {
        thrown = std::string(error.what()) == "mine";
    }
    expect(thrown, "an exception of the caller's");
    expect(llama_decode(s.ctx.get(), batch) == 0 && s.controller.stats().tokens == 0,
           "llama_decode itself runs in full");
    expect(s.kind_of(0, 4, 9) == k_prompt, "and makes the account forget");
    expect(s.kind_of(0, 5, 10) == k_skips, "until it knows again");
    const RowKind kind = RowKind::skippable;
    expect(llama_decode(s.ctx.get(), batch) == 0 && s.controller.decode(s.ctx.get(), batch, &kind) == 0, "decode");
    expect(s.kind_of(0, 8, 11) == k_skips, "as it does of a row whose kind it is told");
}

// What each of three sequences gets: fed these tokens after its prompt, alone or all in one batch.
std::vector<float> logits(const Model & model, const std::vector<llama_seq_id> & seqs, bool unified, Stats & stats) {
    Skipping           s(model, 0, unified);
    std::vector<float> out;
    for (const llama_seq_id seq : seqs) {
        s.feed(seq, 0, prompt_of(model, seq));
    }
    const int   n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    llama_batch batch   = llama_batch_init(8, 0, 1);
    for (int step = 0; step < 12; ++step) {
        batch.n_tokens = 0;
        for (const llama_seq_id seq : seqs) {
            add_row(batch, seq, llama_pos(prompt_of(model, seq).size()) + step, llama_token(step + 31 * seq), true);
        }
        expect(s.controller.decode(s.ctx.get(), batch) == 0, "decode");
        for (int32_t row = 0; row < batch.n_tokens; ++row) {
            const float * values = llama_get_logits_ith(s.ctx.get(), row);
            out.insert(out.end(), values, values + n_vocab);
        }
    }
    llama_batch_free(batch);
    stats = s.controller.stats();
    return out;
}

void neighbours(const Model & model) {
    constexpr double k_rounding = 0.02;  // of 8-bit activations; in float32 it is below 1e-5
    const size_t     n_vocab    = size_t(llama_vocab_n_tokens(llama_model_get_vocab(model.get())));
    for (const bool unified : { true, false }) {
        Stats                    together_stats, alone_stats;
        const std::vector<float> together = logits(model, { 0, 1, 3 }, unified, together_stats);
        uint64_t                 skipped = 0, column = 0;
        for (const llama_seq_id seq : { 0, 1, 3 }) {
            const std::vector<float> alone = logits(model, { seq }, unified, alone_stats);
            std::vector<float>       part;
            for (size_t step = 0; step < 12; ++step) {
                const auto first = together.begin() + std::ptrdiff_t((3 * step + column) * n_vocab);
                part.insert(part.end(), first, first + std::ptrdiff_t(n_vocab));
            }
            expect(difference(part, alone) < k_rounding,
                   "sequence " + std::to_string(seq) + " gets what it gets alone");
            skipped += alone_stats.ffn_skipped;
            ++column;
        }
        expect(together_stats.ffn_skipped == skipped && skipped == 3 * 12 * k_max_skip, "what is skipped adds up");
    }
}

}  // namespace

int main(int argc, char ** argv) {
    require(argc == 2, "usage: test_sequences MODEL");
    const Model model = load(argv[1]);
    prompts_and_warm_up(model);
    rows_taken_back(model);
    copies(model);
    shifts(model);
    shifts_and_reuse(model);
    states_loaded(model);
    refused_batches(model);
    drafts(model);
    drafted_and_verified(model);
    declared(model);
    reuse(model);
    warm_up_is_full(model);
    saved_accounts(model);
    intervals(model);
    layers_left_out(model);
    exceptions(model);
    neighbours(model);
    return result();
}
