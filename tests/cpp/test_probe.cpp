// Property: a context is probed only where nothing of it gets lost; what is known of its model outlives the model.
#include "expect.h"

#include <ffnskip/ffnskip.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

using namespace ffnskip;

namespace {

int32_t decode_token(llama_context * ctx, llama_seq_id seq, llama_pos pos, llama_token token = 7) {
    llama_batch batch    = llama_batch_init(1, 0, 1);
    batch.n_tokens       = 1;
    batch.token[0]       = token;
    batch.pos[0]         = pos;
    batch.n_seq_id[0]    = 1;
    batch.seq_id[0][0]   = seq;
    batch.logits[0]      = 1;
    const int32_t status = llama_decode(ctx, batch);
    llama_batch_free(batch);
    return status;
}

llama_context * make_context(llama_model * model, Controller * controller, uint32_t n_seq,
                             ggml_backend_sched_eval_callback callback = nullptr, void * user_data = nullptr) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 256;
    params.n_seq_max            = n_seq;
    params.n_threads            = 1;
    params.cb_eval              = callback;
    params.cb_eval_user_data    = user_data;
    if (controller != nullptr) {
        controller->attach(params);
    }
    return llama_init_from_model(model, params);
}

void every_sequence_counts(llama_model * model) {
    for (const llama_seq_id used : { 0, 1, 3 }) {
        Controller      controller;
        llama_context * ctx = make_context(model, &controller, 4);
        expect(decode_token(ctx, used, 0) == 0, "a token of one sequence is decoded");
        expect_refused([&] { controller.probe(ctx); }, "sequence " + std::to_string(used));
        expect(llama_memory_seq_pos_max(llama_get_memory(ctx), used) == 0, "the sequence is still there");
        llama_memory_clear(llama_get_memory(ctx), true);
        controller.probe(ctx);
        expect(controller.n_layer() > 0, "an empty context is probed");
        llama_free(ctx);
    }
}

// A callback that ends the evaluation at its tenth node, once.
struct Ender {
    int  n_seen = 0;
    bool armed  = false;

    static bool callback(ggml_tensor *, bool ask, void * user_data) {
        Ender & self = *static_cast<Ender *>(user_data);
        if (!self.armed) {
            return false;
        }
        if (ask) {
            return ++self.n_seen == 10;
        }
        self.armed = false;
        return false;
    }
};

std::vector<float> logits_of(llama_context * ctx, llama_model * model) {
    const float * logits = llama_get_logits_ith(ctx, -1);
    return { logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model)) };
}

// What such a callback leaves is its own affair; the tokens after it are not.
void an_evaluation_cut_short_is_not_learnt(llama_model * model) {
    Config config;
    config.layers        = std::vector<int>{ 1 };
    config.max_skip      = 0;
    config.warm_up_index = 0;

    std::vector<float> expected;
    for (const bool cut : { false, true }) {
        Ender           ender;
        Controller      controller;
        llama_context * ctx = make_context(model, &controller, 1, Ender::callback, &ender);
        controller.probe(ctx);
        controller.set_config(config);
        llama_token    token  = 7;
        llama_pos      pos    = 0;
        int32_t        n_seq  = 1;
        llama_seq_id   seq    = 0;
        llama_seq_id * seqs   = &seq;
        int8_t         output = 1;
        const RowKind  kind   = RowKind::skippable;
        const auto     decode = [&] {
            return controller.decode(ctx, { 1, &token, nullptr, &pos, &n_seq, &seqs, &output }, &kind);
        };
        if (cut) {
            ender.armed = true;
            expect(decode() == 0, "an evaluation that the other callback ends is no failure of ours");
            expect(controller.stats().tokens == 0, "nor a token that skipped");
            llama_memory_clear(llama_get_memory(ctx), true);
        }
        expect(decode() == 0 && controller.stats().skipped_per_layer[1] == 1, "the token is decoded, with skipping");
        if (!cut) {
            expected = logits_of(ctx, model);
        } else {
            expect(logits_of(ctx, model) == expected, "as if nothing had been before it");
        }
        llama_free(ctx);
    }
}

// A second context would take the callback of the first one's parameters from it.
void another_callback_is_not_replaced() {
    Ender                ender;
    Controller           controller;
    llama_context_params first = llama_context_default_params(), again = first, other = first;
    first.cb_eval = again.cb_eval = Ender::callback;
    first.cb_eval_user_data = again.cb_eval_user_data = &ender;
    controller.attach(first);
    controller.attach(first);
    controller.attach(again);
    expect(again.cb_eval == first.cb_eval && first.cb_eval != Ender::callback, "attached, as often as it takes");
    expect_refused([&] { controller.attach(other); }, "a controller serves one context");
    expect(other.cb_eval == nullptr, "nothing is attached");
}

std::string fingerprint_of_a_closed_model(const char * path, bool closed) {
    llama_model *   model = llama_model_load_from_file(path, llama_model_default_params());
    Controller      controller;
    llama_context * ctx = make_context(model, &controller, 1);
    controller.probe(ctx);
    const std::string before = controller.fingerprint();
    llama_free(ctx);
    llama_model_free(model);
    return closed ? controller.fingerprint() : before;
}

}  // namespace

int main(int argc, char ** argv) {
    expect(argc == 2, "usage: test_probe MODEL.gguf");
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    another_callback_is_not_replaced();
    every_sequence_counts(model);
    an_evaluation_cut_short_is_not_learnt(model);
    llama_model_free(model);
    const std::string open = fingerprint_of_a_closed_model(argv[1], false);
    expect(!open.empty() && fingerprint_of_a_closed_model(argv[1], true) == open, "the fingerprint outlives the model");
    return result();
}
